"""Ctrl-C ends every command with status 130 at any time, and the output is complete."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from DeepCache.cli.interruption import stopped

pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")

# The parent process may ignore the signal.
BEGIN = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
AT_IMPORT = """
class At:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, At())
"""
READY = 'os.write(1, b"ready")\n'
SCRIPT = "from DeepCache.cli import main\nsys.exit(main())\n"
MODULE = 'import runpy\nrunpy.run_module("DeepCache", run_name="__main__", alter_sys=True)\n'


def start(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize(
    ("arguments", "module"),
    [
        (["generate", "x"], "typer"),
        (["generate", "x"], "DeepCache.cli.generate"),
        (["generate", "x"], "torch"),
        (["generate", "x"], "transformers"),
        (["generate", "x"], "diffusers"),
        (["info"], "numpy"),
        (["tune", "--cost", "0.5"], "DeepCache.tune"),
        (["batch", "prompts.txt", "-o", "pictures"], "DeepCache.batch"),
        (["--help"], "typer.rich_utils"),
        (["report", "--help"], "DeepCache.cli.report"),
    ],
)
def test_ctrl_c_during_an_import(tmp_path, arguments, module):
    process = start(AT_IMPORT.format(module=module) + SCRIPT, *arguments, cwd=tmp_path)
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout, stderr) == (130, "", "")


def test_ctrl_c_with_python_m(tmp_path):
    process = start(AT_IMPORT.format(module="rich.console") + MODULE, "generate", "x", cwd=tmp_path)
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout, stderr) == (130, "", "")


@pytest.mark.parametrize("seconds", [0.01, 0.05, 0.2, 0.5, 1, 2])
def test_ctrl_c_at_any_time(tmp_path, seconds):
    # Before the program is imported, Python handles the interrupt.
    code = SCRIPT.replace("sys.exit", READY + "sys.exit")
    process = start(code, "generate", "x", "--images", 500, "--steps", 2, cwd=tmp_path)
    assert process.stdout.read(5) == "ready"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert all(str(path.relative_to(tmp_path)) in stdout for path in tmp_path.glob("deepcache-output/*"))


def test_every_reported_image_is_counted(tmp_path):
    process = start(SCRIPT, "generate", "x", "--images", 500, "--steps", 2, "--compare", cwd=tmp_path)
    for line in process.stderr:
        if line.startswith("image 1 of 500, DeepCache"):
            break
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 130
    (line,) = [line for line in stderr.splitlines() if line.startswith("Stopped")]
    files = [path for path in tmp_path.glob("deepcache-output/*") if not path.stem.endswith(("-original", "-compare"))]
    assert files
    assert line == f"Stopped: {len(files)} of 500 images are finished."
    assert all(path.name in stdout for path in files)


def test_an_interrupt_that_python_drops_is_repeated():
    code = """
from DeepCache.cli.interruption import keep_on_interrupt, on_interrupt
class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
with on_interrupt():
    keep_on_interrupt()
    Last()
    import time
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print("kept")
        raise SystemExit(130)
"""
    process = start(code)
    stdout, stderr = process.communicate()
    assert stdout == "kept\n"
    assert process.returncode != 0
    assert "Exception ignored" not in stderr


def test_an_error_caused_by_an_interrupt_is_an_interrupt():
    code = """
import DeepCache.cli.commands
def main(*_, **__):
    from DeepCache.cli.interruption import keep_on_interrupt
    keep_on_interrupt()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
    except KeyboardInterrupt:
        raise RuntimeError("half an import")
DeepCache.cli.commands.app = main
"""
    process = start(code + SCRIPT)
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout, stderr) == (130, "", "")


def test_a_process_that_ignores_the_signal_continues():
    code = "signal.signal(signal.SIGINT, signal.SIG_IGN)\nos.kill(os.getpid(), signal.SIGINT)\n"
    process = start(code + AT_IMPORT.format(module="typer") + SCRIPT, "--version")
    stdout, _ = process.communicate()
    assert process.returncode == 0
    assert stdout.startswith("deepcache ")


def test_the_message_says_whether_there_is_something_to_resume(tmp_path):
    assert stopped(tmp_path / "plan-tuning") == "Stopped before anything was measured."
    assert stopped(tmp_path) == f"Stopped. The same command resumes from {tmp_path}."


def test_an_image_is_counted_as_soon_as_it_is_written(tmp_path, monkeypatch):
    from PIL import Image

    from DeepCache.generation import OutputFolder

    replace = Path.replace

    def interrupted(self, target):
        replace(self, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    folder = OutputFolder(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        folder.save(Image.new("RGB", (8, 8)), "0001-x-seed0", {})
    assert folder.written == [tmp_path / "0001-x-seed0.png"]
