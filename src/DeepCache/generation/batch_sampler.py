"""Generates prompts in batches, always from the same latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from DeepCache.generation.pipeline_call import pipeline_call

__all__ = ["BatchSampler"]


@dataclass(frozen=True)
class BatchSampler:
    """Generates prompts in batches, each prompt from its own seed: `seed` for the first, then the following numbers."""

    pipe: Any
    prompts: Sequence[str]
    steps: int
    guidance: float | None
    seed: int
    batch: int
    size: tuple[int, int] | None = None

    @property
    def batches(self) -> range:
        """Index of the first prompt of each batch."""
        return range(0, len(self.prompts), self.batch)

    def sample(self, steps: int | None = None) -> torch.Tensor:
        """The images, (N, 3, H, W) in 0..1, on the CPU; with another number of denoising steps if given."""
        return torch.cat([self.sample_batch(first, steps) for first in self.batches])

    def sample_batch(self, first: int, steps: int | None = None) -> torch.Tensor:
        """The images of the batch that starts with this prompt."""
        prompts = self.prompts[first : first + self.batch]
        call = pipeline_call(
            self.pipe,
            prompts,
            range(self.seed + first, self.seed + first + len(prompts)),
            steps=self.steps if steps is None else steps,
            guidance=self.guidance,
            size=self.size,
            output_type="pt",
        )
        images: torch.Tensor = self.pipe(**call).images
        return images.detach().float().cpu()
