"""`deepcache app` as a process."""

from __future__ import annotations

import signal
import subprocess
import sys
from urllib.request import urlopen

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")


def test_it_says_where_it_is_and_ends_with_ctrl_c():
    command = [sys.executable, "-m", "DeepCache", "app", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        assert said.startswith("DeepCache is at http://127.0.0.1:")
        with urlopen(said.split()[-1], timeout=60) as response:
            assert "gradio_config" in response.read().decode()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "Ctrl-C ends it."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "shape"], "there is no model 'shape' (did you mean shapes?)"),
        (["--port", "70000"], "port must be from 0 to 65535, got 70000"),
        (["--ablation", "nowhere.json"], "'nowhere.json'"),
        (["--device", "abacus"], "'abacus'"),
        (["--offload", "disk"], "offload must be one of model, sequential, group, got 'disk'"),
        (["--offload", "model", "--device", "cpu"], "offload='model' needs a GPU, and the device is cpu"),
    ],
)
def test_what_is_wrong_is_one_line(run, options, message):
    found = run("app", "--port", "0", *options)
    assert found.exit_code == 2
    (line,) = found.stderr.splitlines()
    assert message in line
    assert found.stdout == ""


QUIET = """
import sys
asked = []
sys.addaudithook(lambda event, values: asked.append(values) if event in ("socket.connect", "socket.getaddrinfo") else 0)
import uvicorn
uvicorn.Server.run = lambda self, sockets: None
sys.argv = ["deepcache", "app", "--port", "0", "--device", "cpu"]
from DeepCache.cli import main
try:
    main()
except SystemExit:
    pass
import gradio.analytics, huggingface_hub.constants
print(huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY, gradio.analytics.analytics_enabled())
print([values for values in asked if "127.0.0.1" not in str(values)])
"""


def test_nobody_is_told_that_it_is_used():
    command = [sys.executable, "-c", QUIET]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert said.stdout.splitlines()[-2:] == ["True False", "[]"], said.stderr
