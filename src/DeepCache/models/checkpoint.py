"""A pipeline from one file: a checkpoint with U-Net, text encoder and VAE in the original layout."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from DeepCache.models.architectures import ARCHITECTURES
from DeepCache.models.checkpoint_header import PICKLES, SAFETENSORS, read_header
from DeepCache.models.checkpoint_kind import (
    ALLOWED,
    candidates,
    misfit,
    refuse_other_files,
    text_encoder_in,
    vae_in,
)
from DeepCache.models.configurations import configuration_folder, written
from DeepCache.models.registry import named_model
from DeepCache.models.sources import read_index
from DeepCache.models.vae import load_vae, own_vae

if TYPE_CHECKING:
    import torch

__all__ = ["checkpoint_configuration", "checkpoint_file", "load_checkpoint"]


def checkpoint_file(model: str, config: str | os.PathLike[str] | None = None) -> Path | None:
    """The file of a model that is one; None where it is a name, a folder or a repository of the hub.

    Args:
        model: what `load_pipeline` is given.
        config: the configuration that it is given, which nothing but a file takes.

    Raises:
        ValueError: there is a configuration, and the model is not a file.
    """
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
    """Loads a pipeline from a checkpoint.

    Args:
        path: the file.
        shown: what the user calls it.
        config: see `checkpoint_configuration`.
        dtype: type of the weights.
        vae: another VAE, as `load_pipeline` takes it.
        options: for `from_single_file` of the pipeline's class.

    Raises:
        As `load_pipeline`.
    """
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    given = {*options, *(() if vae is None else ("vae",))}
    with checkpoint_configuration(path, shown, config, given) as folder:
        components = read_index(os.fspath(folder if config is None else config), str(folder), {})
        kind: Any = getattr(diffusers, components["_class_name"])
        if vae is not None:
            options = options | {"vae": load_vae(vae, own_vae(shown, str(folder), {}, components), dtype)}
        try:
            pipe = kind.from_single_file(
                str(path),
                config=str(folder),
                torch_dtype=dtype,
                local_files_only=True,
                **_without_safety_checker(kind) | options,
            )
        except (SingleFileComponentError, AttributeError, KeyError, OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OSError(f"cannot load the model {shown!r}: {reason}") from error
    # Diffusers leaves weights that are missing without memory.
    for part, network in pipe.components.items():
        missing = next((name for name, weight in _weights(network) if weight.is_meta), None)
        if missing is not None:
            raise OSError(f"cannot load the model {shown!r}: the {part} lacks {missing}. Download or save it again.")
    return pipe


@contextmanager
def checkpoint_configuration(
    path: Path, shown: str, config: str | os.PathLike[str] | None, given: Collection[str] | None = ()
) -> Iterator[Path]:
    """The folder with the configurations of a checkpoint's pipeline, which fit its U-Net.

    Args:
        path: the file.
        shown: what the user calls it.
        config: a name in `CONFIGURATIONS`, a folder or a repository of the hub; by default that of the published model
            whose layers the checkpoint has.
        given: the components that need not be in the file; None where its weights are not wanted at all.

    Raises:
        FileNotFoundError: there is no such file or configuration.
        OSError: the file is damaged, or the hub cannot be reached.
        TypeError: it is not a checkpoint of a U-Net that is known.
        ValueError: the configuration does not fit, or the checkpoint lacks a component.
    """
    header = read_header(path, shown)
    refuse_other_files(shown, header.tensors)
    if given is not None:
        _refuse_incomplete(shown, header.tensors, given)
    parts = ("unet",) if given is None or "vae" in given else ("unet", "vae")
    if config is not None:
        with configuration_folder(config) as folder:
            reasons = (misfit(header.tensors, _read(folder, part, config)) for part in parts)
            reason = next(filter(None, reasons), "")
            if reason:
                raise ValueError(
                    f"the model {shown!r} does not fit the configuration {os.fspath(config)!r}: {reason}. Give the "
                    "configuration of the model that it was trained from, or leave it out"
                )
            yield folder
        return
    reason = ""
    for architecture in candidates(shown, header):
        with written(architecture) as folder:
            here = misfit(header.tensors, _read(folder, "unet", folder))
            if not here:
                if "vae" in parts and (lacking := misfit(header.tensors, _read(folder, "vae", folder))):
                    raise OSError(f"cannot load the model {shown!r}: {lacking}. Download or save it again.")
                yield folder
                return
        reason = reason or f"as {architecture.name}, {here}"
    raise ValueError(
        f"the model {shown!r} has other layers than the published ones ({reason}). Give its configuration with config "
        "(--config)"
    )


def _refuse_incomplete(shown: str, names: Collection[str], given: Collection[str]) -> None:
    if not text_encoder_in(names) and not {"text_encoder", "text_encoder_2"} & {*given}:
        raise ValueError(f"the model {shown!r} has no text encoder in it. The file must be {ALLOWED}")
    if not vae_in(names) and "vae" not in given:
        raise ValueError(f"the model {shown!r} has no VAE in it. Give one with vae (--vae)")


def _read(folder: Path, part: str, config: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration of a part of a pipeline."""
    shown = os.fspath(config)
    read_index(shown, str(folder), {})
    try:
        found = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "it is not JSON" if isinstance(error, ValueError) else error.strerror
        raise OSError(f"cannot read {part}/config.json of the configuration {shown!r}: {reason}") from error
    if not isinstance(found, dict) or "_class_name" not in found:
        raise ValueError(f"{part}/config.json of the configuration {shown!r} names no class of diffusers")
    return found


def _without_safety_checker(kind: Any) -> dict[str, Any]:
    """It is not in a checkpoint, and what prepares images for it needs torchvision."""
    names = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return {name: value for name, value in names.items() if name in signature(kind.__init__).parameters}


def _weights(component: Any) -> Any:
    from torch import nn

    return component.named_parameters() if isinstance(component, nn.Module) else ()
