"""`count_ops_and_params` and that of the reference package, which needs a name that diffusers no longer has."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from benchmarks.harness.reference_package import FOLDER
from DeepCache.flops import count_ops_and_params
from tests.engine.tiny_pipeline import tiny_unet


@pytest.fixture
def reference(monkeypatch):
    lora = ModuleType("diffusers.models.lora")
    lora.LoRACompatibleLinear = type("LoRACompatibleLinear", (nn.Linear,), {})
    lora.LoRACompatibleConv = type("LoRACompatibleConv", (nn.Conv2d,), {})
    monkeypatch.setitem(sys.modules, "diffusers.models.lora", lora)
    spec = importlib.util.spec_from_file_location("reference_flops", FOLDER / "DeepCache/flops.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inputs(batch):
    return torch.randn(batch, 4, 8, 8), torch.tensor(3), torch.randn(batch, 3, 8)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_unet_has_the_same_counts(reference, batch):
    unet = tiny_unet()
    assert count_ops_and_params(unet, inputs(batch)) == reference.count_ops_and_params(unet, inputs(batch))
    assert all(parameter.device.type == "cpu" for parameter in unet.parameters())


def test_arguments_by_name_are_one_sample(reference, capsys):
    named = dict(zip(("sample", "timestep", "encoder_hidden_states"), inputs(2), strict=True))
    assert count_ops_and_params(tiny_unet(), named) == reference.count_ops_and_params(tiny_unet(), named)


LAYERS = [
    nn.Conv1d(4, 6, 3, groups=2),
    nn.ConvTranspose1d(4, 6, 3, stride=2, bias=False),
    nn.Sequential(nn.ReLU(), nn.GELU(), nn.LeakyReLU(), nn.MaxPool1d(2), nn.AdaptiveAvgPool1d(2)),
    nn.Sequential(nn.GroupNorm(2, 4), nn.GroupNorm(2, 4, affine=False), nn.InstanceNorm1d(4), nn.BatchNorm1d(4)),
    nn.Sequential(nn.LayerNorm(8), nn.LayerNorm(8, elementwise_affine=False), nn.SiLU()),
    nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 3, bias=False)),
    nn.Upsample(scale_factor=2),
]


@pytest.mark.parametrize(
    "layer", LAYERS, ids=lambda layer: type(layer[0] if len([*layer.children()]) else layer).__name__
)
def test_every_kind_of_layer(reference, layer):
    sample = torch.randn(2, 4, 8)
    assert count_ops_and_params(layer, sample) == reference.count_ops_and_params(layer, sample)


def test_the_lines_of_the_layers(capsys):
    total, parameters = count_ops_and_params(nn.Sequential(nn.Linear(8, 4), nn.SiLU()), torch.zeros(1, 8), True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["Sequential", "0", "1"]
    assert lines[1].split()[-2:] == ["100.00", "%"]
    assert (total, parameters) == (36, 36)
