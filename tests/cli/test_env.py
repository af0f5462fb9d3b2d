"""`deepcache env`."""

from __future__ import annotations

import json
from importlib.metadata import version
from types import SimpleNamespace

import pytest
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
    assert any(line.startswith("  cpu: float32: native, bfloat16 ") for line in lines)


def test_it_is_the_same_for_programs():
    found = json.loads(run("--json"))
    assert list(found) == ["DeepCache", "Python", "packages", "machine", "devices"]
    assert found["packages"]["torch"] == version("torch")
    assert "pruna" not in found["packages"]


@pytest.mark.parametrize(("native", "said"), [(True, "native"), (False, "emulated")])
def test_dtypes_of_the_processor_are_those_that_it_computes_in(native, said, monkeypatch):
    monkeypatch.setattr(
        torch.ops,
        "mkldnn",
        SimpleNamespace(_is_mkldnn_bf16_supported=lambda: native, _is_mkldnn_fp16_supported=lambda: not native),
    )
    other = "emulated" if native else "native"
    cpu = environment.describe_environment()["devices"]["cpu"]
    assert cpu == f"float32: native, bfloat16 {said}, float16 {other}"
