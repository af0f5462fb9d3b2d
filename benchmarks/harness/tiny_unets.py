"""Tiny U-Nets with random weights, one for each kind that the reference package accelerates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    UNet2DConditionModel,
    UNet2DModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from packaging.version import Version
from torch import Tensor, nn

from tests.releases import DIFFUSERS

# Since this release it interpolates to the size of the skip connection.
_ODD = Version("0.31") <= DIFFUSERS
FRAMES = 2
TOKENS = 3
WIDTH = 8


@dataclass(frozen=True)
class UnetInputs:
    """The inputs of a U-Net in a denoising run: the first sample, and constant keyword arguments."""

    sample: Tensor
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TinyUnet:
    """A U-Net and its inputs.

    Args:
        build: makes the U-Net; the weights depend on torch's global seed.
        make_inputs: makes inputs from a height (the width is different) and a seed.
        branches: number of its skip branches.
        sizes: heights to test: a multiple of the U-Net's factor, and one that is not if diffusers supports it.
    """

    build: Callable[[], nn.Module]
    make_inputs: Callable[[int, int], UnetInputs]
    branches: int
    sizes: tuple[int, ...] = (8, 7)

    def seeded(self, seed: int = 0) -> nn.Module:
        """The U-Net with the weights of a seed, ready for inference."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = self.build().eval().requires_grad_(False)
            for parameter in unet.parameters():
                # Layers that start at zero would hide faults in them.
                if not parameter.any():
                    parameter.normal_(std=0.1)
        return unet


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _text(seed: int, batch: int) -> Tensor:
    return _normal(seed + 1000, batch, TOKENS, WIDTH)


def _stable_diffusion() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(8, 16, 16, 16), norm_num_groups=4, cross_attention_dim=WIDTH, attention_head_dim=2
    )


def _stable_diffusion_inputs(size: int, seed: int) -> UnetInputs:
    return UnetInputs(_normal(seed, 2, 4, size, size + 4), {"encoder_hidden_states": _text(seed, 2)})


def _sdxl() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 4, 4),
        transformer_layers_per_block=(1, 2, 3),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + WIDTH,
    )


def _sdxl_inputs(size: int, seed: int) -> UnetInputs:
    inputs = _stable_diffusion_inputs(size, seed)
    added = {"text_embeds": _normal(seed + 2000, 2, WIDTH), "time_ids": _normal(seed + 3000, 2, 6)}
    return UnetInputs(inputs.sample, inputs.kwargs | {"added_cond_kwargs": added})


def _kandinsky() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(8, 16, 16),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
    )


def _unconditional() -> UNet2DModel:
    return UNet2DModel(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    )


def _unconditional_inputs(size: int, seed: int) -> UnetInputs:
    return UnetInputs(_normal(seed, 2, 3, size, size + 4))


def _text_to_video() -> UNet3DConditionModel:
    return UNet3DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
    )


def _motion() -> UNetMotionModel:
    return UNetMotionModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        num_attention_heads=2,
        motion_num_attention_heads=2,
    )


def _video_inputs(size: int, seed: int) -> UnetInputs:
    return UnetInputs(_normal(seed, 1, 4, FRAMES, size, size + 4), {"encoder_hidden_states": _text(seed, 1)})


def _motion_inputs(size: int, seed: int) -> UnetInputs:
    # Before, the U-Net repeats the prompt for each frame.
    frames = FRAMES if Version("0.31") <= DIFFUSERS else 1
    return UnetInputs(_video_inputs(size, seed).sample, {"encoder_hidden_states": _text(seed, frames)})


def _image_to_video() -> UNetSpatioTemporalConditionModel:
    return UNetSpatioTemporalConditionModel(
        in_channels=4,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=3 * 4,
        cross_attention_dim=WIDTH,
        num_attention_heads=(2, 4),
    )


def _image_to_video_inputs(size: int, seed: int) -> UnetInputs:
    return UnetInputs(
        _normal(seed, 1, FRAMES, 4, size, size + 4),
        {"encoder_hidden_states": _text(seed, 1), "added_time_ids": _normal(seed + 3000, 1, 3)},
    )


TINY_UNETS: dict[str, TinyUnet] = {
    "stable-diffusion": TinyUnet(_stable_diffusion, _stable_diffusion_inputs, branches=12),
    "sdxl": TinyUnet(_sdxl, _sdxl_inputs, branches=9),
    "kandinsky": TinyUnet(_kandinsky, _stable_diffusion_inputs, branches=9, sizes=(8,)),
    "unet2d": TinyUnet(_unconditional, _unconditional_inputs, branches=9, sizes=(8,)),
    "unet3d": TinyUnet(_text_to_video, _video_inputs, branches=6),
    "motion": TinyUnet(_motion, _motion_inputs, branches=6),
    "spatio-temporal": TinyUnet(_image_to_video, _image_to_video_inputs, branches=6, sizes=(8, 7) if _ODD else (8,)),
}
if Version("0.30") > DIFFUSERS:
    # These two cannot be as small there.
    del TINY_UNETS["motion"], TINY_UNETS["spatio-temporal"]
