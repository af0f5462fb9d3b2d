"""Diffusers' group offloading with several blocks a group.

The first block of a group loads it and the last one offloads it. A shallow step may run a block of a group without its
first or its last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def are_grouped(blocks: Sequence[nn.Module]) -> bool:
    """Whether any of these blocks is offloaded in a group."""
    return any(_group_of(block) is not None for block in blocks)


def load_groups(blocks: Sequence[nn.Module], others: Sequence[nn.Module] = ()) -> list[Any]:
    """Loads the groups of the blocks that a shallow step runs, where the first block of a group is not among them.

    Some layers of the blocks in `others` are called directly, before any block runs. Returns the groups whose last
    block does not run, so that the caller has to `offload_` them.
    """
    groups = {id(group): group for block in (*blocks, *others) if (group := _group_of(block)) is not None}
    for group in groups.values():
        if others or group.onload_leader not in blocks:
            group.onload_()
    return [group for group in groups.values() if group.offload_leader not in blocks]


def offloaded_to_disk(unet: nn.Module) -> bool:
    """Whether weights of a U-Net stay in files until they are needed, so that what is in memory means nothing."""
    groups = (_group_of(module) for module in unet.modules())
    return any(getattr(group, "offload_to_disk_path", None) is not None for group in groups)


def _group_of(block: nn.Module) -> Any:
    registry = vars(block).get("_diffusers_hook")
    hook = None if registry is None else registry.get_hook("group_offloading")
    return None if hook is None else hook.group
