"""Gives patches the same block and transformer numbers on a shallow step as on a full one."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["BlockNumbers"]

# Patches of a part that a shallow step omits; the cached deep feature already includes their effect.
_AFTER_THE_MIDDLE = "middle_block_after_patch"
_AT_OUTPUT_BLOCKS = "output_block_patch"
# Patches that may run the code of a layer without calling the layer.
_OF_LAYERS = "forward_timestep_embed_patch"
# Entries of the options whose functions may depend on the numbers.
_READERS = ("patches", "patches_replace", "optimized_attention_override")


class BlockNumbers:
    """The numbers of the blocks and transformers of one call.

    A model counts the blocks and transformers it runs, and some patches depend on these counts. A full step records the
    number of transformers before each output block; a shallow step resumes from there. Both happen in a patch of the
    output blocks and not in a subclass of `dict`: graphs from ComfyUI's node for `torch.compile` run with other options
    too, and would fail.

    Args:
        left_out: the number of output blocks that a shallow step omits; 0 on a full step.
        transformers: the recorded counts of an earlier full step; None on a full step.

    Attributes:
        transformers: the number of transformers before each output block. Empty if no patch needs it.
        features: the inputs of the output blocks on a full step, if patches may run layers without calling them and
            so bypass their hooks.

    Example:
        >>> def patch(h, skip, options):
        ...     print(options["block"], options["transformer_index"])
        >>> numbers = BlockNumbers(left_out=9, transformers={9: 15})
        >>> options = numbers.patched({"patches": {"output_block_patch": [patch]}})
        >>> options |= {"block": ("output", 0), "transformer_index": 1}
        >>> for run in options["patches"]["output_block_patch"]:
        ...     _ = run(None, None, options)
        ('output', 9) 15
    """

    def __init__(self, left_out: int = 0, transformers: dict[int, int] | None = None) -> None:
        self._left_out, self._shallow = left_out, transformers is not None
        self.transformers: dict[int, int] = {} if transformers is None else transformers
        self.features: dict[int, torch.Tensor] = {}

    def patched(self, options: dict[str, Any]) -> dict[str, Any]:
        """These `transformer_options` with a patch that sets the numbers of a full step."""
        if not any(options.get(name) for name in _READERS):
            return dict(options)
        patches = options.get("patches", {})
        if self._left_out:
            patches = {name: each for name, each in patches.items() if name != _AFTER_THE_MIDDLE}
        first = self._resume if self._shallow else self._note
        return {**options, "patches": {**patches, _AT_OUTPUT_BLOCKS: [first, *patches.get(_AT_OUTPUT_BLOCKS, ())]}}

    @staticmethod
    def count_blocks(options: dict[str, Any]) -> bool:
        """Whether patches count the output blocks after the middle block (SUPIR)."""
        patches = options.get("patches", {})
        return _AFTER_THE_MIDDLE in patches and _AT_OUTPUT_BLOCKS in patches

    @staticmethod
    def run_layers(options: dict[str, Any]) -> bool:
        """Whether patches may run layers of the model without calling them."""
        return _OF_LAYERS in options.get("patches", {})

    def _note(self, h: torch.Tensor, skip: Any, options: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        number = options["block"][1]
        self.transformers[number] = options.get("transformer_index", 0)
        if self.run_layers(options):
            self.features[number] = h.detach().clone()
        return h, skip

    def _resume(self, h: torch.Tensor, skip: Any, options: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        where, number = options["block"]
        number += self._left_out
        options["block"] = (where, number)
        if number == self._left_out and number in self.transformers:
            options["transformer_index"] = self.transformers[number]
        return h, skip
