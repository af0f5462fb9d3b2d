"""The result of the tests with the oldest and the newest versions is about the versions that pyproject.toml admits."""

import json

from packaging.requirements import Requirement

from benchmarks import versions

RESULT = json.loads((versions.ROOT / "benchmarks" / "versions.json").read_text(encoding="utf-8"))


def test_oldest_tested_versions_are_the_lower_bounds():
    installed = {name.lower(): version for name, version in RESULT["environments"]["oldest"]["versions"].items()}
    every = [Requirement(oldest) for oldest in versions.oldest_versions()]
    # tomli is in Python from 3.11 on.
    bounds = [bound for bound in every if bound.name != "tomli"]
    assert len(bounds) == len(every) - 1
    wrong = [str(bound) for bound in bounds if installed[bound.name.lower()] not in bound.specifier]
    assert not wrong, "run: python -m benchmarks.versions"


def test_every_row_was_run_and_nothing_failed():
    assert list(RESULT["environments"]) == [row.name for row in versions.MATRIX]
    for row in versions.MATRIX:
        environment = RESULT["environments"][row.name]
        assert environment["failures"] == [], row.name
        assert environment["passed"] > (3000 if row.whole else 1500), row.name


def test_installing_the_package_changed_no_other():
    changes = [each["changed"] for each in RESULT["environments"].values() if "changed" in each]
    assert changes
    assert not any(changes)


def test_the_rows_are_of_the_versions_that_they_name():
    for row in versions.MATRIX:
        versions_of = RESULT["environments"][row.name]["versions"]
        installed = {name.lower().replace("_", "-"): version for name, version in versions_of.items()}
        pins = [Requirement(pin) for pin in (*row.pins, f"torch=={row.torch}" if row.torch else "torch")]
        assert all(installed[pin.name.replace("_", "-")].split("+")[0] in pin.specifier for pin in pins), row.name
        assert installed["python"].startswith(f"{row.python}."), row.name


def test_results_of_a_report_are_counted(tmp_path):
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
