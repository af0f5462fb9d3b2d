"""Records what the U-Net of a run without DeepCache is given and gives back, and plays it back to the pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from DeepCache.engine.attention import may_write
from DeepCache.engine.guidance import latents, output_tensor, why_not_two_halves, with_tensor
from DeepCache.engine.layouts import SkipBranch, layout_of
from DeepCache.engine.patch import FeatureCapture
from DeepCache.generation.finite import check_finite
from DeepCache.generation.painter import Painter
from DeepCache.schedule import FORECASTS, ForecastRule

__all__ = ["Recording", "draw_from", "record"]


@dataclass(frozen=True)
class Recording:
    """A run of one batch without DeepCache.

    Args:
        calls: arguments of every U-Net call.
        outputs: what each returned.
        features: the deep feature of each at one skip branch.
        guided: whether the batch is the two halves of classifier-free guidance.
        skipped: the forecasts that skipped steps may take; none where the pipeline reads what attention layers write.
        images: what the run drew.
    """

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    outputs: list[Any]
    features: list[torch.Tensor]
    guided: bool
    skipped: tuple[ForecastRule, ...]
    images: torch.Tensor


def record(painter: Painter, first: int, branch: SkipBranch) -> Recording:
    """Draws a batch and records it.

    Args:
        painter: draws it; DeepCache is not on its pipeline.
        first: number of the first prompt of the batch.
        branch: where the deep feature is taken.
    """
    unet = painter.pipe.unet
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    outputs: list[Any] = []
    features: list[torch.Tensor] = []
    capture = FeatureCapture()
    capture.open = True

    reads_attention = False

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal reads_attention
        if not calls:
            reads_attention = any(may_write(layer) for layer in unet.modules() if hasattr(layer, "processor"))
        calls.append((args, dict(kwargs)))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        outputs.append(output)
        feature = capture.take()
        assert feature is not None
        features.append(feature)

    handles = [module.register_forward_hook(capture, with_kwargs=True) for module in layout_of(unet).tapped(branch)]
    handles += [unet.register_forward_pre_hook(before, with_kwargs=True), unet.register_forward_hook(after)]
    try:
        images = painter.draw_batch(first)
    finally:
        for handle in handles:
            handle.remove()
    check_finite(images, "the model without DeepCache")
    args, kwargs = calls[0]
    sample = args[0] if args else kwargs["sample"]
    guided = not why_not_two_halves(painter.pipe, unet, sample)
    # The response is that of a prediction to an input of its shape.
    like_input = latents(unet, sample).shape == output_tensor(outputs[0]).shape
    skipped = tuple(name for name in FORECASTS if like_input or name != "response") if not reads_attention else ()
    return Recording(calls, outputs, features, guided, skipped, images)


def draw_from(
    painter: Painter, first: int, recording: Recording, number: int, prediction: torch.Tensor
) -> torch.Tensor:
    """The images of a recorded batch with another prediction at one step.

    The steps before it are played back and take no time; those after it run.

    Args:
        painter: what the batch was drawn with.
        first: number of the first prompt of the batch.
        recording: the run without DeepCache.
        number: the step.
        prediction: what the U-Net is to predict there.
    """
    unet = painter.pipe.unet
    played = [*recording.outputs[:number], with_tensor(recording.outputs[number], prediction)]
    forward, calls = unet.forward, iter(played)

    def play(*args: Any, **kwargs: Any) -> Any:
        return next(calls, None) or forward(*args, **kwargs)

    before = unet.__dict__.get("forward")
    unet.forward = play
    try:
        return painter.draw_batch(first)
    finally:
        if before is None:
            del unet.forward
        else:
            unet.forward = before
