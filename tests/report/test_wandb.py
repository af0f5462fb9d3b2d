"""A run of Weights & Biases, offline, and where its files go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from DeepCache.report import log_to_wandb, wandb_run
from tests.report.reading import parse
from tests.report.synthetic_results import ablation, benchmark, find_row, write

pytest.importorskip("wandb", reason="wandb is not installed")


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """What a run in empty folders printed, and left behind."""
    folder = tmp_path_factory.mktemp("wandb")
    for name in ("home", "tmp", "cwd", "results", "matplotlib"):
        (folder / name).mkdir()
    speed, fidelity = benchmark(), ablation(labels=["I=2 B=0", "I=3 B=0", "I=2 B=1", "I=3 B=1"], samples=2)
    paths = [write(speed, folder / "results/speed.json"), write(fidelity, folder / "results/fidelity.json")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "XDG", "NETRC"))}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "DeepCache",
            "report",
            *map(str, paths),
            "-o",
            str(folder / "results/page.html"),
            "--wandb",
        ],
        cwd=folder / "cwd",
        # The font cache of matplotlib is not written by wandb.
        env=kept
        | {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "MPLCONFIGDIR": str(folder / "matplotlib")},
        capture_output=True,
        text=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return folder, done, speed, fidelity


def run_folder(folder):
    (found,) = (folder / "results/page-wandb/wandb").glob("offline-run-*")
    return found


def tables(folder):
    """The tables of the run, by their names without the ending that wandb adds."""
    found = {}
    for path in sorted(run_folder(folder).glob("files/media/table/**/*.table.json")):
        found[path.name.rpartition("_")[0].rpartition("_")[0]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_nothing_is_asked_and_the_upload_command_is_printed(logged):
    folder, done, _, _ = logged
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        str(folder / "results/page.html"),
        f"Not uploaded. To upload the run: wandb sync {run_folder(folder)}",
    ]
    assert list(run_folder(folder).glob("run-*.wandb"))


def test_nothing_is_written_elsewhere(logged):
    folder = logged[0]
    for name in ("home", "tmp", "cwd"):
        assert list((folder / name).iterdir()) == []
    assert sorted(path.name for path in (folder / "results").iterdir()) == [
        "fidelity.json",
        "page-wandb",
        "page.html",
        "samples",
        "speed.json",
    ]


def test_the_tables_are_those_of_the_page(logged):
    folder, _, speed, fidelity = logged
    found = tables(folder)
    assert set(found) == {"speed", "every measurement", "every setting"}
    row = dict(zip(found["speed"]["columns"], found["speed"]["data"][0], strict=True))
    cell = speed["cells"][0]
    assert (row["Resolution"], row["Batch size"]) == ("512", 1)
    assert row["Original"] == pytest.approx(find_row(cell, "no caching")["median"])
    ours = find_row(cell, "DeepCache", "I=3 B=0")
    assert row["DeepCache(I=3, B=0)"] == pytest.approx(ours["median"])
    assert row["DeepCache(I=3, B=0) speed-up"] == pytest.approx(ours["speed_up"])
    assert row["DeepCache(I=3, B=0) published speed-up"] == 2.33
    assert len(found["every measurement"]["data"]) == len(cell["rows"])
    settings = fidelity["groups"][0]["cells"]
    shown = [dict(zip(found["every setting"]["columns"], row, strict=True)) for row in found["every setting"]["data"]]
    assert {row["Settings"]: row["PSNR, dB"] for row in shown} == pytest.approx(
        {cell["label"]: cell["psnr"]["mean"] for cell in settings}
    )


def test_the_images_and_charts_are_those_of_the_page(logged):
    folder = logged[0]
    names = [path.name for path in run_folder(folder).glob("files/media/images/**/*.png")]
    charts = ("Speed-up at 512 px", "PSNR against cost")
    for chart in charts:
        assert len([name for name in names if name.startswith(chart)]) == 1, names
    page = parse((folder / "results/page.html").read_text(encoding="utf-8"))
    (heat_maps,) = run_folder(folder).glob("files/media/html/**/*.html")
    assert "re-use, uniform" in heat_maps.read_text(encoding="utf-8")
    # Both keep one of equal images.
    shown = {image.attributes["src"] for image in page.all("img") if image.attributes.get("class") != "chart"}
    assert len([name for name in names if name.startswith("samples")]) == len(shown) > 6


def test_configuration_and_captions_are_in_the_run(logged):
    content = next(run_folder(logged[0]).glob("run-*.wandb")).read_bytes()
    for words in (
        b"deepcache benchmark --model sd21",
        b"570.86.15",
        b"a red circle (seed 0): original, 0.320 s per image",
        b"a blue square (seed 1): I=3 B=0, 0.",
    ):
        assert words in content


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"WANDB_API_KEY": "x" * 40}, True),
        ({"WANDB_IDENTITY_TOKEN_FILE": "token"}, True),
        ({"NETRC": "good"}, True),
        ({"NETRC": "bad"}, False),
        ({"NETRC": "good", "WANDB_BASE_URL": "https://wandb.example.org"}, False),
    ],
)
def test_a_key_is_found_where_wandb_looks_for_it(tmp_path, monkeypatch, variables, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    Path("good").write_text(f"machine api.wandb.ai login user password {'x' * 40}\n", encoding="utf-8")
    Path("bad").write_text("machine\n", encoding="utf-8")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wandb_run._has_key() is expected


@pytest.mark.parametrize(
    ("mode", "key", "expected"), [(None, "", "offline"), (None, "x", "online"), ("offline", "x", "offline")]
)
def test_the_mode_is_respected(tmp_path, monkeypatch, mode, key, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    seen = {}

    def start(command, **options):
        seen.update(options)
        answer = {"folder": str(tmp_path / "there/wandb/run-1"), "url": "https://example.org/run"}
        return subprocess.CompletedProcess(command, 0, stdout=f"a banner\n{json.dumps(answer)}\n", stderr="")

    monkeypatch.setattr(subprocess, "run", start)
    run = log_to_wandb(["result.json"], tmp_path / "there", project="mine", title="Mine")
    assert seen["env"]["WANDB_MODE"] == expected
    assert json.loads(seen["input"]) == {
        "paths": ["result.json"],
        "folder": str(tmp_path / "there"),
        "project": "mine",
        "title": "Mine",
    }
    assert run.folder == tmp_path / "there/wandb/run-1"
    assert run.url == "https://example.org/run"


def test_an_unreachable_server_is_an_error_of_one_line(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="wandb: trouble\nCommError: refused\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(OSError, match="failed: CommError: refused; WANDB_MODE=offline"):
        log_to_wandb(["result.json"], tmp_path / "there")
