"""The measurements of CPUs at several levels of instructions."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import cpu_dtypes, cpu_memory_format
from benchmarks.cpu_levels import LEVELS, rotated, workers

HAS_AVX2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def test_every_item_is_first_in_turn():
    assert [rotated("abc", number)[0] for number in range(-1, 4)] == ["c", "a", "b", "c", "a"]


@pytest.mark.skipif(not HAS_AVX2, reason="the processor has no AVX2")
def test_worker_ignores_the_level_of_the_environment(monkeypatch):
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


def test_both_memory_formats_compute_the_same_and_are_compared_round_by_round(tmp_path, monkeypatch):
    output = tmp_path / "formats.json"
    arguments = ["--model", "sd15-tiny", "--pixels", "64", "--rounds", "2", "--cases"]
    monkeypatch.setattr(
        sys, "argv", ["", *arguments, "AVX2/float32,AVX2/bfloat16,native/bfloat16", "--output", str(output)]
    )
    monkeypatch.setattr(cpu_memory_format, "cpu_support", lambda dtype: "emulated")
    cpu_memory_format.main()
    result = json.loads(output.read_text(encoding="utf-8"))
    assert [(each["level"], each["dtype"]) for each in result["cells"]] == [("AVX2", "float32")]
    assert [each["level"] for each in result["left_out"]] == ["AVX2", "native"]
    for part, found in result["cells"][0]["parts"].items():
        assert found["difference"] < 1e-4
        assert {len(calls) for calls in found["seconds"]["channels_last"]} == {3 if part == "shallow step" else 1}
        assert len(found["seconds"]["contiguous"]) == 2
        assert found["ratio_smallest"] <= found["ratio"] <= found["ratio_largest"]


def test_a_ratio_is_the_median_of_those_of_the_rounds():
    def part(*times):
        return {name: list(times) for name in cpu_memory_format.PARTS}

    same = dict.fromkeys(cpu_memory_format.PARTS, 0.0)
    rounds = [
        {"seconds": {"contiguous": part(*plain), "channels_last": part(*other)}, "difference": same}
        for plain, other in (([1.0], [0.5]), ([2.0, 4.0, 9.0], [2.0, 2.0, 9.0]), ([1.0], [3.0]))
    ]
    found = cpu_memory_format.cell("native", "float32", rounds)["parts"]["full step"]
    assert (found["ratio"], found["ratio_smallest"], found["ratio_largest"]) == (0.5, 0.5, 3.0)
    assert found["median_ms"] == {"contiguous": 1000, "channels_last": 2000}
