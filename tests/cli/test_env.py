"""`deepcache env`."""

from __future__ import annotations

import json
from importlib.metadata import version

import torch

from DeepCache.bench import provenance


def test_versions_and_dtypes_are_shown(run):
    lines = run("env").stdout.splitlines()
    assert lines[0].startswith(f"DeepCache: {version('DeepCache')} in ")
    assert f"  torch: {torch.__version__}" in lines
    assert f"  diffusers: {version('diffusers')}" in lines
    assert any(line.startswith("  cpu: float32: native, bfloat16: ") for line in lines)


def test_json_has_the_same_content(run):
    found = json.loads(run("env", "--json").stdout)
    assert list(found) == ["DeepCache", "Python", "packages", "machine", "devices"]
    assert found["packages"]["torch"] == version("torch")
    assert "pruna" not in found["packages"]


def test_dtypes_of_the_cpu_are_described_by_their_support(monkeypatch):
    support = {torch.float32: "native", torch.bfloat16: "native (AMX)", torch.float16: "emulated"}
    monkeypatch.setattr(provenance, "cpu_support", support.get)
    cpu = provenance.describe_environment()["devices"]["cpu"]
    assert cpu == "float32: native, bfloat16: native (AMX), float16: emulated"
