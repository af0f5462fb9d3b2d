"""Diffusers' group offloading with several blocks a group.

The first block of a group loads it and the last one puts it away. A shallow step may run a block of a group and leave
out its first or its last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

__all__ = ["are_grouped", "load_groups", "offloaded_to_disk"]


def are_grouped(blocks: Sequence[nn.Module]) -> bool:
    """Whether any of these blocks is offloaded in a group."""
    return any(_group_of(block) is not None for block in blocks)


def load_groups(blocks: Sequence[nn.Module], others: Sequence[nn.Module] = ()) -> list[Any]:
    """Loads the groups of blocks whose first block is not among those that run.

    Args:
        blocks: the blocks of a U-Net that a shallow step runs.
        others: blocks of which some layers are called by themselves, before any block runs.

    Returns:
        The groups that are still loaded when all these have run, because their last block is not among them; each has
        a method `offload_`.
    """
    groups = {id(group): group for block in (*blocks, *others) if (group := _group_of(block)) is not None}
    for group in groups.values():
        if others or group.onload_leader not in blocks:
            group.onload_()
    return [group for group in groups.values() if group.offload_leader not in blocks]


def offloaded_to_disk(unet: nn.Module) -> bool:
    """Whether weights of a U-Net lie in files until they are needed, so that what is in memory means nothing."""
    groups = (_group_of(module) for module in unet.modules())
    return any(getattr(group, "offload_to_disk_path", None) is not None for group in groups)


def _group_of(block: nn.Module) -> Any:
    registry = vars(block).get("_diffusers_hook")
    hook = None if registry is None else registry.get_hook("group_offloading")
    return None if hook is None else hook.group
