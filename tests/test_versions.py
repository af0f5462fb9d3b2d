"""The result of the tests with the oldest and the newest versions is about the versions that pyproject.toml admits."""

import json

from packaging.requirements import Requirement

from benchmarks import versions

RESULT = json.loads((versions.ROOT / "benchmarks" / "versions.json").read_text(encoding="utf-8"))


def test_the_oldest_versions_that_were_run_are_the_lower_bounds():
    installed = {name.lower(): version for name, version in RESULT["environments"]["oldest"]["versions"].items()}
    bounds = [Requirement(oldest) for oldest in versions.oldest_versions()]
    assert bounds
    wrong = [str(bound) for bound in bounds if installed[bound.name.lower()] not in bound.specifier]
    assert not wrong, "run: python -m benchmarks.versions"


def test_nothing_failed_with_either():
    for name, environment in RESULT["environments"].items():
        assert environment["failures"] == [], name
        assert environment["passed"] > 3000, name


def test_a_report_is_counted(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="a" name="one"/>'
        '<testcase classname="a" name="two"><skipped/></testcase>'
        '<testcase classname="a" name="three"><failure message="first line&#10;second"/></testcase>'
        '<testcase classname="b" name="four"><error message="broken"/></testcase></testsuite></testsuites>'
    )
    assert versions.read_report(report) == {
        "passed": 1,
        "failed": 2,
        "skipped": 1,
        "failures": [
            {"test": "a::three", "reason": "first line"},
            {"test": "b::four", "reason": "broken"},
        ],
    }
