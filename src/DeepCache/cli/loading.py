"""Loads the pipeline that a command works on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

__all__ = ["load", "quiet_libraries", "set_threads"]


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps the libraries below from talking over a command's own output. What they say of what cannot be loaded,
    `load_pipeline` raises."""
    # Deprecations are for programmers.
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)
    # Transformers tells at import that it has no torchvision, which no model here needs.
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    import torch
    from diffusers.utils import logging as diffusers_logging

    # What the compiler says of code that it compiles over and over is told by the time that it takes.
    torch._logging.set_logs(all=logging.ERROR)  # type: ignore[attr-defined]
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity(logging.CRITICAL)
    yield
    diffusers_logging.set_verbosity_warning()
    for handler in logging.getLogger("diffusers").handlers:
        handler.addFilter(_is_not_about_length)


def _is_not_about_length(record: logging.LogRecord) -> bool:
    # It quotes all that was cut off; `warn_of_long_prompts` does not.
    return "was truncated because" not in str(record.msg)


def load(
    model: str,
    *,
    console: Console,
    dtype: str = "auto",
    device: str = "auto",
    vae: str | None = None,
    offload: str | None = None,
    config: str | None = None,
) -> DiffusionPipeline:
    """`load_pipeline` in quiet. With `offload`, the pipeline is on the CPU, for `offload_pipeline` to be called on."""
    note = console.status(escape(f"Loading {model} …")) if console.is_terminal else nullcontext()
    with note, quiet_libraries():
        from DeepCache.models import load_pipeline
        from DeepCache.models.memory import load_to_offload

        if offload is None:
            pipe = load_pipeline(model, dtype=dtype, device=device, vae=vae, config=config)
        else:
            pipe = load_to_offload(model, offload, dtype=dtype, device=device, vae=vae, config=config)
    pipe.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    return pipe


def set_threads(threads: int | None) -> None:
    """Sets how many threads PyTorch uses on the CPU, where a number is given.

    Raises:
        ValueError: it is below 1.
    """
    if threads is None:
        return
    if threads < 1:
        raise ValueError(f"--threads must be 1 or more, got {threads}")
    import torch

    torch.set_num_threads(threads)
