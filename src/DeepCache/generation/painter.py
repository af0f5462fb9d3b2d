"""Temporary: until all call sites use `BatchSampler`."""

from typing import Any

from DeepCache.generation.batch_sampler import BatchSampler


class Painter(BatchSampler):
    """See `BatchSampler`."""

    def draw(self, steps: int | None = None) -> Any:
        return self.sample(steps)

    def draw_batch(self, first: int, steps: int | None = None) -> Any:
        return self.sample_batch(first, steps)
