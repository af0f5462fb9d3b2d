"""What is timed: a whole pipeline call, or the calls of its U-Net alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from inspect import Parameter, signature
from typing import Any

import torch
from PIL import Image

from DeepCache.engine.first_call import first_call
from DeepCache.engine.unets import unets_of

__all__ = ["PipelineCall", "UnetLoop", "default_size"]

PROMPT = "a photo of an astronaut on a moon"


def default_size(pipe: Any) -> tuple[int, int]:
    """Width and height of the pictures that a pipeline draws where it is not told a size.

    Example:
        >>> from DeepCache.models import load_pipeline
        >>> default_size(load_pipeline("shapes"))
        (64, 64)
    """
    parameters = signature(pipe.__call__).parameters
    told = [parameters[name].default for name in ("width", "height") if name in parameters]
    if len(told) == 2 and all(isinstance(side, int) for side in told):
        return told[0], told[1]
    unet: Any = next(iter(unets_of(pipe).values()))
    sample = unet.config.sample_size
    height, width = (sample, sample) if isinstance(sample, int) else sample[-2:]
    factor = getattr(pipe, "vae_scale_factor", 1)
    return width * factor, height * factor


@dataclass(frozen=True)
class PipelineCall:
    """One call of a whole pipeline.

    Args:
        batch: pictures (of a video pipeline, videos) in it.
        size: width and height in pixels.
        steps: denoising steps.
        guidance: the guidance scale; None for the pipeline's own.
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
        """The keyword arguments for this pipeline: a prompt and a picture of noise, as far as it takes them.

        Raises:
            ValueError: it wants something else, or takes no guidance scale or no size where one is given.
        """
        parameters = signature(pipe.__call__).parameters
        width, height = self.size
        if self.guidance is not None and "guidance_scale" not in parameters:
            raise ValueError(f"a {type(pipe).__name__} takes no guidance scale, got {self.guidance:g}")
        if not parameters.keys() & {"width", "height", "image"} and self.size != default_size(pipe):
            own = "{}x{}".format(*default_size(pipe))
            raise ValueError(f"a {type(pipe).__name__} takes no size and draws {own}, got {width}x{height}")
        values = {
            "prompt": [PROMPT] * self.batch,
            "image": [_noise(self.size)] * self.batch if "image" in parameters else None,
            "batch_size": self.batch,
            "width": width,
            "height": height,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            # On the CPU whatever the device, so that a seed means the same everywhere.
            "generator": torch.Generator("cpu").manual_seed(self.seed),
        }
        if "prompt" in parameters:
            del values["batch_size"]
        required = [
            name
            for name, parameter in parameters.items()
            if parameter.default is Parameter.empty and parameter.kind is Parameter.POSITIONAL_OR_KEYWORD
        ]
        for name in required:
            if name not in values:
                raise ValueError(f"a {type(pipe).__name__} wants {name!r}, which a benchmark has nothing for")
        return {name: value for name, value in values.items() if name in parameters and value is not None}


@cache
def _noise(size: tuple[int, int]) -> Image.Image:
    """A picture of noise, the same one every time. It is made before anything is timed."""
    width, height = size
    pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Image.fromarray(pixels.numpy())


@dataclass(frozen=True)
class UnetLoop:
    """The U-Net calls of a run, one after the other with nothing in between: no scheduler, text encoder or autoencoder.

    Args:
        args: positional arguments of a U-Net call; the second may be the timestep.
        kwargs: its keyword arguments.
        timesteps: those of the scheduler.
        first: position of the first that the run uses.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    timesteps: torch.Tensor
    first: int

    @property
    def calls(self) -> int:
        """How many U-Net calls there are."""
        return len(self.timesteps) - self.first

    @classmethod
    def of(cls, pipe: Any, call: PipelineCall) -> UnetLoop:
        """The loop of a pipeline call, whose first U-Net call is taken as the example for all.

        The pipeline runs up to there and no further; what it notes about the run (its guidance scale, the scheduler's
        timesteps) stays.
        """

        args, kwargs = first_call(next(iter(unets_of(pipe).values())), lambda: call(pipe))
        timesteps = pipe.scheduler.timesteps
        timestep = args[1] if len(args) > 1 else kwargs.get("timestep")
        first = 0
        if isinstance(timestep, torch.Tensor):
            # Pipelines that start from a picture leave timesteps out at the beginning; what they hand on is a view.
            view = timestep.untyped_storage().data_ptr() == timesteps.untyped_storage().data_ptr()
            first = int(timestep.storage_offset()) if view else 0
        return cls(args, kwargs, timesteps, first)

    @torch.no_grad()
    def __call__(self, pipe: Any) -> None:
        """Runs it on the U-Net that the pipeline has now."""
        pipe.scheduler.timesteps = self.timesteps
        unet = getattr(pipe, next(iter(unets_of(pipe))))
        for timestep in self.timesteps[self.first :]:
            if len(self.args) > 1:
                unet(self.args[0], timestep, *self.args[2:], **self.kwargs)
            else:
                unet(*self.args, **self.kwargs | {"timestep": timestep})
