"""The U-Nets of the fuzzer: two written by hand, one of each layout, and one of diffusers.

Each is as small as it can be with weights that are not zero, so that another deep feature makes a clearly different
output. Beside each stands which module makes the deep feature of which skip branch. That is worked out by hand here and
shares nothing with the layouts of DeepCache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["KINDS", "UNetKind"]

LATENTS, WIDTH, TEXT, TOKENS = 4, 8, 4, 3


class Layer(nn.Module):
    """A residual layer. `adapter` stands for the few parameters that a LoRA trains."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.adapter = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return x + torch.tanh(self.mix(x) + context) * self.adapter


class Down(nn.Module):
    def __init__(self, downsample: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer()])
        self.downsamplers = nn.ModuleList([nn.Linear(WIDTH, WIDTH)]) if downsample else None

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for layer in self.layers:
            x = layer(x, context)
            skips.append(x)
        for sampler in self.downsamplers or ():
            x = sampler(x)
            skips.append(x)
        return x, skips


class Up(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x: Tensor, skips: list[Tensor], context: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x + 0.5 * skips.pop(), context)
        return x


class _Context(nn.Module):
    """The timestep and the conditioning as one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Linear(TEXT, WIDTH)
        self.register_buffer("frequencies", torch.linspace(0.001, 0.02, WIDTH))

    def forward(self, timestep: Any, text: Tensor | None, added: Tensor | None) -> Tensor:
        weight = self.text.weight
        values = timestep if isinstance(timestep, Tensor) else torch.tensor(timestep)
        time = torch.sin(values.to(weight.dtype).reshape(-1, 1, 1) * self.frequencies)
        for each in (text, added):
            if each is not None:
                time = time + self.text(each.mean(1, keepdim=True))
        return time


class BlockUNet(nn.Module):
    """Diffusers' block layout with four skip branches."""

    def __init__(self) -> None:
        super().__init__()
        self.context = _Context()
        self.conv_in = nn.Linear(LATENTS, WIDTH)
        self.down_blocks = nn.ModuleList([Down(True), Down(False)])
        self.mid_block = Layer()
        self.up_blocks = nn.ModuleList([Up(), Up()])
        self.conv_out = nn.Linear(WIDTH, LATENTS)

    def forward(
        self,
        sample: Tensor,
        timestep: Any,
        encoder_hidden_states: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        skip_layers: bool = False,
    ) -> tuple[Tensor]:
        context = self.context(timestep, encoder_hidden_states, (added_cond_kwargs or {}).get("text_embeds"))
        x = self.conv_in(sample)
        skips = [x]
        for block in self.down_blocks:
            x, more = block(x, context)
            skips += more
        x = self.mid_block(0.3 * x if skip_layers else x, context)
        for block in self.up_blocks:
            x = block(x, skips, context)
        return (self.conv_out(x),)


class TimedSequential(nn.Sequential):
    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, context) if isinstance(layer, Layer) else layer(x)
        return x


class LatentUNet(nn.Module):
    """The layout of latent diffusion's `UNetModel` with three skip branches."""

    def __init__(self) -> None:
        super().__init__()
        self.time_embed = _Context()
        self.input_blocks = nn.ModuleList(
            [TimedSequential(nn.Linear(LATENTS, WIDTH)), TimedSequential(Layer()), TimedSequential(Layer())]
        )
        self.middle_block = TimedSequential(Layer(), Layer())
        self.output_blocks = nn.ModuleList(TimedSequential(Layer()) for _ in range(3))
        self.out = nn.Linear(WIDTH, LATENTS)

    def forward(
        self, x: Tensor, timesteps: Any = None, context: Tensor | None = None, y: Tensor | None = None, **options: Any
    ) -> Tensor:
        embedding = self.time_embed(timesteps, context, y)
        skips = []
        for block in self.input_blocks:
            x = block(x, embedding)
            skips.append(x)
        x = self.middle_block(0.3 * x if options.get("skip_layers") else x, embedding)
        for block in self.output_blocks:
            x = block(x + 0.5 * skips.pop(), embedding)
        return self.out(x)


def _diffusers() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT,
        attention_head_dim=2,
        norm_num_groups=2,
    )


@dataclass(frozen=True)
class UNetKind:
    """A kind of U-Net.

    Args:
        name: what the replays call it.
        build: makes one; the weights follow torch's seed.
        producers: the paths of the modules that make the deep feature, by the number of the skip branch.
        names: what its `forward` calls the sample, the timestep, the conditioning, and the added conditioning.
        shape: the sides of a sample behind the batch, for a size.
        takes_skip: whether it takes `skip_layers`, which changes what the deep part computes.
        blocks: paths of blocks that the fuzzer replaces.
    """

    name: str
    build: Callable[[], nn.Module]
    producers: tuple[str, ...]
    names: tuple[str, str, str, str]
    shape: Callable[[int], tuple[int, ...]]
    takes_skip: bool
    blocks: tuple[str, ...]

    def seeded(self, seed: int) -> nn.Module:
        """A U-Net with the weights of a seed, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build().eval()

    def arguments(
        self, sample: Tensor, timestep: Any, text: Tensor | None, added: Tensor | None, skip: bool, keywords: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call: what is None is left out."""
        first, second, third, fourth = self.names
        kwargs: dict[str, Any] = {} if text is None else {third: text}
        if added is not None:
            # Made again for every call, as the pipelines of SDXL do.
            kwargs[fourth] = {"text_embeds": added} if fourth == "added_cond_kwargs" else added
        if skip:
            kwargs["skip_layers"] = True
        if keywords:
            return (), {first: sample, second: timestep, **kwargs}
        return (sample, timestep), kwargs


_DIFFUSERS_NAMES = ("sample", "timestep", "encoder_hidden_states", "added_cond_kwargs")

KINDS = {
    "blocks": UNetKind(
        "blocks",
        BlockUNet,
        ("up_blocks.1.layers.0", "up_blocks.0", "up_blocks.0.layers.0", "mid_block"),
        _DIFFUSERS_NAMES,
        lambda size: (size, LATENTS),
        True,
        ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.1.layers.0"),
    ),
    "latent": UNetKind(
        "latent",
        LatentUNet,
        ("output_blocks.1", "output_blocks.0", "middle_block"),
        ("x", "timesteps", "context", "y"),
        lambda size: (size, LATENTS),
        True,
        ("input_blocks.1", "middle_block", "output_blocks.0", "output_blocks.2", "middle_block.1"),
    ),
    "diffusers": UNetKind(
        "diffusers",
        _diffusers,
        ("up_blocks.1.resnets.0", "up_blocks.0", "up_blocks.0.attentions.0", "mid_block"),
        _DIFFUSERS_NAMES,
        lambda size: (LATENTS, 2 * size, 4),
        False,
        ("mid_block", "up_blocks.0", "up_blocks.1.resnets.1"),
    ),
}


@cache
def template(name: str, seed: int) -> nn.Module:
    """A U-Net to copy."""
    return KINDS[name].seeded(seed)
