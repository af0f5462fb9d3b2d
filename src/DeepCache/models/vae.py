"""Replacement autoencoders (VAEs)."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from DeepCache.models.sources import ask_hub, is_repository, read_config, why_not_loaded

if TYPE_CHECKING:
    import torch

__all__ = ["load_vae", "own_vae"]

_CONFIG = "config.json"
# Arguments of VAE classes for the channels of each resolution of their decoder.
_BLOCKS = ("block_out_channels", "decoder_block_out_channels", "up_block_out_channels")


def load_vae(vae: str | os.PathLike[str], own: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Loads a VAE from a folder or a repository of the hub; its latents must have the shape of those of the VAE that it
    replaces, whose configuration is `own`."""
    from safetensors import SafetensorError

    shown = os.fspath(vae)
    source, options = _locate(shown)
    config = read_config(f"the VAE {shown!r}", source, options, _CONFIG)
    kind = _class_of(shown, config)
    _check_latents(shown, config, own)
    try:
        with warnings.catch_warnings():
            # Diffusers passes an argument that the hub's library deprecates.
            warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument is deprecated")
            loaded = kind.from_pretrained(source, dtype=dtype, **options)
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        folder = Path(source) if Path(source).is_dir() else None
        raise OSError(f"cannot load the VAE {shown!r}: {why_not_loaded(folder, error)}") from error
    # Diffusers only logs missing weights.
    missing = [name for name, weight in loaded.named_parameters() if weight.is_meta]
    if missing:
        raise OSError(
            f"cannot load the VAE {shown!r}: its weights are not those of its {_CONFIG}, {missing[0]} is missing. "
            "Download or save it again."
        )
    return loaded


def own_vae(shown: str, source: str, options: dict[str, Any], components: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a pipeline's own VAE."""
    kind = components.get("vae")
    if not isinstance(kind, list) or kind[0] is None:
        raise ValueError(f"{shown!r} is a {components['_class_name']}, which has no VAE that could be replaced")
    return read_config(f"the VAE of {shown!r}", source, options, _CONFIG, "vae")


def _locate(vae: str) -> tuple[str, dict[str, Any]]:
    """The folder or repository of the VAE, and the options to load it with."""
    if not vae:
        raise ValueError("the VAE has no name; give a folder, or owner/name on the hub")
    path = Path(vae).expanduser()
    if path.is_dir():
        if not (path / _CONFIG).is_file():
            inner = f"; its VAE is {str(Path(vae) / 'vae')!r}" if (path / "vae" / _CONFIG).is_file() else ""
            raise FileNotFoundError(f"the folder {vae!r} is not a VAE of diffusers: it has no {_CONFIG}{inner}")
        return str(path), {}
    if path.exists():
        raise ValueError(f"the VAE {vae!r} is a file; give the folder that holds its {_CONFIG}")
    if not is_repository(vae):
        raise FileNotFoundError(f"there is no VAE folder {vae!r}; give a folder, or owner/name on the hub")
    return vae, ask_hub(vae, _CONFIG, "not a VAE of diffusers")


def _class_of(shown: str, config: Mapping[str, Any]) -> Any:
    import diffusers
    from diffusers.models.autoencoders.vae import AutoencoderMixin

    name = config["_class_name"]
    kind = getattr(diffusers, str(name), None)
    if kind is None:
        raise ValueError(f"the VAE {shown!r} is a {name}, which diffusers {diffusers.__version__} does not have")
    if not (isinstance(kind, type) and issubclass(kind, AutoencoderMixin)):
        raise TypeError(f"{shown!r} is a {name}, not a VAE. Use one such as an AutoencoderKL or an AutoencoderTiny.")
    return kind


def _check_latents(shown: str, config: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    fix = "Use a VAE that was made for this model."
    (channels, scale), (own_channels, own_scale) = _latents(config), _latents(own)
    if own_channels is not None and channels != own_channels:
        raise ValueError(
            f"the VAE {shown!r} does not fit: its latents have {channels} channels, those of the model {own_channels}. "
            f"{fix}"
        )
    if own_scale is not None and scale != own_scale:
        raise ValueError(
            f"the VAE {shown!r} does not fit: its images are {scale} times as wide as their latents, those of the "
            f"model {own_scale} times. {fix}"
        )


def _latents(config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The channels of a VAE's latents, and the scale from their width to that of the image; None if unknown."""
    import diffusers

    kind: Any = getattr(diffusers, str(config["_class_name"]), None)
    parameters = inspect.signature(kind.__init__).parameters if kind is not None else {}
    defaults = {name: each.default for name, each in parameters.items() if each.default is not each.empty}
    values = defaults | dict(config)
    blocks = next((values[name] for name in _BLOCKS if name in values), None)
    scale = 2 ** (len(blocks) - 1) if isinstance(blocks, (list, tuple)) else None
    return values.get("latent_channels"), scale
