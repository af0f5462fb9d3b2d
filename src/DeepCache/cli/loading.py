"""Loads the pipeline that a command works on."""

from __future__ import annotations

import logging
import warnings
from contextlib import nullcontext
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

__all__ = ["load"]


def load(model: str, *, console: Console, dtype: str = "auto", device: str = "auto") -> DiffusionPipeline:
    """`load_pipeline`, with the libraries below kept from talking over the command's own output."""
    # Deprecations are for programmers.
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)
    note = console.status(f"Loading {model} …") if console.is_terminal else nullcontext()
    with note:
        # Transformers tells at import that it has no torchvision, which no model here needs.
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

        from diffusers.utils import logging as diffusers_logging

        from DeepCache.models import load_pipeline

        diffusers_logging.disable_progress_bar()
        diffusers_logging.set_verbosity(logging.CRITICAL)  # load_pipeline raises what matters
        pipe = load_pipeline(model, dtype=dtype, device=device)
        # What diffusers says while it draws is about the prompt: that it is too long, for one.
        diffusers_logging.set_verbosity_warning()
    pipe.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    return pipe
