"""Graphs of torch.export equal the engine bit by bit, for every kind of U-Net and call."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel, UNetSpatioTemporalConditionModel

from DeepCache.engine.executor import Executor
from DeepCache.engine.layouts import branch_of
from DeepCache.export.call import CallReader
from DeepCache.export.graphs import FullGraph, ShallowGraph
from DeepCache.export.tracing import read_inputs, trace

NARROW = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
}


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def sd(**config):
    unet = UNet2DConditionModel(**NARROW | CROSS | config)
    return unet, {"sample": random(2, unet.config.in_channels, 8, 8), "encoder_hidden_states": random(2, 3, 8)}


def sdxl():
    unet, call = sd(
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=32
    )
    return unet, call | {"added_cond_kwargs": {"text_embeds": random(2, 8), "time_ids": random(2, 6)}}


def refiner():
    unet, call = sd(
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=28
    )
    return unet, call | {"added_cond_kwargs": {"text_embeds": random(2, 8), "time_ids": random(2, 5)}}


def with_controlnet():
    unet, call = sd()
    residuals = [random(2, 8, 8, 8), random(2, 8, 8, 8), random(2, 8, 4, 4), random(2, 16, 4, 4)]
    return unet, call | {
        "down_block_additional_residuals": residuals,
        "mid_block_additional_residual": random(2, 16, 4, 4),
    }


def svd():
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=8,
        num_attention_heads=(2, 2),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    )
    call = {"sample": random(2, 2, 8, 8, 8), "encoder_hidden_states": random(2, 1, 8), "added_time_ids": random(2, 3)}
    return unet, call


def pixels():
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(**NARROW, **blocks, add_attention=False), {"sample": random(1, 3, 8, 8)}


KINDS = {
    "Stable Diffusion": lambda: sd(),
    "inpainting": lambda: sd(in_channels=9),
    "LCM": lambda: (sd(time_cond_proj_dim=6)[0], sd()[1] | {"timestep_cond": random(2, 6)}),
    "SDXL": sdxl,
    "SDXL refiner": refiner,
    "ControlNet": with_controlnet,
    "Stable Video Diffusion": svd,
    "pixels": pixels,
}


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_are_the_engine_bit_by_bit(kind):
    torch.manual_seed(0)
    unet, keywords = KINDS[kind]()
    unet, branch = unet.eval(), branch_of(unet, 1)
    call = CallReader.of(unet)((), keywords | {"timestep": 501})
    executor = Executor(unet, [1])
    executor.attach()
    arguments = call.keywords(call.tensors)
    with torch.no_grad():
        executor.full()
        expected = unet(**arguments).sample
        executor.end()
        feature = executor.take()[1]
        moved = feature + 0.1
        executor.shallow(1, moved)
        narrow = executor.patches[1].narrow((), arguments)[1]
        expected_shallow = unet(**narrow).sample
    executor.detach()

    full, shallow = FullGraph(unet, branch, call), ShallowGraph(unet, branch, call, feature)
    found = trace(full).module()(*full.inputs.values())
    program = trace(shallow)
    found_shallow = program.module()(*[*list(shallow.inputs.values())[:-1], moved])[0]
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], feature)
    assert torch.equal(found_shallow, expected_shallow)
    assert not torch.equal(expected_shallow, expected)


def test_shallow_graph_has_no_weights_of_the_deep_part():
    torch.manual_seed(0)
    unet, keywords = sd()
    call = CallReader.of(unet)((), keywords | {"timestep": 1})
    shallow = ShallowGraph(unet.eval(), branch_of(unet, 0), call, random(2, 8, 8, 8))
    names = {name.split(".")[1] for name, _ in shallow.named_parameters()}
    assert names == {"conv_in", "time_embedding", "up_blocks", "conv_norm_out", "conv_out"}
    assert {id(weight) for weight in shallow.parameters()} <= {id(weight) for weight in unet.parameters()}
    assert len(unet.up_blocks) == len(unet.down_blocks) == 2


def test_shallow_graph_has_no_residuals_of_the_deep_part():
    torch.manual_seed(0)
    unet, keywords = with_controlnet()
    call = CallReader.of(unet)((), keywords | {"timestep": 1})
    shallow = ShallowGraph(unet.eval(), branch_of(unet, 0), call, random(2, 8, 8, 8))
    used = read_inputs(shallow, trace(shallow))
    assert used == {"sample", "timestep", "encoder_hidden_states", "deep_in", "down_block_additional_residuals.0"}


def test_dynamic_sizes():
    torch.manual_seed(0)
    unet, keywords = sd()
    call = CallReader.of(unet)((), keywords | {"timestep": 1})
    full = FullGraph(unet.eval(), branch_of(unet, 0), call)
    program = trace(full, dynamic=True).module()
    other = {
        "sample": random(4, 4, 12, 20),
        "timestep": torch.full((4,), 3.0),
        "encoder_hidden_states": random(4, 5, 8),
    }
    with torch.no_grad():
        assert torch.equal(program(*other.values())[0], unet(**other).sample)


def test_tracing_errors_are_reported():
    class Branching(UNet2DModel):
        def forward(self, sample, timestep, return_dict=True):
            return super().forward(sample if sample.sum() > 0 else -sample, timestep, return_dict=return_dict)

    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = Branching(**NARROW, **blocks, add_attention=False).eval()
    call = CallReader.of(unet)((random(1, 3, 8, 8), 1), {})
    with pytest.raises(ValueError, match=r"torch.export cannot trace this Branching: "):
        trace(FullGraph(unet, branch_of(unet, 0), call))
