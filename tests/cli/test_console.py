"""The console command in a separate process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from DeepCache.cli import app
from DeepCache.generation import read_settings
from DeepCache.models import load_pipeline
from tests.cli.helpers import DEEPCACHE
from tests.models.original_layout import save_checkpoint
from tests.models.small_vaes import save_tiny


def deepcache(*arguments, **options):
    return subprocess.run([*DEEPCACHE, *arguments], capture_output=True, text=True, **options)


def test_version_and_help_without_torch():
    code = (
        "import sys; from DeepCache.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    for arguments, word in (
        (["--version"], f"deepcache {version('DeepCache')}"),
        (["--help"], "generate"),
        (["generate", "--help"], "--compare"),
        (["info", "--help"], "MODEL"),
        (["benchmark", "--help"], "--reference"),
        (["ablate", "--help"], "--intervals"),
        (["report", "--help"], "RESULT.json"),
        (["app", "--help"], "pip install 'DeepCache[app]'"),
        ([], "generate"),
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert word in done.stdout
        assert done.stderr == ""


@pytest.mark.parametrize("command", get_command(app).commands)
def test_help_shows_every_option_once(run, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "200")
    shown = re.findall(r"^│ (?:[* ]  )?(--[\w-]+)", run(command, "--help").stdout, re.MULTILINE)
    options = [each.opts[0] for each in get_command(app).commands[command].params if each.opts[0].startswith("--")]
    assert sorted(shown) == sorted([*options, "--help"])


def test_generate_prints_nothing_of_the_libraries(tmp_path):
    done = deepcache("generate", "a red circle", "--steps", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "image 1 of 1, DeepCache: 2 steps F·\n"
    (path,) = (tmp_path / "deepcache-output").glob("*.png")
    assert path.name in done.stdout


def test_another_vae_prints_nothing_of_the_libraries(tmp_path):
    save_tiny(tmp_path / "vae")
    done = deepcache("generate", "a red circle", "--steps", "2", "--vae", "vae", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "image 1 of 1, DeepCache: 2 steps F·\n"
    (path,) = (tmp_path / "deepcache-output").glob("*.png")
    assert read_settings(path)["settings"]["vae"] == "vae"
    (tmp_path / "vae" / "config.json").unlink()
    refused = deepcache("generate", "a red circle", "--vae", "vae", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "deepcache: the folder 'vae' is not a VAE of diffusers: it has no config.json\n"


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_ends_cleanly(tmp_path):
    process = subprocess.Popen(
        [*DEEPCACHE, "generate", "a red circle", "--images", "500", "--steps", "2"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while process.poll() is None and not list(tmp_path.glob("deepcache-output/*.png")):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in stderr
    kept = list(tmp_path.glob("deepcache-output/*"))
    assert kept
    assert all(path.name in stdout for path in kept)


def test_a_model_in_one_file_generates_the_same_image(tmp_path):
    save_checkpoint(load_pipeline("shapes", device="cpu"), tmp_path / "shapes.safetensors")
    command = ("generate", "a red circle", "--steps", "3", "--device", "cpu")
    model = ("--model", "shapes.safetensors", "--config", "shapes", "--guidance", "2")
    for options, output in (((), "folder.png"), (model, "file.png"), (("--from", "file.png"), "again.png")):
        words = command[:1] if options[:1] == ("--from",) else command
        result = deepcache(*words, *options, "--output", output, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    images = [np.asarray(Image.open(tmp_path / name)) for name in ("folder.png", "file.png", "again.png")]
    assert all(np.array_equal(image, images[0]) for image in images)
    assert "conv_in" in deepcache("info", "shapes.safetensors", "--config", "shapes", cwd=tmp_path).stdout


def test_files_that_are_not_checkpoints_are_refused_in_one_line(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"x")
    (tmp_path / "text.safetensors").write_text("text", encoding="utf-8")
    for options, message in (
        (("--model", "model.ckpt"), "model.ckpt"),
        (("--model", "text.safetensors"), "text.safetensors"),
        (("--model", "missing.safetensors"), "missing.safetensors"),
        (("--model", "shapes", "--config", "sd15"), "config (--config) is for a model in one .safetensors file"),
    ):
        result = deepcache("generate", "a red circle", *options, cwd=tmp_path)
        assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1), result.stderr
        assert message in result.stderr
