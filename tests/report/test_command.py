"""`deepcache report`, and what is wrong with its arguments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from DeepCache.cli import app
from DeepCache.report import html, wandb_run, write_report
from tests.report.synthetic_results import benchmark, find_row, wait, write


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = benchmark(reference=False, fewer_steps=False)
    wait(result["cells"][0])
    write(result, Path("result.json"))
    return lambda *arguments: CliRunner().invoke(app, ["report", *map(str, arguments)])


def complain(result, *words):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("deepcache: ")
    for word in words:
        assert word in line


def test_a_page_is_written_and_its_path_printed(run):
    result = run("result.json", "-o", "page.html", "--title", "Mine & yours")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "page.html\n", "")
    assert "<title>Mine &amp; yours</title>" in Path("page.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in Path().iterdir()) == ["page.html", "result.json"]


def test_a_page_that_is_there_is_replaced(run):
    Path("report.html").write_text("old", encoding="utf-8")
    assert run("result.json").stdout == "report.html\n"
    assert Path("report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_page_that_cannot_be_made_leaves_the_old_one(run, monkeypatch):
    Path("report.html").write_text("old", encoding="utf-8")
    monkeypatch.setattr("DeepCache.report.page.render_page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(["result.json"], "report.html")
    assert Path("report.html").read_text(encoding="utf-8") == "old"
    assert len(list(Path().iterdir())) == 2


def test_no_result(run):
    complain(run(), "nothing to report")


def test_a_result_that_is_not_there(run):
    complain(run("nowhere.json"), "no result file 'nowhere.json'")


def test_a_result_that_is_a_folder(run):
    complain(run("."), "it is a folder")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["'other.json'", "not JSON"]),
        ("[]", ["'other.json'", "JSON object"]),
        ('{"format": "DeepCache plan 1"}', ["'other.json'", "not a result"]),
        ('{"format": "DeepCache benchmark 1"}', ["'other.json' is damaged"]),
    ],
)
def test_a_file_that_is_no_result(run, content, words):
    Path("other.json").write_text(content, encoding="utf-8")
    complain(run("result.json", "other.json"), *words)
    assert not Path("report.html").exists()


def test_a_result_with_a_number_that_json_does_not_have(run):
    result = benchmark()
    find_row(result["cells"][0], "DeepCache")["median"] = float("nan")
    Path("other.json").write_text(json.dumps(result), encoding="utf-8")
    complain(run("other.json"), "'other.json'", "a number that JSON does not have")


def test_a_result_that_is_given_twice(run):
    complain(run("result.json", "./result.json"), "'result.json'", "twice")


def test_an_output_that_is_a_folder(run):
    Path("folder").mkdir()
    complain(run("result.json", "-o", "folder"), "'folder'", "is a folder")


def test_an_output_in_a_folder_that_is_not_there(run):
    complain(run("result.json", "-o", "nowhere/page.html"), "no folder 'nowhere'")


def test_an_output_that_is_a_result(run):
    complain(run("result.json", "-o", "./result.json"), "one of the results")
    assert json.loads(Path("result.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", ["jinja2", "matplotlib", "jsonschema"])
def test_a_missing_package_is_named_with_the_install_command(run, monkeypatch, module):
    import sys

    write(benchmark(), Path("result.json"))
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(html, "_environment", html._environment.__wrapped__)
    complain(run("result.json"), module, "pip install 'DeepCache[report]'")


def test_a_project_without_a_run(run):
    complain(run("result.json", "--wandb-project", "mine"), "--wandb-project", "--wandb")


def test_wandb_that_is_not_installed(run, monkeypatch):
    monkeypatch.setattr(wandb_run, "find_spec", lambda name: None)
    complain(run("result.json", "--wandb"), "wandb", "pip install 'DeepCache[wandb]'")
    assert not Path("report.html").exists()


def test_wandb_that_is_switched_off(run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    complain(run("result.json", "--wandb"), "WANDB_MODE")
