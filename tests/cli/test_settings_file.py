"""Settings of commands from `deepcache.toml` and `pyproject.toml`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from DeepCache.cli.settings_file import find_settings_file
from DeepCache.generation import read_settings

SHARED = 'interval = 5\nforecast = "none"\n'


def generated(run, *arguments):
    result = run("generate", "a red circle", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return read_settings(json.loads(result.stdout)["images"][0]["file"])["settings"], result.stderr


def refusal(run, text, *arguments):
    Path("deepcache.toml").write_text(text, encoding="utf-8")
    result = run("generate", "a red circle", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    return result.stderr


def test_settings_come_from_the_file_and_options_override_them(run, tmp_path):
    (tmp_path / "deepcache.toml").write_text(
        SHARED + "[generate]\nsteps = 6\nguidance_reuse = true\n[batch]\nsteps = 7\n", encoding="utf-8"
    )
    found, stderr = generated(run)
    assert (found["cache_interval"], found["forecast"], found["steps"], found["guidance_reuse"]) == (5, "none", 6, True)
    assert f"Settings from {tmp_path / 'deepcache.toml'}: forecast, guidance-reuse, interval, steps" in stderr
    found, _ = generated(run, "--steps", 4, "-i", 2)
    assert (found["cache_interval"], found["forecast"], found["steps"]) == (2, "none", 4)


def test_a_preset_or_plan_replaces_the_settings_that_it_stands_for(run, tmp_path):
    (tmp_path / "deepcache.toml").write_text(SHARED + "steps = 4\n", encoding="utf-8")
    assert generated(run, "--preset", "balanced")[0]["cache_interval"] == 3
    (tmp_path / "deepcache.toml").write_text('preset = "fast"\nsteps = 4\n', encoding="utf-8")
    assert generated(run)[0]["cache_interval"] == 5
    assert generated(run, "--interval", 2)[0]["cache_interval"] == 2


def test_pyproject_and_parents_are_read(run, tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text('[tool.deepcache]\n"steps" = 4\nlora = []\n', encoding="utf-8")
    inner = tmp_path / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    assert generated(run)[0]["steps"] == 4
    (inner / "pyproject.toml").write_text("[tool.other]\n", encoding="utf-8")
    assert generated(run)[0]["steps"] == 4
    (inner / "deepcache.toml").write_text("steps = 5\n", encoding="utf-8")
    assert generated(run)[0]["steps"] == 5


def test_without_a_file_there_are_no_settings(tmp_path):
    assert find_settings_file(tmp_path) is None


def test_a_number_fits_an_option_that_takes_a_list(run, tmp_path):
    (tmp_path / "deepcache.toml").write_text("guidance = 7.5\n", encoding="utf-8")
    result = run("ablate", "--intervals", 0)
    assert result.exit_code == 2
    assert "guidance" not in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("intervall = 3\n", "unknown setting 'intervall'. Did you mean 'interval'?"),
        ("[generate]\nworkers = 3\n", "unknown setting 'workers' for generate"),
        ('from = "image.png"\n', "unknown setting 'from'"),
        ("generate = 3\n", "generate must be a table of settings, got 3"),
        ('interval = "often"\n', "--interval must be a whole number, got 'often'"),
        ("[interval]\nx = 3\n", "interval must be a value or a list of values, got {'x': 3}"),
        ("interval = \n", "cannot read"),
    ],
)
def test_a_wrong_file_is_reported_in_one_line(run, tmp_path, text, message):
    stderr = refusal(run, text)
    assert str(tmp_path / "deepcache.toml") in stderr
    assert message in stderr
    assert len(stderr.splitlines()) == 1


def test_a_value_out_of_range_is_reported_after_the_file_that_has_it(run, tmp_path):
    stderr = refusal(run, "interval = 0\n")
    assert f"Settings from {tmp_path / 'deepcache.toml'}: interval" in stderr
    assert "cache_interval must be" in stderr


def test_help_needs_no_settings(run, tmp_path):
    (tmp_path / "deepcache.toml").write_text("not TOML", encoding="utf-8")
    for arguments in (["--help"], ["generate", "--help"], ["--version"]):
        assert run(*arguments).exit_code == 0
