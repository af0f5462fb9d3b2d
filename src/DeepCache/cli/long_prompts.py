"""Says which prompts are longer than the model reads, instead of the warnings of diffusers and transformers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

__all__ = ["warn_of_long_prompts"]

# A tokenizer that has no limit gives a number like this.
_NO_LIMIT = 100_000


def warn_of_long_prompts(pipe: Any, texts: Iterable[str]) -> None:
    """Warns of prompts of which the model reads only the beginning.

    Args:
        pipe: the pipeline.
        texts: prompts and negative prompts.
    """
    from DeepCache.text import shown

    tokenizer = getattr(pipe, "tokenizer", None)
    most = getattr(tokenizer, "model_max_length", _NO_LIMIT)
    if tokenizer is None or most >= _NO_LIMIT:
        return
    for text in dict.fromkeys(texts):
        length = len(tokenizer(text).input_ids)
        if length > most:
            warnings.warn(
                f"the prompt {shown(text)} has {length} tokens, and the model reads the first {most}; shorten it",
                stacklevel=1,
            )
