"""The block and transformer numbers that patches see on a shallow step: those of a full one."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["BlockNumbers"]

# Patches of a part that a shallow step leaves out: the deep feature is what they have made of it.
_AFTER_THE_MIDDLE = "middle_block_after_patch"
_AT_OUTPUT_BLOCKS = "output_block_patch"
# Patches that run a layer themselves, perhaps without calling it.
_OF_LAYERS = "forward_timestep_embed_patch"


class BlockNumbers(dict[str, Any]):
    """The `transformer_options` of one call, in which the model notes the block that it is at.

    A model counts the blocks and the transformers that it runs, and some patches go by these numbers. A full step notes
    how many transformers ran before each output block; a shallow one goes on from there.

    Args:
        options: the `transformer_options` as they would be without DeepCache.
        left_out: how many output blocks a shallow step leaves out; 0 on a full step.
        transformers: those counts, of an earlier full step; None on a full step.

    Attributes:
        transformers: how many transformers ran before each output block, by its number.
        features: what entered each output block on a full step, where patches may run layers without calling them, so
            that their hooks do not see it.

    Example:
        >>> options = BlockNumbers({}, left_out=9, transformers={9: 15})
        >>> options["transformer_index"], options["block"] = 1, ("output", 0)
        >>> options["block"], options["transformer_index"]
        (('output', 9), 15)
    """

    def __init__(self, options: dict[str, Any], left_out: int = 0, transformers: dict[int, int] | None = None) -> None:
        super().__init__(options)
        self._left_out, self._shallow = left_out, transformers is not None
        self.transformers: dict[int, int] = {} if transformers is None else transformers
        patches = options.get("patches", {})
        self.features: dict[int, torch.Tensor] = {}
        if left_out and _AFTER_THE_MIDDLE in patches:
            kept = {name: each for name, each in patches.items() if name != _AFTER_THE_MIDDLE}
            super().__setitem__("patches", kept)
        if not self._shallow and _OF_LAYERS in patches:
            noting = [self._note_feature, *patches.get(_AT_OUTPUT_BLOCKS, ())]
            super().__setitem__("patches", {**patches, _AT_OUTPUT_BLOCKS: noting})

    @staticmethod
    def count_blocks(options: dict[str, Any]) -> bool:
        """Whether patches go by how many output blocks have run since the middle block (SUPIR)."""
        patches = options.get("patches", {})
        return _AFTER_THE_MIDDLE in patches and _AT_OUTPUT_BLOCKS in patches

    @staticmethod
    def run_layers(options: dict[str, Any]) -> bool:
        """Whether patches may run layers of the model without calling them."""
        return _OF_LAYERS in options.get("patches", {})

    def _note_feature(self, h: torch.Tensor, skip: Any, options: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        self.features[options["block"][1]] = h.detach().clone()
        return h, skip

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "block" and value[0] == "output":
            number = value[1] + self._left_out
            value = (value[0], number)
            if not self._shallow:
                self.transformers[number] = self.get("transformer_index", 0)
            elif number == self._left_out and number in self.transformers:
                super().__setitem__("transformer_index", self.transformers[number])
        super().__setitem__(name, value)
