"""Temporary: until all call sites use `BatchSampler`."""

import torch

from DeepCache.generation.batch_sampler import BatchSampler


class Painter(BatchSampler):
    """See `BatchSampler`."""

    def draw(self, steps: int | None = None) -> torch.Tensor:
        return self.sample(steps)

    def draw_batch(self, first: int, steps: int | None = None) -> torch.Tensor:
        return self.sample_batch(first, steps)
