"""`deepcache env`."""

from __future__ import annotations

import json
from importlib.metadata import version

import torch
from typer.testing import CliRunner

from DeepCache.bench import environment
from DeepCache.cli import app


def run(*options):
    finished = CliRunner().invoke(app, ["env", *options])
    assert finished.exit_code == 0
    return finished.stdout


def test_what_a_report_needs_is_there():
    lines = run().splitlines()
    assert lines[0].startswith(f"DeepCache: {version('DeepCache')} in ")
    assert f"  torch: {torch.__version__}" in lines
    assert f"  diffusers: {version('diffusers')}" in lines
    assert any(line.startswith("  cpu: float32: native, bfloat16: ") for line in lines)


def test_it_is_the_same_for_programs():
    found = json.loads(run("--json"))
    assert list(found) == ["DeepCache", "Python", "packages", "machine", "devices"]
    assert found["packages"]["torch"] == version("torch")
    assert "pruna" not in found["packages"]


def test_dtypes_of_the_processor_are_those_that_it_computes_in(monkeypatch):
    support = {torch.float32: "native", torch.bfloat16: "native (AMX)", torch.float16: "emulated"}
    monkeypatch.setattr(environment, "cpu_support", support.get)
    cpu = environment.describe_environment()["devices"]["cpu"]
    assert cpu == "float32: native, bfloat16: native (AMX), float16: emulated"
