"""A diagram of the layers that a shallow step of Stable Diffusion 1.5's U-Net runs: docs/images/shallow-unet.svg.

The layers are not listed by hand: hooks record which layers run in a shallow step on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import nn

from DeepCache.engine.cost import count_costs
from DeepCache.engine.layouts import SkipBranch, layout_of, skip_branches
from DeepCache.engine.patch import ShallowPatch

__all__ = ["BRANCHES", "left_and_right", "meta_unet", "modules_that_run", "shallow_unet_diagram"]

BRANCHES = (0, 4)

_ACROSS, _ROW, _HEIGHT, _WIDTH, _PANEL = 660, 40, 30, 222, 660
_LEFT, _RIGHT, _TOP = 12, 426, 86

_DESCRIPTION = (
    "Two ladders of twelve rungs, one ladder for each branch. A rung is a skip branch, numbered from 0 at the top: "
    "left the layer of the down path where it begins, right the layer of the up path that takes it. The mid block is "
    "at the bottom. At branch 0 only conv_in and the last layer of the last up block run. At branch 4 the down path "
    "runs from conv_in to the first layer of the second down block, and the up path from its counterpart in the third "
    "up block to the end. The stored deep feature enters the layer that takes the skip branch."
)

_STYLE = """
    text { font: 17px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #24292f; }
    .heading { font-size: 20px; font-weight: 600; }
    .label { text-anchor: middle; }
    .runs rect { fill: #2f6fd6; }
    .runs text, .store text { fill: #fff; }
    .idle rect { fill: none; stroke: #848d97; stroke-width: 1.5; stroke-dasharray: 5 4; }
    .idle text, .number { fill: #57606a; }
    .store rect { fill: #c2571a; }
    .flow, .skip { fill: none; stroke: #2f6fd6; stroke-width: 2.5; marker-end: url(#blue); }
    .skip { stroke-dasharray: 1.5 5; stroke-linecap: round; }
    .feature { fill: none; stroke: #c2571a; stroke-width: 3; marker-end: url(#orange); }
  """


def meta_unet() -> nn.Module:
    """Stable Diffusion 1.5's U-Net without memory for its weights."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet: nn.Module = UNet2DConditionModel(cross_attention_dim=768)
        return unet


def unet_call() -> tuple[torch.Tensor, ...]:
    """The inputs of a guided call at 512 px."""
    return (
        torch.zeros(2, 4, 64, 64, device="meta"),
        torch.zeros((), device="meta"),
        torch.zeros(2, 77, 768, device="meta"),
    )


@torch.no_grad()
def modules_that_run(unet: nn.Module, branch: SkipBranch, feature: torch.Tensor) -> set[str]:
    """The names of the modules that a shallow step at a branch calls on a deep feature."""
    ran: set[str] = set()
    handles = [module.register_forward_hook(partial(_note, ran, name)) for name, module in unet.named_modules()]
    patch = ShallowPatch(layout_of(unet), branch)
    patch.apply(feature)
    try:
        unet(*unet_call())
    finally:
        patch.remove()
        for handle in handles:
            handle.remove()
    return ran


def left_and_right(branch: SkipBranch, blocks: int = 4) -> tuple[tuple[str, str], tuple[str, str]]:
    """Where a skip connection begins and where it ends: for each the words in the figure and the module."""
    if branch.number == 0:
        left = ("conv_in", "conv_in")
    elif branch.layers:
        left = (
            f"down {branch.down_block}, layer {branch.layers - 1}",
            f"down_blocks.{branch.down_block}.resnets.{branch.layers - 1}",
        )
    else:
        block = branch.down_block - 1
        left = (f"down {block}, downsampler", f"down_blocks.{block}.downsamplers.0")
    right = (
        f"up {branch.up_block}, layer {branch.up_layer}",
        f"up_blocks.{branch.up_block}.resnets.{branch.up_layer}",
    )
    if branch.up_layer == 2 and branch.up_block < blocks - 1:
        right = (f"{right[0]}, upsampler", right[1])
    return left, right


def shallow_unet_diagram() -> str:
    """The figure as SVG: a panel for each branch, one under the other, so that it can be read on a phone."""
    unet = meta_unet()
    branches = skip_branches(unet)
    shown = [branches[number] for number in BRANCHES]
    costs, features = count_costs(unet, unet_call(), {}, shown), _deep_features(unet, shown)
    parts = []
    for panel, number in enumerate(BRANCHES):
        share = costs.shallow[number] / costs.full
        ran = modules_that_run(unet, branches[number], features[number])
        head = f"Shallow step at skip branch {number}: {share:.0%} of a full step"
        lines = "\n".join(_panel(branches, number, ran, head))
        parts.append(f'<g transform="translate(0 {panel * _PANEL})">\n{lines}\n</g>')
    height = _PANEL * len(BRANCHES)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_ACROSS} {height}" role="img" '
            'aria-labelledby="title description">',
            '<title id="title">The layers of the Stable Diffusion 1.5 U-Net that a shallow step runs</title>',
            f'<desc id="description">{_DESCRIPTION}</desc>',
            f"<style>{_STYLE}</style>",
            f"<defs>{_arrowhead('blue', '#2f6fd6')}{_arrowhead('orange', '#c2571a')}</defs>",
            f'<rect width="{_ACROSS}" height="{height}" rx="12" fill="#fff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _arrowhead(name: str, colour: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="11" markerHeight="11" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 10 5 0 10z" fill="{colour}"/></marker>'
    )


def _panel(branches: tuple[SkipBranch, ...], number: int, ran: set[str], head: str) -> Iterator[str]:
    centre = (_LEFT + _WIDTH + _RIGHT) / 2
    yield f'<text x="{_LEFT}" y="34" class="heading">{head}</text>'
    yield f'<text x="{_LEFT + _WIDTH / 2:g}" y="68" class="label">down path</text>'
    yield f'<text x="{_RIGHT + _WIDTH / 2:g}" y="68" class="label">up path</text>'
    for branch in branches:
        (left, left_module), (right, right_module) = left_and_right(branch)
        y = _TOP + _ROW * branch.number
        middle = y + _HEIGHT / 2
        yield _box(_LEFT, y, left, left_module, left_module in ran)
        yield _box(_RIGHT, y, right, right_module, right_module in ran)
        if branch.number <= number:
            yield f'<path class="skip" d="M{_LEFT + _WIDTH + 3} {middle:g}H{_RIGHT - 3}"/>'
            yield f'<rect x="{centre - 14:g}" y="{middle - 11:g}" width="28" height="22" fill="#fff"/>'
            yield f'<text x="{centre:g}" y="{middle + 6:g}" class="label">{branch.number}</text>'
        else:
            # Beside the deep feature, below it in the middle.
            x = centre if branch.number > number + 1 else _LEFT + _WIDTH + 18
            yield f'<text x="{x:g}" y="{middle + 6:g}" class="label number">{branch.number}</text>'
        if branch.number < number:
            # Down on the left, up on the right, between two rows that run.
            yield f'<path class="flow" d="M{_LEFT + _WIDTH / 2:g} {y + _HEIGHT}v{_ROW - _HEIGHT}"/>'
            yield f'<path class="flow" d="M{_RIGHT + _WIDTH / 2:g} {y + _ROW}v-{_ROW - _HEIGHT}"/>'
    y = _TOP + _ROW * (number + 1)
    yield f'<g class="store"><rect x="{centre - 62:g}" y="{y + 4}" width="124" height="{_HEIGHT}" rx="7"/>'
    yield f'<text x="{centre:g}" y="{y + 25}" class="label">deep feature</text></g>'
    target = _TOP + _ROW * number + _HEIGHT - 4
    yield f'<path class="feature" d="M{centre + 62:g} {y + 19}H{_RIGHT - 22}V{target}H{_RIGHT - 1}"/>'
    y = _TOP + _ROW * len(branches)
    yield _box(centre - _WIDTH / 2, y, "mid block", "mid_block", "mid_block.resnets.0" in ran)
    note = "blue runs, dashed does not; the numbers are those of the skip branches"
    yield f'<text x="{centre:g}" y="{y + 66}" class="label number">{note}</text>'


def _box(x: float, y: float, words: str, module: str, runs: bool) -> str:
    kind = "runs" if runs else "idle"
    return (
        f'<g class="{kind}" data-module="{module}"><rect x="{x:g}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="7"/>'
        f'<text x="{x + _WIDTH / 2:g}" y="{y + 21}" class="label">{words}</text></g>'
    )


def _note(ran: set[str], name: str, module: nn.Module, args: object, output: object) -> None:
    ran.add(name)


@torch.no_grad()
def _deep_features(unet: nn.Module, branches: Iterable[SkipBranch]) -> dict[int, torch.Tensor]:
    """The deep feature of each branch, by its number."""
    made: dict[int, torch.Tensor] = {}

    def keep(number: int, module: nn.Module, args: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        made[number] = output if isinstance(output, torch.Tensor) else output[0]

    handles = [
        module.register_forward_hook(partial(keep, branch.number))
        for branch in branches
        for module in layout_of(unet).tapped(branch)
    ]
    unet(*unet_call())
    for handle in handles:
        handle.remove()
    return made
