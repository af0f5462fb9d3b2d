"""A small denoiser of every family, with the arguments of its calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    HunyuanDiT2DModel,
    Kandinsky3UNet,
    StableCascadeUNet,
    UNet1DModel,
    UNet2DConditionModel,
    UniDiffuserModel,
)
from packaging.version import Version
from torch import nn

from benchmarks.harness.ldm_unet import TEXT, LayerByLayerUNet, LdmUNet
from tests.compatibility.components import generator, seeded
from tests.releases import DIFFUSERS

try:
    from diffusers.pipelines.deprecated.wuerstchen import WuerstchenDiffNeXt
except ImportError:  # before diffusers 0.40
    from diffusers.pipelines.wuerstchen import WuerstchenDiffNeXt


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


@dataclass(frozen=True)
class Family:
    """A denoiser and its calls.

    Args:
        name: for the tests.
        build: makes it, with the same weights each time.
        shape: of the sample, a batch of two.
        conditions: the arguments other than the sample and the timestep, created for each call.
        branches: the number of skip branches, counted by hand.
        timestep: converts an element of a list of timesteps to the argument of the denoiser.
        timestep_name: its name, if it is not the second argument.
        prompt_first: whether pipelines put the half with the prompt first.
        control: like `conditions`, with a ControlNet's residuals; None if the family has no ControlNet.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    conditions: Callable[[], dict[str, Any]]
    branches: int
    timestep: Callable[[torch.Tensor], torch.Tensor] = lambda t: t
    timestep_name: str = ""
    prompt_first: bool = False
    control: Callable[[], dict[str, Any]] | None = None

    def __call__(self, denoiser: nn.Module, step: int, t: torch.Tensor, **conditions: Any) -> torch.Tensor:
        """The prediction of a step; the halves of the batch have the same latents."""
        sample = random(1, *self.shape[1:], seed=step).repeat(2, *(1 for _ in self.shape[1:]))
        named = {**self.conditions(), **conditions}
        if self.timestep_name:
            output = denoiser(sample, **named, **{self.timestep_name: self.timestep(t)})
        else:
            output = denoiser(sample, self.timestep(t), **named)
        return output if isinstance(output, torch.Tensor) else output[0]


def _ldm_control() -> list[torch.Tensor]:
    """One for each skip connection from the shallowest, and one for the middle block."""
    sizes = [(8, 8), (8, 8), (8, 8), (8, 4), (16, 4), (16, 4), (16, 2), (16, 2), (16, 2), (16, 2)]
    return [random(2, width, size, size, seed=number) for number, (width, size) in enumerate(sizes)]


def _comfy_control() -> dict[str, list[torch.Tensor]]:
    *output, middle = _ldm_control()
    return {"input": [random(2, 8, 8, 8, seed=20)], "middle": [middle], "output": output}


class UViT(nn.Module):
    """The U-ViT of Bao et al., with plain layers."""

    def __init__(self, width: int = 8, depth: int = 3) -> None:
        super().__init__()
        self.patch = nn.Linear(4, width)
        self.in_blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.mid_block = nn.Linear(width, width)
        self.out_blocks = nn.ModuleList(nn.Bilinear(width, width, width) for _ in range(depth))
        self.last = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        h = self.patch(x) + torch.as_tensor(timesteps).float() / 100
        skips = []
        for block in self.in_blocks:
            h = block(h).tanh()
            skips.append(h)
        h = self.mid_block(h).tanh()
        for block in self.out_blocks:
            h = block(h, skips.pop()).tanh()
        return self.last(h)


def _kandinsky3() -> nn.Module:
    return Kandinsky3UNet(
        time_embedding_dim=8,
        groups=2,
        attention_head_dim=4,
        block_out_channels=(8, 8, 8, 8),
        cross_attention_dim=8,
        encoder_hid_dim=8,
        layers_per_block=2,
    )


def latent_upscaler() -> nn.Module:
    """The blocks of the latent upscaler's U-Net."""
    return UNet2DConditionModel(
        sample_size=8,
        act_fn="gelu",
        attention_head_dim=4,
        block_out_channels=(32, 32, 64, 64),
        conv_in_kernel=1,
        conv_out_kernel=1,
        cross_attention_dim=8,
        down_block_types=("KDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D"),
        up_block_types=("KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KUpBlock2D"),
        in_channels=8,
        out_channels=5,
        mid_block_type=None,
        only_cross_attention=False,
        resnet_time_scale_shift="scale_shift",
        time_cond_proj_dim=128,
        time_embedding_type="fourier",
        timestep_post_act="gelu",
    )


def _dance_diffusion() -> nn.Module:
    return UNet1DModel(
        sample_size=64,
        extra_in_channels=16,
        **({"time_embedding_dim": 16} if Version("0.36") <= DIFFUSERS else {}),
        in_channels=2,
        out_channels=2,
        block_out_channels=(32, 32, 64),
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
    )


def _planner() -> nn.Module:
    """The U-Net of reinforcement learning, whose shallowest skip connection is unused."""
    return UNet1DModel(
        in_channels=14,
        out_channels=14,
        time_embedding_type="positional",
        use_timestep_embedding=True,
        flip_sin_to_cos=False,
        freq_shift=1,
        act_fn="mish",
        norm_num_groups=8,
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownResnetBlock1D",) * 4,
        up_block_types=("UpResnetBlock1D",) * 3,
        mid_block_type="MidResTemporalBlock1D",
        out_block_type="OutConv1DBlock",
    )


def _cascade_prior() -> nn.Module:
    return StableCascadeUNet(
        conditioning_dim=8,
        block_out_channels=(8, 8),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 2),
        up_num_layers_per_block=(2, 1),
        clip_text_pooled_in_channels=8,
        switch_level=(False,),
    )


def _cascade_decoder() -> nn.Module:
    return StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        conditioning_dim=8,
        patch_size=2,
        block_out_channels=(8, 8, 16, 16),
        num_attention_heads=(-1, -1, 2, 2),
        dropout=(0.1, 0.1, 0.1, 0.1),
        down_num_layers_per_block=(1, 2, 1, 1),
        up_num_layers_per_block=(1, 1, 2, 1),
        down_blocks_repeat_mappers=(1, 1, 1, 1),
        up_blocks_repeat_mappers=(3, 3, 2, 2),
        block_types_per_layer=(
            *((("SDCascadeResBlock", "SDCascadeTimestepBlock"),) * 2),
            *((("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),) * 2),
        ),
        clip_text_pooled_in_channels=8,
        effnet_in_channels=4,
        timestep_conditioning_type=("sca",),
    )


def _wuerstchen() -> nn.Module:
    return WuerstchenDiffNeXt(
        c_cond=8,
        c_hidden=[8, 8, 16],
        nhead=[-1, 2, 2],
        blocks=[1, 1, 2],
        level_config=["CT", "CTA", "CTA"],
        inject_effnet=[False, True, True],
        effnet_embd=4,
        clip_embd=8,
        dropout=0.0,
    )


def _hunyuan() -> nn.Module:
    return HunyuanDiT2DModel(
        sample_size=8,
        num_layers=8,
        patch_size=2,
        attention_head_dim=4,
        num_attention_heads=2,
        hidden_size=8,
        in_channels=4,
        cross_attention_dim=8,
        cross_attention_dim_t5=8,
        pooled_projection_dim=4,
        text_len=3,
        text_len_t5=3,
        use_style_cond_and_image_meta_size=False,
    )


def _hunyuan_conditions() -> dict[str, Any]:
    return {
        "encoder_hidden_states": random(2, 3, 8, seed=90),
        "text_embedding_mask": torch.ones(2, 3),
        "encoder_hidden_states_t5": random(2, 3, 8, seed=91),
        "text_embedding_mask_t5": torch.ones(2, 3),
        "image_rotary_emb": (random(16, 4, seed=92), random(16, 4, seed=93)),
        "return_dict": False,
    }


def _unidiffuser() -> nn.Module:
    return UniDiffuserModel(
        text_dim=8,
        clip_img_dim=8,
        num_text_tokens=3,
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=4,
        num_layers=7,
        norm_num_groups=2,
        sample_size=8,
        patch_size=2,
    )


def _text(width: int = 8) -> torch.Tensor:
    return random(2, 5, width, seed=80)


FAMILIES = (
    Family(
        "CompVis",
        LdmUNet,
        (2, 4, 8, 8),
        lambda: {"context": _text(TEXT)},
        branches=9,
        control=lambda: {"control": _ldm_control()},
    ),
    Family(
        "ComfyUI",
        LayerByLayerUNet,
        (2, 4, 8, 8),
        lambda: {"context": _text(TEXT)},
        branches=9,
        control=lambda: {"control": _comfy_control()},
    ),
    Family("U-ViT", UViT, (2, 5, 4), dict, branches=3),
    Family(
        "UniDiffuser",
        _unidiffuser,
        (2, 4, 8, 8),
        lambda: {
            "image_embeds": random(2, 1, 8, seed=81),
            "prompt_embeds": random(2, 3, 8, seed=82),
            "timestep_text": 0,
        },
        branches=3,
        timestep_name="timestep_img",
    ),
    Family(
        "Kandinsky 3",
        _kandinsky3,
        (2, 4, 8, 8),
        lambda: {"encoder_hidden_states": _text(), "encoder_attention_mask": torch.ones(2, 5)},
        branches=3,
    ),
    Family(
        "latent upscaler",
        latent_upscaler,
        (2, 8, 16, 16),
        lambda: {"encoder_hidden_states": _text(), "timestep_cond": random(2, 128, seed=83)},
        branches=3,
    ),
    Family("Dance Diffusion", _dance_diffusion, (2, 2, 64), dict, branches=3),
    Family("planner", _planner, (2, 14, 32), dict, branches=3),
    Family(
        "Stable Cascade's prior",
        _cascade_prior,
        (2, 16, 6, 6),
        lambda: {"clip_text_pooled": random(2, 1, 8, seed=84)},
        branches=1,
        timestep=lambda t: t.expand(2),
        prompt_first=True,
    ),
    Family(
        "Stable Cascade's decoder",
        _cascade_decoder,
        (2, 4, 18, 18),
        lambda: {"clip_text_pooled": random(2, 1, 8, seed=84), "effnet": random(2, 4, 4, 4, seed=85)},
        branches=3,
        timestep=lambda t: t.expand(2),
        prompt_first=True,
    ),
    Family(
        "Würstchen",
        _wuerstchen,
        (2, 4, 16, 16),
        lambda: {"effnet": random(2, 4, 4, 4, seed=85), "clip": _text()},
        branches=2,
        timestep=lambda t: t.expand(2),
        prompt_first=True,
    ),
    Family(
        "HunyuanDiT",
        _hunyuan,
        (2, 4, 8, 8),
        _hunyuan_conditions,
        branches=3,
        timestep=lambda t: t.expand(2),
        control=lambda: {"controlnet_block_samples": [random(2, 16, 8, seed=seed) for seed in range(3)]},
    ),
)


def denoiser_of(family: Family) -> nn.Module:
    """The denoiser of a family, with no weights of zero."""
    return seeded(family.build)
