"""The skip branches of a U-Net, read from its structure and never from its class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import nn

__all__ = [
    "SkipBranch",
    "cut_layers",
    "down_blocks",
    "layer_count",
    "layer_lists",
    "samplers",
    "skip_branches",
    "up_blocks",
]

_SAMPLERS = ("downsamplers", "upsamplers")


@dataclass(frozen=True)
class SkipBranch:
    """One skip connection of a U-Net, and what a shallow step that is cut there runs.

    Args:
        number: the `cache_branch_id`, counted from the shallowest.
        name: where in the U-Net the skip connection begins.
        down_block: the down block that is cut; every down block before it is kept whole.
        layers: number of layers of that down block that are kept.
        up_block: the up block that takes the skip connection; every up block after it is kept whole.
        up_layer: the layer of that up block that takes it, which is the first that is kept.
    """

    number: int
    name: str
    down_block: int
    layers: int
    up_block: int
    up_layer: int


def skip_branches(unet: nn.Module) -> tuple[SkipBranch, ...]:
    """The skip branches of a U-Net that DeepCache can cut at, from the shallowest to the deepest.

    Args:
        unet: a module with `down_blocks`, `mid_block` (which may be None) and `up_blocks`, whose blocks keep their
            layers in `nn.ModuleList`s of one length each, as those of diffusers do.

    Raises:
        TypeError: the module is not of that shape; the message says what is missing.

    Example:
        >>> from diffusers import UNet2DConditionModel
        >>> unet = UNet2DConditionModel(block_out_channels=(32, 64, 64, 64), cross_attention_dim=32)
        >>> [branch.name for branch in skip_branches(unet)][:3]
        ['conv_in', 'down_blocks.0 layer 0', 'down_blocks.0 layer 1']
    """
    for name in ("down_blocks", "up_blocks"):
        if not isinstance(getattr(unet, name, None), nn.ModuleList):
            raise _unsupported(unet, f"it has no nn.ModuleList {name!r}")
    if not hasattr(unet, "mid_block"):
        raise _unsupported(unet, "it has no 'mid_block'")

    origins = _skip_origins(unet)
    takers = [
        (index, layer)
        for index, block in enumerate(up_blocks(unet))
        for layer in range(_layer_count(unet, f"up_blocks.{index}", block))
    ]
    if len(origins) != len(takers):
        raise _unsupported(
            unet,
            f"its down path makes {len(origins)} skip connections, one a layer, and its up path takes {len(takers)}",
        )
    # The last skip made is the first taken.
    branches = tuple(
        SkipBranch(number, *origin, *taker)
        for number, (origin, taker) in enumerate(zip(origins, reversed(takers), strict=True))
    )
    # Below the deepest skip lies the mid block alone; without one a cut there would save nothing.
    return branches if unet.mid_block is not None else branches[:-1]


def down_blocks(unet: nn.Module) -> list[nn.Module]:
    """The down blocks of a U-Net, from the shallowest to the deepest."""
    return list(cast(nn.ModuleList, unet.down_blocks))


def up_blocks(unet: nn.Module) -> list[nn.Module]:
    """The up blocks of a U-Net, from the deepest to the shallowest."""
    return list(cast(nn.ModuleList, unet.up_blocks))


def layer_lists(block: nn.Module) -> dict[str, nn.ModuleList]:
    """The per-layer lists of a block (`resnets`, `attentions`, `motion_modules`, …) by name."""
    return {
        name: child
        for name, child in block._modules.items()
        if isinstance(child, nn.ModuleList) and len(child) > 0 and not name.endswith(_SAMPLERS)
    }


def samplers(block: nn.Module) -> list[str]:
    """Names of what takes a block's output to the next size: `downsamplers` or `upsamplers`, under ControlNet-XS
    `base_downsamplers` and `ctrl_downsamplers`."""
    return [name for name, child in block._modules.items() if name.endswith(_SAMPLERS) and _is_there(child)]


def layer_count(block: nn.Module) -> int | None:
    """Number of layers of a block, that of its shortest list; None where its other lists do not go with it.

    A list may have several entries a layer (AudioLDM 2), or one more than there are layers, for the block's sampler
    (ControlNet-XS).
    """
    lengths = {len(entries) for entries in layer_lists(block).values()}
    if not lengths:
        return None
    count = min(lengths)
    # With a single layer nothing tells two entries of it from one for the sampler.
    fits = all(
        length == count or (count > 1 and (length % count == 0 or (length == count + 1 and samplers(block))))
        for length in lengths
    )
    return count if fits else None


def cut_layers(block: nn.Module, start: int, stop: int | None = None) -> dict[str, nn.ModuleList]:
    """The per-layer lists of a block with nothing but its layers from `start` to before `stop`, by name."""
    count = layer_count(block)
    assert count is not None
    cut = {}
    for name, entries in layer_lists(block).items():
        each = len(entries) // count
        cut[name] = nn.ModuleList(entries[start * each : None if stop is None else stop * each])
    return cut


def _is_there(child: nn.Module | None) -> bool:
    return child is not None and not (isinstance(child, nn.ModuleList) and len(child) == 0)


def _skip_origins(unet: nn.Module) -> list[tuple[str, int, int]]:
    """Name, down block and layers kept of every skip connection, in the order in which they are made."""
    origins = [("conv_in", 0, 0)]
    for index, block in enumerate(down_blocks(unet)):
        path = f"down_blocks.{index}"
        if hasattr(block, "skip_conv"):
            raise _unsupported(unet, f"{path} carries a second state beside the hidden one (skip_conv)")
        for layer in range(_layer_count(unet, path, block)):
            origins.append((f"{path} layer {layer}", index, layer + 1))
        if samplers(block):
            origins.append((f"{path} downsampler", index + 1, 0))
    return origins


def _layer_count(unet: nn.Module, path: str, block: nn.Module) -> int:
    count = layer_count(block)
    if count is None:
        listing = ", ".join(f"{name} {len(layers)}" for name, layers in layer_lists(block).items())
        reason = (
            f"the lists of layers of {path} differ in length ({listing})"
            if listing
            else f"{path} has no list of layers"
        )
        raise _unsupported(unet, reason)
    return count


def _unsupported(unet: nn.Module, reason: str) -> TypeError:
    return TypeError(f"DeepCache cannot cut a {type(unet).__name__}: {reason}")
