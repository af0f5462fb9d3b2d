"""What the tests of the engine share: tiny pipelines, and a witness of what a U-Net really ran."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor, nn

from tests.parity.tiny_unets import TINY_UNETS, TOKENS, WIDTH


class Witness:
    """Which calls of a U-Net ran its mid block, seen by hooks that know nothing of DeepCache."""

    def __init__(self, unet: nn.Module) -> None:
        self._calls: list[str] = []
        self._handles = [
            unet.register_forward_pre_hook(lambda *_: self._calls.append("."), prepend=True),
            unet.mid_block.register_forward_hook(lambda *_: self._ran()),
        ]

    @property
    def pattern(self) -> str:
        """One character a call: `F` if the mid block ran, else `.`."""
        return "".join(self._calls)

    def take(self) -> str:
        """The pattern so far, and begins a new one."""
        pattern = self.pattern
        self._calls.clear()
        return pattern

    def leave(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _ran(self) -> None:
        self._calls[-1] = "F"


@pytest.fixture
def witness() -> type[Witness]:
    return Witness


@cache
def _seeded(kind: str) -> nn.Module:
    return TINY_UNETS[kind].seeded()


@pytest.fixture
def make_unet() -> Callable[..., nn.Module]:
    """A tiny U-Net of a kind, with the same weights every time."""

    def make(kind: str = "stable-diffusion") -> nn.Module:
        return copy.deepcopy(_seeded(kind))

    return make


@pytest.fixture
def make_pipe(make_unet: Callable[..., nn.Module]) -> Callable[..., StableDiffusionPipeline]:
    """Stable Diffusion around a tiny U-Net, without a text encoder or a decoder."""

    def make(scheduler: Any = None, unet: nn.Module | None = None) -> StableDiffusionPipeline:
        pipe = StableDiffusionPipeline(
            vae=None,
            text_encoder=None,
            tokenizer=None,
            unet=unet if unet is not None else make_unet(),
            scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        if scheduler is not None:
            pipe.scheduler = scheduler
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture
def draw() -> Callable[..., Tensor]:
    """Runs a pipeline of `make_pipe` with guidance and returns the latents."""

    def run(pipe: StableDiffusionPipeline, steps: int, seed: int = 0, **call: Any) -> Tensor:
        prompt, negative = torch.randn(2, 1, TOKENS, WIDTH, generator=torch.manual_seed(seed)).unbind()
        arguments = {
            "prompt_embeds": prompt,
            "negative_prompt_embeds": negative,
            "height": 64,
            "width": 64,
            "num_inference_steps": steps,
            "output_type": "latent",
            "generator": torch.manual_seed(seed + 1),
        }
        return pipe(**(arguments | call)).images

    return run


@pytest.fixture
def bare_pipe() -> Callable[..., SimpleNamespace]:
    """The least that DeepCache works on: a U-Net and a list of timesteps."""

    def make(unet: nn.Module, timesteps: Any) -> SimpleNamespace:
        return SimpleNamespace(unet=unet, scheduler=SimpleNamespace(timesteps=timesteps))

    return make
