"""The skip branches of a model, and the cost of a shallow step at each."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import Any

__all__ = ["BranchDescription", "ModelDescription", "describe_pipeline", "limit_speed_up"]


@dataclass(frozen=True)
class BranchDescription:
    """A skip branch.

    Args:
        number: the `cache_branch_id`.
        name: the layer at which the skip connection starts.
        channels: channels of the deep feature.
        mac_share: multiply-accumulates of a shallow step as a share of those of a full step.
    """

    number: int
    name: str
    channels: int
    mac_share: float


@dataclass(frozen=True)
class ModelDescription:
    """The denoiser of a pipeline.

    Args:
        pipeline: the class of the pipeline.
        unet: the class of its U-Net.
        sample: height and width of the U-Net's input, at the pipeline's default size.
        batch: samples of one U-Net call for one image; 2 with classifier-free guidance.
        full_macs: multiply-accumulates of one full step.
        branches: the skip branches, from the shallowest.
    """

    pipeline: str
    unet: str
    sample: tuple[int, ...]
    batch: int
    full_macs: int
    branches: tuple[BranchDescription, ...]


def describe_pipeline(pipe: Any, guidance: float | None = None) -> ModelDescription:
    """Describes the skip branches of a pipeline. Nothing but its text encoder runs.

    Args:
        pipe: a pipeline with a U-Net that can be called without an input image.
        guidance: the guidance scale; None for the default of the pipeline.

    Raises:
        TypeError: the pipeline has no U-Net, or one that DeepCache does not support.
        ValueError: the pipeline cannot be called with a prompt alone.

    Example:
        >>> from DeepCache.models import load_pipeline
        >>> description = describe_pipeline(load_pipeline("shapes"))
        >>> description.branches[0].name
        'conv_in'
    """
    from DeepCache.engine.cost import capture_unet_call, count_costs
    from DeepCache.engine.layouts import skip_branches
    from DeepCache.engine.unets import unets_of

    unet = next(iter(unets_of(pipe).values()))
    parameters = signature(pipe.__call__).parameters
    if "image" in parameters:
        raise ValueError(
            f"a {type(pipe).__name__} starts from an image, so the costs of its steps cannot be counted by themselves"
        )
    call: dict[str, Any] = {"num_inference_steps": 2}
    if "prompt" in parameters:
        call["prompt"] = ""
    if guidance is not None and "guidance_scale" in parameters:
        call["guidance_scale"] = guidance
    args, kwargs = capture_unet_call(pipe, unet, **call)
    costs = count_costs(unet, args, kwargs)
    sample = args[0] if args else kwargs["sample"]
    return ModelDescription(
        pipeline=type(pipe).__name__,
        unet=type(unet).__name__,
        sample=tuple(sample.shape[2:]),
        batch=len(sample),
        full_macs=costs.full,
        branches=tuple(
            BranchDescription(each.number, each.name, costs.channels[each.number], costs.share(each.number))
            for each in skip_branches(unet)
        ),
    )


def limit_speed_up(interval: int, mac_share: float, steps: int = 50) -> float:
    """The speed-up of the U-Net if time were proportional to multiply-accumulates.

    Args:
        interval: the `cache_interval`.
        mac_share: multiply-accumulates of a shallow step as a share of those of a full step.
        steps: number of denoising steps.

    Example:
        >>> limit_speed_up(interval=5, mac_share=0.0)
        5.0
    """
    from DeepCache.schedule import UniformSchedule

    full = UniformSchedule(interval).full_steps(steps)
    return steps / (full + (steps - full) * mac_share)
