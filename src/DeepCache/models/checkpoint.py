"""Loads a pipeline from a checkpoint: one file with U-Net, text encoder and VAE in the original layout."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from DeepCache.models.architectures import ARCHITECTURES
from DeepCache.models.checkpoint_kind import (
    ALLOWED,
    PICKLES,
    SAFETENSORS,
    Header,
    candidates,
    check_is_checkpoint,
    misfit,
    read_header,
)
from DeepCache.models.configurations import configuration_folder, written
from DeepCache.models.registry import named_model
from DeepCache.models.sources import read_config, read_index
from DeepCache.models.vae import load_vae, own_vae

if TYPE_CHECKING:
    import torch

__all__ = ["checkpoint_configuration", "checkpoint_file", "load_checkpoint"]


def checkpoint_file(model: str, config: str | os.PathLike[str] | None = None) -> Path | None:
    """The file of a model, which a configuration requires; None for a name, a folder or a repository of the hub."""
    path = Path(model).expanduser()
    known = named_model(model) is not None or model in ARCHITECTURES
    is_file = not path.is_dir() and not known and (path.is_file() or path.suffix.lower() in (SAFETENSORS, *PICKLES))
    if config is not None and not is_file:
        raise ValueError(
            f"config (--config) is for a model in one {SAFETENSORS} file, and {model!r} is not one. Remove it"
        )
    return path if is_file else None


def load_checkpoint(
    path: Path,
    shown: str,
    *,
    config: str | os.PathLike[str] | None,
    dtype: torch.dtype,
    vae: str | os.PathLike[str] | None,
    options: dict[str, Any],
) -> Any:
    """Loads a pipeline from a checkpoint; `shown` names the file in messages, the other arguments are those of
    `load_pipeline`."""
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError
    from torch import nn

    given = {*options, *(() if vae is None else ("vae",))}
    with checkpoint_configuration(path, shown, config, given) as folder:
        components = read_index(os.fspath(folder if config is None else config), str(folder), {})
        kind: Any = getattr(diffusers, components["_class_name"])
        if vae is not None:
            options = options | {"vae": load_vae(vae, own_vae(shown, str(folder), {}, components), dtype)}
        # A checkpoint has no safety checker, whose image processor would need torchvision.
        without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        parameters = signature(kind.__init__).parameters
        try:
            pipe = kind.from_single_file(
                str(path),
                config=str(folder),
                torch_dtype=dtype,
                local_files_only=True,
                **{name: value for name, value in without.items() if name in parameters} | options,
            )
        except (SingleFileComponentError, AttributeError, KeyError, OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OSError(f"cannot load the model {shown!r}: {reason}") from error
    # Diffusers leaves missing weights on the meta device.
    for part, network in pipe.components.items():
        weights = network.named_parameters() if isinstance(network, nn.Module) else ()
        missing = next((name for name, weight in weights if weight.is_meta), None)
        if missing is not None:
            raise OSError(f"cannot load the model {shown!r}: the {part} lacks {missing}. Download or save it again.")
    return pipe


@contextmanager
def checkpoint_configuration(
    path: Path, shown: str, config: str | os.PathLike[str] | None, given: Collection[str] | None = ()
) -> Iterator[Path]:
    """A folder with the configurations of a checkpoint's pipeline: `config`, or that of the published model with the
    same layers. `given` are the components that need not be in the file; None if its weights are not needed."""
    header = read_header(path, shown)
    check_is_checkpoint(shown, header)
    if given is not None:
        _check_complete(shown, header, given)
    parts = ("unet",) if given is None or "vae" in given else ("unet", "vae")
    if config is not None:
        with configuration_folder(config) as folder:
            reasons = (misfit(header, _read(folder, part, config)) for part in parts)
            if reason := next(filter(None, reasons), ""):
                raise ValueError(
                    f"the model {shown!r} does not fit the configuration {os.fspath(config)!r}: {reason}. Give the "
                    "configuration of the model that it was trained from, or none"
                )
            yield folder
        return
    reason = ""
    for architecture in candidates(shown, header):
        with written(architecture) as folder:
            here = misfit(header, _read(folder, "unet", folder))
            if not here:
                if "vae" in parts and (lacking := misfit(header, _read(folder, "vae", folder))):
                    raise OSError(f"cannot load the model {shown!r}: {lacking}. Download or save it again.")
                yield folder
                return
        reason = reason or f"as {architecture.name}, {here}"
    raise ValueError(
        f"the model {shown!r} has other layers than the published ones ({reason}). Give its configuration with config "
        "(--config)"
    )


def _check_complete(shown: str, header: Header, given: Collection[str]) -> None:
    has_text = header.has("cond_stage_model.", "conditioner.embedders.")
    if not has_text and not {"text_encoder", "text_encoder_2"} & {*given}:
        raise ValueError(f"the model {shown!r} has no text encoder in it. The file must be {ALLOWED}")
    if "vae" not in given and not header.has("first_stage_model.", "vae."):
        raise ValueError(f"the model {shown!r} has no VAE in it. Give one with vae (--vae)")


def _read(folder: Path, part: str, config: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration of a component."""
    shown = os.fspath(config)
    read_index(shown, str(folder), {})
    return read_config(f"the {part} of the configuration {shown!r}", str(folder), {}, "config.json", part)
