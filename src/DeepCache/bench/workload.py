"""The timed work: a whole pipeline call, or the calls of its U-Net alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from inspect import Parameter, signature
from typing import Any

import torch
from PIL import Image

from DeepCache.engine.first_call import first_call
from DeepCache.engine.unets import unets_of

__all__ = ["PipelineCall", "UnetLoop", "default_size"]

PROMPT = "a photo of an astronaut on a moon"


def default_size(pipe: Any) -> tuple[int, int]:
    """Default width and height of the images of a pipeline."""
    parameters = signature(pipe.__call__).parameters
    width, height = (parameters[name].default if name in parameters else None for name in ("width", "height"))
    if isinstance(width, int) and isinstance(height, int):
        return width, height
    unet: Any = next(iter(unets_of(pipe).values()))
    sample = unet.config.sample_size
    height, width = (sample, sample) if isinstance(sample, int) else sample[-2:]
    factor = getattr(pipe, "vae_scale_factor", 1)
    return width * factor, height * factor


@dataclass(frozen=True)
class PipelineCall:
    """One call of a whole pipeline.

    Args:
        batch: images (videos of a video pipeline).
        size: width and height in pixels.
        steps: denoising steps.
        guidance: the guidance scale; None for the default of the pipeline.
        seed: seed of the latents.
    """

    batch: int
    size: tuple[int, int]
    steps: int
    guidance: float | None = None
    seed: int = 0

    def __call__(self, pipe: Any) -> None:
        """Runs it."""
        pipe(**self.arguments(pipe))

    def arguments(self, pipe: Any) -> dict[str, Any]:
        """The keyword arguments for a pipeline: a prompt and an image of noise, if it has these parameters.

        Raises:
            ValueError: the pipeline requires anything else, or has no guidance scale or size and one is given.
        """
        parameters = signature(pipe.__call__).parameters
        width, height = self.size
        kind = type(pipe).__name__
        if self.guidance is not None and "guidance_scale" not in parameters:
            raise ValueError(f"a {kind} has no guidance scale, got {self.guidance:g}")
        if not parameters.keys() & {"width", "height", "image"} and self.size != (own := default_size(pipe)):
            raise ValueError(f"the size of a {kind} is always {own[0]}x{own[1]}, got {width}x{height}")
        values = {
            "prompt": [PROMPT] * self.batch,
            "image": [_noise(self.size)] * self.batch if "image" in parameters else None,
            "batch_size": None if "prompt" in parameters else self.batch,
            "width": width,
            "height": height,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            # On the CPU regardless of the device, so that a seed gives the same noise everywhere.
            "generator": torch.Generator("cpu").manual_seed(self.seed),
        }
        for name, parameter in parameters.items():
            required = parameter.default is Parameter.empty and parameter.kind is Parameter.POSITIONAL_OR_KEYWORD
            if required and name not in values:
                raise ValueError(f"a {kind} requires {name!r}, which a benchmark does not have")
        return {name: value for name, value in values.items() if name in parameters and value is not None}


@cache
def _noise(size: tuple[int, int]) -> Image.Image:
    """An image of noise, cached so that it is not timed."""
    width, height = size
    pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Image.fromarray(pixels.numpy())


@dataclass(frozen=True)
class UnetLoop:
    """The U-Net calls of a run without anything between them: no scheduler, text encoder or autoencoder.

    Args:
        args: positional arguments of a U-Net call; the second may be the timestep.
        kwargs: its keyword arguments.
        timesteps: those of the scheduler.
        first: position of the first timestep of the run.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    timesteps: torch.Tensor
    first: int

    @property
    def calls(self) -> int:
        """Number of U-Net calls."""
        return len(self.timesteps) - self.first

    @classmethod
    def of(cls, pipe: Any, call: PipelineCall) -> UnetLoop:
        """The loop of a pipeline call, with the arguments of its first U-Net call; the pipeline runs until then."""
        args, kwargs = first_call(next(iter(unets_of(pipe).values())), lambda: call(pipe))
        timesteps = pipe.scheduler.timesteps
        timestep = args[1] if len(args) > 1 else kwargs.get("timestep")
        first = 0
        if isinstance(timestep, torch.Tensor):
            # Pipelines that start from an image skip the first timesteps; what they pass is a view.
            view = timestep.untyped_storage().data_ptr() == timesteps.untyped_storage().data_ptr()
            first = int(timestep.storage_offset()) if view else 0
        return cls(args, kwargs, timesteps, first)

    @torch.no_grad()
    def __call__(self, pipe: Any) -> None:
        """Runs all calls on the U-Net that the pipeline has now."""
        for call in self.each(pipe):
            call()

    def each(self, pipe: Any) -> Iterator[Callable[[], object]]:
        """The calls one by one."""
        pipe.scheduler.timesteps = self.timesteps
        unet = getattr(pipe, next(iter(unets_of(pipe))))
        for timestep in self.timesteps[self.first :]:
            if len(self.args) > 1:
                yield partial(unet, self.args[0], timestep, *self.args[2:], **self.kwargs)
            else:
                yield partial(unet, *self.args, **self.kwargs | {"timestep": timestep})
