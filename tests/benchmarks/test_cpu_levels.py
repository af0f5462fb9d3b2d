"""The measurements of CPUs at several levels of instructions."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import cpu_dtypes
from benchmarks.cpu_levels import LEVELS, rotated, workers

HAS_AVX2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def test_every_item_is_first_in_turn():
    assert [rotated("abc", number)[0] for number in range(-1, 4)] == ["c", "a", "b", "c", "a"]


@pytest.mark.skipif(not HAS_AVX2, reason="the processor has no AVX2")
def test_a_worker_is_at_its_level_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx512")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    with workers("benchmarks.cpu_dtypes", ["AVX2"], ["--side", "2"]) as running:
        described = running["AVX2"].ask("describe")
        assert described == {"aten": "AVX2", "onednn_takes_bfloat16": False, "onednn_takes_float16": False}
        assert len(running["AVX2"].ask("time", "linear", "bfloat16", 3)) == 3


def test_a_worker_that_ends_is_an_error(capfd):
    with (
        workers("benchmarks.cpu_dtypes", ["native"], ["--side", "2"]) as running,
        pytest.raises(RuntimeError, match="status 1"),
    ):
        running["native"].ask("time", "no such layer", "float32", 1)
    assert "no such layer" in capfd.readouterr().err


def test_a_dtype_is_compared_with_float32_of_the_same_level(tmp_path, monkeypatch):
    output = tmp_path / "dtypes.json"
    monkeypatch.setattr(cpu_dtypes, "LEVELS", {name: LEVELS[name] for name in ("AVX2", "native")})
    monkeypatch.setattr(sys, "argv", ["", "--side", "2", "--rounds", "1", "--output", str(output)])
    cpu_dtypes.main()
    (found,) = json.loads(output.read_text(encoding="utf-8"))["levels"].values()
    for layer in found["layers"].values():
        assert layer["float32"]["to_float32"] == 1
        assert all(len(each["seconds"]) == 2 and not each["first_call_alone"] for each in layer.values())
        assert layer["bfloat16"]["to_float32"] == layer["bfloat16"]["median_ms"] / layer["float32"]["median_ms"]
