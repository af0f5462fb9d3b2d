"""Cases of diffusers pipelines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from DeepCache.schedule import UniformSchedule

__all__ = ["BrokenCase", "PipelineCase", "RefusedCase", "uniform"]

INTERVALS = (2, 3)


def uniform(steps: int, slots: int = 1) -> dict[int, str]:
    """The expected denoiser calls by interval, one character each, with `slots` calls per step."""
    return {
        interval: "".join(step * slots for step in UniformSchedule(interval).pattern(steps)) for interval in INTERVALS
    }


@dataclass(frozen=True)
class PipelineCase:
    """A pipeline that DeepCache works on, made of tiny random components.

    Args:
        pipeline: the class name in diffusers.
        build: makes the pipeline, with the same weights each time.
        run: one call of the pipeline; takes the pipeline and returns one tensor, the same each time.
        run_other: a call with other settings (another size, batch, strength, number of steps, …).
        patterns: the calls of the denoiser in `run` by interval, `F` for one that runs all of it and `.` for a
            shallow one. A mapping from the name of the component where it is not `unet` or there are several.
        note: a note for the page.
        warns: beginnings of the warnings that diffusers or transformers gives for this pipeline, without DeepCache too.
        id: tells several cases of one pipeline apart.
    """

    pipeline: str
    build: Callable[[], Any]
    run: Callable[[Any], torch.Tensor]
    run_other: Callable[[Any], torch.Tensor]
    patterns: Mapping[Any, Any]
    note: str = ""
    warns: tuple[str, ...] = ()
    id: str = ""

    @property
    def calls(self) -> dict[str, dict[int, str]]:
        """`patterns` by the name of the component."""
        if all(isinstance(key, str) for key in self.patterns):
            return dict(self.patterns)
        return {"unet": dict(self.patterns)}

    def __str__(self) -> str:
        return f"{self.pipeline} {self.id}".strip()


@dataclass(frozen=True)
class RefusedCase:
    """A pipeline that DeepCache refuses at `enable()`.

    Args:
        pipeline: the class name in diffusers.
        build: makes the pipeline.
        reason: a part of the error message, which says why.
        note: the reason or an alternative, for the page.
    """

    pipeline: str
    build: Callable[[], Any]
    reason: str
    note: str = ""
    warns: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.pipeline


@dataclass(frozen=True)
class BrokenCase:
    """A pipeline that fails in diffusers itself, so that nothing can be said about it.

    Args:
        pipeline: the class name in diffusers.
        build: makes the pipeline.
        run: one call of the pipeline, which raises.
        error: a part of the message.
        why: the reason, for the page.
    """

    pipeline: str
    build: Callable[[], Any]
    run: Callable[[Any], Any]
    error: str
    why: str
    warns: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.pipeline
