"""Dtypes that the processor supports, and the warning about others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from DeepCache.models import device, load_pipeline, random_pipeline
from DeepCache.models.device import cpu_support

AVX512, BF16, AMX, AMX_FP16 = (
    "_is_avx512_supported",
    "_is_avx512_bf16_supported",
    "_is_amx_tile_supported",
    "_is_amx_fp16_supported",
)
TROUBLESHOOTING = Path(__file__).parents[2] / "docs" / "troubleshooting.md"


def processor(monkeypatch, onednn, **features):
    """Simulates a processor: the dtypes that oneDNN accepts, and the answers of `torch.cpu`."""
    taken = {f"_is_mkldnn_{name}_supported": lambda name=name: name in onednn for name in ("bf16", "fp16")}
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**taken))
    answers = {name: lambda value=value: value for name, value in features.items()}
    monkeypatch.setattr(torch, "cpu", SimpleNamespace(**answers))


PROCESSORS = {
    "AVX2": ((), {AVX512: False, BF16: False, AMX: False}, "emulated", "emulated"),
    # oneDNN accepts bfloat16 there and converts it.
    "AVX-512": (("bf16",), {AVX512: True, BF16: False, AMX: False}, "emulated", "emulated"),
    "AVX512_BF16": (("bf16",), {AVX512: True, BF16: True, AMX: False}, "native", "emulated"),
    "AMX": (
        ("bf16", "fp16"),
        {AVX512: True, BF16: True, AMX: True, AMX_FP16: False},
        "native (AMX)",
        "native",
    ),
    "AMX_FP16": (
        ("bf16", "fp16"),
        {AVX512: True, BF16: True, AMX: True, AMX_FP16: True},
        "native (AMX)",
        "native (AMX)",
    ),
    "AVX_NE_CONVERT": (("bf16", "fp16"), {AVX512: False, BF16: False, AMX: False}, "native", "native"),
    "ARM": (("bf16",), {AVX512: False, BF16: False, AMX: False}, "native", "emulated"),
    "unknown to this torch": (("bf16",), {}, "native", "emulated"),
    "AVX-512, unknown to this torch": (("bf16",), {AVX512: True}, "native", "emulated"),
}


@pytest.mark.parametrize(("onednn", "features", "bfloat16", "float16"), PROCESSORS.values(), ids=list(PROCESSORS))
def test_a_dtype_is_native_if_onednn_uses_its_instructions(onednn, features, bfloat16, float16, monkeypatch):
    processor(monkeypatch, onednn, **features)
    assert cpu_support(torch.bfloat16) == bfloat16
    assert cpu_support(torch.float16) == float16
    assert cpu_support(torch.float32) == "native"


def test_small_dtypes_are_emulated_without_onednn(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    assert cpu_support(torch.bfloat16) == cpu_support(torch.float16) == "emulated"


@pytest.fixture
def emulates(monkeypatch):
    """A processor without instructions for small dtypes."""
    native = {torch.float32: "native"}
    monkeypatch.setattr(device, "cpu_support", lambda dtype: native.get(dtype, "emulated"))


@pytest.mark.parametrize("load", [load_pipeline, random_pipeline])
@pytest.mark.parametrize("dtype", ["bf16", torch.float16])
def test_an_emulated_dtype_warns_once_at_the_calling_line(load, dtype, emulates):
    with pytest.warns(UserWarning, match="no native support") as caught:
        load("sd15-tiny", device="cpu", dtype=dtype)
    (warning,) = caught
    name = "bfloat16" if dtype == "bf16" else "float16"
    message = str(warning.message)
    assert message == (
        f"{name} has no native support on this CPU: convolutions are many times slower than in float32. Use float32."
    )
    assert load is load_pipeline or warning.filename == __file__


def test_the_warning_is_that_of_the_troubleshooting_page(emulates):
    with pytest.warns(UserWarning, match="no native support") as caught:
        load_pipeline("shapes", device="cpu", dtype="bfloat16")
    (warning,) = caught
    assert warning.filename == __file__
    assert str(warning.message) in TROUBLESHOOTING.read_text(encoding="utf-8")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("dtype", "where"), [("float32", "cpu"), (None, "cpu"), ("float16", "meta")])
def test_other_dtypes_and_devices_do_not_warn(dtype, where, emulates):
    random_pipeline("sd15-tiny", device=where, dtype=dtype)


@pytest.mark.filterwarnings("error")
def test_native_dtypes_do_not_warn(monkeypatch):
    monkeypatch.setattr(device, "cpu_support", lambda dtype: "native")
    load_pipeline("shapes", device="cpu", dtype="bfloat16")


def test_auto_is_float32_on_every_cpu(monkeypatch):
    monkeypatch.setattr(device, "cpu_support", lambda dtype: "native (AMX)")
    assert load_pipeline("shapes", device="cpu", dtype="auto").dtype == torch.float32
