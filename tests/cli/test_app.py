"""`deepcache app` as a process."""

from __future__ import annotations

import signal
import subprocess
import sys
from urllib.request import urlopen

import pytest

from tests.cli.helpers import DEEPCACHE, complain

pytest.importorskip("gradio", reason="gradio is not installed")


def test_the_address_is_printed_and_ctrl_c_stops_the_server():
    command = [*DEEPCACHE, "app", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        output = process.stdout.readline()
        assert output.startswith("DeepCache is at http://127.0.0.1:")
        with urlopen(output.split()[-1], timeout=60) as response:
            assert "gradio_config" in response.read().decode()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "Press Ctrl-C to stop."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "shape"], "there is no model 'shape' (did you mean shapes?)"),
        (["--port", "70000"], "port must be between 0 and 65535, got 70000"),
        (["--ablation", "nowhere.json"], "'nowhere.json'"),
        (["--device", "abacus"], "'abacus'"),
        (["--offload", "disk"], "offload must be one of model, sequential, group, got 'disk'"),
        (["--offload", "model", "--device", "cpu"], "offload='model' needs a GPU, and the device is cpu"),
    ],
)
def test_invalid_options_are_refused_in_one_line(run, options, message):
    complain(run("app", "--port", "0", *options), message)


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


def test_telemetry_is_disabled():
    command = [sys.executable, "-c", QUIET]
    output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert output.stdout.splitlines()[-2:] == ["True False", "[]"], output.stderr
