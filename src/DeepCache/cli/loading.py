"""Loads the pipeline of a command, and silences the libraries below."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from DeepCache.cli.options import LoadingOptions

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences the libraries below: what they report of a model that cannot be loaded is in the error of
    `load_pipeline`, and deprecations are for programmers."""
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)
    # Transformers warns at import that torchvision is missing, which no model here needs.
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    import torch
    from diffusers.utils import logging as diffusers_logging

    # Warnings of repeated compilation.
    torch._logging.set_logs(all=logging.ERROR)  # type: ignore[attr-defined]
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity(logging.CRITICAL)
    yield
    diffusers_logging.set_verbosity_warning()
    for handler in logging.getLogger("diffusers").handlers:
        handler.addFilter(_is_not_about_length)


def _is_not_about_length(record: logging.LogRecord) -> bool:
    # This one quotes the whole prompt; `deepcache generate` has a shorter warning.
    return "was truncated because" not in str(record.msg)


@contextmanager
def loading(model: str) -> Iterator[None]:
    """Shows on a terminal that a model is loaded, with quiet libraries."""
    console = Console(stderr=True)
    with console.status(escape(f"Loading {model} …")) if console.is_terminal else nullcontext(), quiet_libraries():
        yield


def load(options: LoadingOptions) -> DiffusionPipeline:
    """The pipeline of these options."""
    with loading(options.model):
        from DeepCache.models import load_pipeline

        return load_pipeline(
            options.model,
            dtype=options.dtype,
            device=options.device,
            config=options.config,
            scheduler=options.scheduler,
            progress_bar=False,
        )


def set_threads(threads: int | None) -> None:
    """Sets the number of PyTorch's CPU threads, if there is one."""
    if threads is None:
        return
    if threads < 1:
        raise ValueError(f"--threads must be 1 or more, got {threads}")
    import torch

    torch.set_num_threads(threads)
