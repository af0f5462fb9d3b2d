"""Settings of commands from `deepcache.toml` and `pyproject.toml`."""

from __future__ import annotations

import pytest

from DeepCache.cli.settings_file import find_settings_file
from tests.cli.helpers import complain, image_of, settings_of

SHARED = 'interval = 5\nforecast = "none"\n'


def generated(run, *arguments):
    result = run("generate", "a red circle", "--json", *arguments)
    return settings_of(image_of(result)), result.stderr


def test_settings_come_from_the_file_and_options_override_them(run, tmp_path):
    (tmp_path / "deepcache.toml").write_text(
        SHARED + "[generate]\nsteps = 6\nguidance_reuse = true\n[batch]\nsteps = 7\n", encoding="utf-8"
    )
    found, stderr = generated(run)
    assert (found["cache_interval"], found["forecast"], found["steps"], found["guidance_reuse"]) == (5, "none", 6, True)
    assert f"Settings from {tmp_path / 'deepcache.toml'}: forecast, guidance-reuse, interval, steps" in stderr
    found, _ = generated(run, "--steps", 4, "-i", 2)
    assert (found["cache_interval"], found["forecast"], found["steps"]) == (2, "none", 4)


def test_a_preset_replaces_the_caching_settings(run, tmp_path):
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


def test_a_number_is_valid_for_an_option_with_a_list(run, tmp_path):
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
def test_an_invalid_file_is_refused_in_one_line(run, tmp_path, text, message):
    (tmp_path / "deepcache.toml").write_text(text, encoding="utf-8")
    complain(run("generate", "a red circle"), str(tmp_path / "deepcache.toml"), message)


def test_a_value_out_of_range_is_reported_after_its_file(run, tmp_path):
    (tmp_path / "deepcache.toml").write_text("interval = 0\n", encoding="utf-8")
    stderr = run("generate", "a red circle").stderr
    assert f"Settings from {tmp_path / 'deepcache.toml'}: interval" in stderr
    assert "cache_interval must be" in stderr


def test_help_ignores_the_settings_file(run, tmp_path):
    (tmp_path / "deepcache.toml").write_text("not TOML", encoding="utf-8")
    for arguments in (["--help"], ["generate", "--help"], ["--version"]):
        assert run(*arguments).exit_code == 0
