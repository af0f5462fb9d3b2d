"""Pipelines on the `meta` device: for counting costs in seconds, without a download of weights."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from DeepCache.extras import require
from DeepCache.models.architectures import ARCHITECTURES, random_pipeline
from DeepCache.models.checkpoint import checkpoint_configuration, checkpoint_file
from DeepCache.models.loading import locate
from DeepCache.models.schedulers import set_scheduler
from DeepCache.models.sources import read_index

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

__all__ = ["load_without_weights"]


def load_without_weights(
    model: str | os.PathLike[str] = "shapes",
    *,
    config: str | os.PathLike[str] | None = None,
    own_scheduler: bool = False,
) -> DiffusionPipeline:
    """Builds a pipeline on the `meta` device from its configuration files alone.

    It can be called up to its first step, and all of its costs can be counted; it generates nothing. Its scheduler is
    DDIM if that fits, because other schedulers read tensor values.

    Args:
        model: the model, as `load_pipeline` accepts it. Only the header of a checkpoint is read.
        config: the configuration of a checkpoint, as `load_pipeline` accepts it.
        own_scheduler: whether to keep the model's own scheduler, with which a call may fail.

    Raises:
        FileNotFoundError, OSError, ValueError, TypeError, ImportError: as `load_pipeline`.

    Example:
        >>> pipe = load_without_weights("sd15")
        >>> pipe.unet.device.type, sum(parameter.numel() for parameter in pipe.unet.parameters())
        ('meta', 859520964)
    """
    require("cli", "load_without_weights")
    shown = os.fspath(model)
    checkpoint = checkpoint_file(shown, config)
    if shown in ARCHITECTURES and not os.path.isdir(shown):
        pipe: Any = random_pipeline(shown, device="meta")
    elif checkpoint is not None:
        with checkpoint_configuration(checkpoint, shown, config, given=None) as folder:
            pipe = _from_configurations(shown, str(folder), {})
    else:
        source, options = locate(shown)
        read_index(shown, source, options)
        pipe = _from_configurations(shown, source, options)
    pipe.set_progress_bar_config(disable=True)
    if not own_scheduler:
        with suppress(ValueError):
            set_scheduler(pipe, "ddim")
    found: DiffusionPipeline = pipe
    return found


def _from_configurations(shown: str, source: str, options: dict[str, Any]) -> Any:
    import diffusers
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    config: Any = DiffusionPipeline.load_config(source, **options)
    parts: dict[str, Any] = {}
    for name, value in config.items():
        if not isinstance(value, (list, tuple)):
            if not name.startswith("_"):
                parts[name] = value
            continue
        try:
            parts[name] = _component(source, name, value[0], value[1], options)
        except (OSError, ValueError) as error:
            raise OSError(f"cannot load the configuration of {name!r} of the model {shown!r}: {error}") from error
    if parts.get("safety_checker", ...) is None:
        parts["requires_safety_checker"] = False
    return getattr(diffusers, config["_class_name"])(**parts)


def _component(source: str, name: str, library: str | None, kind: str | None, options: dict[str, Any]) -> Any:
    """A component of a pipeline; None if it has none."""
    import diffusers
    import torch
    import transformers

    module = {"diffusers": diffusers, "transformers": transformers}.get(library or "")
    # Other libraries are those of safety checkers, which are not needed without images.
    if module is None or kind is None:
        return None
    found: Any = getattr(module, kind)
    if not issubclass(found, torch.nn.Module):
        return found.from_pretrained(source, subfolder=name, **options)
    with torch.device("meta"):
        if library == "diffusers":
            made = found.from_config(found.load_config(source, subfolder=name, **options))
        else:
            made = found(found.config_class.from_pretrained(source, subfolder=name, **options))
    return made.eval().requires_grad_(False)
