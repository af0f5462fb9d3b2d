"""Converts `is_skip_step` of a subclass of the helper to a schedule.

The reference package calls `is_skip_step` for every block and layer at every step. Here it is called at the start of a
run: the layers that it skips must be those of a full or a shallow step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple, NoReturn

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.layouts import layout_of
from DeepCache.engine.layouts.blocks import BlocksLayout, layer_lists
from DeepCache.engine.unets import scheduler_of, unets_of
from DeepCache.schedule import Schedule, Step

__all__ = ["BlockType", "Layer", "Question", "SkipRule", "is_deep", "with_rule"]

BlockType = Literal["down", "mid", "up"]
Rule = Callable[[int, int, BlockType], bool]
"""The arguments of `is_skip_step` (block, layer, path) -> whether the layer is skipped."""


class Layer(NamedTuple):
    """A block (`layer` 0) or a layer of a U-Net, numbered as in the reference package."""

    block: int
    layer: int
    path: BlockType
    name: str


def is_deep(layer: Layer, cut: tuple[int, int]) -> bool:
    """Whether a shallow step cut at (`cache_block_id`, `cache_layer_id`) omits the layer."""
    if layer.path == "mid" or layer.block > cut[0]:
        return True
    if layer.block < cut[0]:
        return False
    return layer.layer >= cut[1] if layer.path == "down" else layer.layer > cut[1]


class Question(NamedTuple):
    """The state of the helper while `is_skip_step` is called."""

    start: int
    timestep: int
    params: dict[str, Any]


class SkipRule(Schedule):
    """A schedule that calls `is_skip_step` of class `owner` to find out which steps are full."""

    kind = "skip-rule"

    def __init__(
        self,
        owner: str,
        ask: Callable[[int, int | None], Rule],
        unet: Callable[[], Any],
        cut: tuple[int, int],
        branch: int,
    ) -> None:
        self._owner, self._ask, self._unet, self._cut, self._branch = owner, ask, unet, cut, branch

    def __repr__(self) -> str:
        return f"SkipRule({self._owner}.is_skip_step, branch={self._branch})"

    @property
    def branches(self) -> tuple[int, ...]:
        return (self._branch,)

    def step(self, number: int, steps: int | None) -> Step:
        unet, rule = self._unet(), self._ask(number, steps)
        skipped = _skipped(unet, lambda layer: rule(layer.block, layer.layer, layer.path))
        if not skipped:
            return Step(True, self._branch)
        if skipped != _skipped(unet, lambda layer: is_deep(layer, self._cut)):
            raise ValueError(
                f"{self._owner}.is_skip_step() skips {_named(skipped)} at step {number}, but a shallow step at branch "
                f"{self._branch} skips {_named(_skipped(unet, lambda layer: is_deep(layer, self._cut)))}. Return False "
                "for all layers of a full step and the result of DeepCacheSDHelper.is_skip_step() for a shallow step, "
                "or use set_params(schedule=BranchSchedule(...))"
            )
        return Step(False, self._branch)

    def to_dict(self) -> NoReturn:
        raise ValueError(f"{self!r} is code and cannot be saved: use set_params(schedule=ExplicitSchedule(...))")


def _skipped(unet: Any, rule: Callable[[Layer], bool]) -> list[Layer]:
    """The skipped blocks, and the skipped layers of other blocks."""
    found = []
    for block, layers in _layers(unet):
        if rule(block):
            found.append(block)
        else:
            found.extend(layer for layer in layers if rule(layer))
    return found


def _layers(unet: Any) -> Iterator[tuple[Layer, list[Layer]]]:
    """Each block with its layers, from the shallowest block of each path."""
    paths: tuple[tuple[BlockType, Any], ...] = (("down", unet.down_blocks), ("up", list(unet.up_blocks)[::-1]))
    for path, blocks in paths:
        for number, block in enumerate(blocks):
            layers = []
            for name, modules in layer_lists(block).items():
                layers += [Layer(number, place, path, name) for place in range(len(modules))]
            if path == "down" and getattr(block, "downsamplers", None):
                layers.append(Layer(number, len(block.resnets), path, "downsamplers"))
            if path == "up" and getattr(block, "upsamplers", None):
                layers.append(Layer(number, 0, path, "upsamplers"))
            yield Layer(number, 0, path, "block"), layers
    if getattr(unet, "mid_block", None) is not None:
        yield Layer(0, 0, "mid", "block"), []


def _named(layers: list[Layer]) -> str:
    shown = [f"{layer.path} {layer.block} {layer.name}[{layer.layer}]" for layer in layers[:4]]
    return ", ".join(shown) + (f" and {len(layers) - 4} more" if len(layers) > 4 else "")


def with_rule(
    config: DeepCacheConfig, pipe: Any, owner: str, answer: Callable[..., bool], params: dict[str, Any]
) -> DeepCacheConfig:
    """The settings with `answer(Question, block, layer, path)` of class `owner` as their schedule.

    Raises:
        TypeError: the pipeline has several denoisers, or one without diffusers' blocks.
        ValueError: the settings have another schedule.
    """
    others = {"plan": config.plan, "schedule": config.schedule, "skip_mode": config.skip_mode != "uniform"}
    other = next((name for name, given in others.items() if given), None)
    if other is not None:
        raise ValueError(f"{owner}.is_skip_step() cannot be combined with {other}: both choose the full steps")
    denoisers = unets_of(pipe)
    if len(denoisers) > 1 or any(not isinstance(layout_of(each), BlocksLayout) for each in denoisers.values()):
        raise TypeError(
            f"{owner}.is_skip_step() requires one U-Net with diffusers' blocks, which {type(pipe).__name__} does not "
            "have. Use set_params(schedule=ExplicitSchedule(...))"
        )
    (name,) = denoisers

    def ask(number: int, steps: int | None) -> Rule:
        timesteps = getattr(scheduler_of(pipe, name), "timesteps", ())
        start = max(len(timesteps) - steps, 0) if steps is not None else 0
        return partial(answer, Question(start, start + number, params))

    cut = params["cache_block_id"], params["cache_layer_id"]
    rule = SkipRule(owner, ask, lambda: unets_of(pipe)[name], cut, config.cache_branch_id)
    return replace(config, schedule=rule)
