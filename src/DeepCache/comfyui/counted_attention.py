"""Attention for counting multiply-accumulates on the meta device, where ComfyUI's own asks how much memory is free."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["counted_attention"]


def counted_attention(
    attention: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """What ComfyUI takes as `optimized_attention_override`.

    Args:
        attention: the attention in use, which is not called.
        q: queries of shape (batch, tokens, heads × channels), or (batch, heads, tokens, channels) with `skip_reshape`.
        k: keys.
        v: values.
        heads: how many heads there are.
        args: the rest of its arguments.
        kwargs: and those by name.
    """
    if not kwargs.get("skip_reshape"):
        q, k, v = (each.view(*each.shape[:2], heads, -1).transpose(1, 2) for each in (q, k, v))
    output = scaled_dot_product_attention(q, k, v)
    return output if kwargs.get("skip_output_reshape") else output.transpose(1, 2).flatten(2)
