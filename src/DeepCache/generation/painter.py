"""Draws prompts in batches, always from the same latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Painter"]


@dataclass(frozen=True)
class Painter:
    """Draws prompts with a pipeline, each from a seed of its own, in batches.

    Args:
        pipe: a text-to-image pipeline.
        prompts: what to draw.
        steps: denoising steps.
        guidance: the guidance scale; None for the pipeline's own.
        seed: seed of the first prompt; each further one has the next number.
        batch: prompts in one pipeline call.
        size: width and height in pixels; None for the pipeline's own.
    """

    pipe: Any
    prompts: Sequence[str]
    steps: int
    guidance: float | None
    seed: int
    batch: int
    size: tuple[int, int] | None = None

    @property
    def batches(self) -> range:
        """Number of the first prompt of every batch."""
        return range(0, len(self.prompts), self.batch)

    def draw(self, steps: int | None = None) -> torch.Tensor:
        """The images, (N, 3, H, W) in 0..1, on the CPU; with another number of denoising steps where one is given."""
        return torch.cat([self.draw_batch(first, steps) for first in self.batches])

    def draw_batch(self, first: int, steps: int | None = None) -> torch.Tensor:
        """The images of the batch that begins with this prompt."""
        prompts = list(self.prompts[first : first + self.batch])
        # On the CPU whatever the device, so that a seed means the same everywhere.
        generators = [torch.Generator("cpu").manual_seed(self.seed + first + index) for index in range(len(prompts))]
        call: dict[str, Any] = {
            "prompt": prompts,
            "num_inference_steps": self.steps if steps is None else steps,
            "generator": generators,
            "output_type": "pt",
        }
        if self.guidance is not None:
            call["guidance_scale"] = self.guidance
        if self.size is not None:
            call["width"], call["height"] = self.size
        images: torch.Tensor = self.pipe(**call).images
        return images.detach().float().cpu()
