"""Another autoencoder (VAE) in place of a pipeline's own: where it is, whether it fits, and its weights."""

from __future__ import annotations

import inspect
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from DeepCache.models.damage import why_not_loaded
from DeepCache.models.hub import ask_hub

if TYPE_CHECKING:
    import torch

__all__ = ["load_vae", "own_vae"]

_CONFIG = "config.json"
# Channels of each resolution, by the name that a class has for those of its decoder.
_BLOCKS = ("block_out_channels", "decoder_block_out_channels", "up_block_out_channels")


def load_vae(vae: str | os.PathLike[str], own: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Loads a VAE that decodes the latents of a pipeline.

    Whether it was trained on these latents cannot be seen: those of Stable Diffusion and of Stable Diffusion XL have
    the same shape.

    Args:
        vae: a folder that a VAE of diffusers was saved to, or a repository of the hub as `owner/name`.
        own: the configuration of the VAE that it is to replace.
        dtype: type of the weights.

    Returns:
        The VAE, of the class that its `config.json` names.

    Raises:
        FileNotFoundError: there is no such folder, or it has no `config.json`.
        OSError: the hub has no such repository, or cannot be reached, or the weights cannot be loaded.
        TypeError: it is not a VAE.
        ValueError: the name is not that of a VAE, diffusers does not have its class, or its latents have other channels
            or another scale.
    """
    from safetensors import SafetensorError

    shown = os.fspath(vae)
    source, options = _locate(shown)
    config = _read_config(f"the VAE {shown!r}", source, options)
    kind = _class_of(shown, config)
    _check_latents(shown, config, own)
    folder = Path(source) if Path(source).is_dir() else None
    try:
        with warnings.catch_warnings():
            # Diffusers calls the hub's library with an argument that this no longer knows.
            warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument is deprecated")
            loaded = kind.from_pretrained(source, dtype=dtype, **options)
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise OSError(f"cannot load the VAE {shown!r}: {why_not_loaded(folder, error)}") from error
    # Diffusers only logs that weights are missing.
    missing = [name for name, weight in loaded.named_parameters() if weight.is_meta]
    if missing:
        raise OSError(
            f"cannot load the VAE {shown!r}: its weights are not those of its {_CONFIG}, {missing[0]} is missing. "
            "Download or save it again."
        )
    return loaded


def own_vae(model: str, source: str, options: dict[str, Any], components: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the VAE that a pipeline comes with.

    Args:
        model: what the user calls the pipeline.
        source: its folder, or its repository on the hub.
        options: what it takes to load from there.
        components: the pipeline's index.

    Raises:
        ValueError: it has none, or the configuration is damaged.
        OSError: the configuration cannot be read.
    """
    kind = components.get("vae")
    if not isinstance(kind, list) or kind[0] is None:
        raise ValueError(f"{model!r} is a {components['_class_name']}, which has no VAE that could be replaced")
    return _read_config(f"the VAE of {model!r}", source, options, "vae")


def _locate(vae: str) -> tuple[str, dict[str, Any]]:
    """Where to load the VAE from, and the options that this needs."""
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
    if vae.startswith((".", "~", "/")) or vae.count("/") != 1 or "\\" in vae:
        raise FileNotFoundError(f"there is no VAE folder {vae!r}; give a folder, or owner/name on the hub")
    return vae, ask_hub(vae, _CONFIG, "not a VAE of diffusers")


def _read_config(shown: str, source: str, options: dict[str, Any], folder: str = "") -> dict[str, Any]:
    """The configuration in a folder or repository, or in a folder of it."""
    path = Path(source) / folder / _CONFIG
    if not Path(source).is_dir():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(source, _CONFIG, subfolder=folder or None, **options))
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the {_CONFIG} of {shown} is not JSON: {error}") from None
    except OSError as error:
        raise OSError(f"cannot read the {_CONFIG} of {shown}: {error.strerror or error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise ValueError(f"the {_CONFIG} of {shown} does not name a class of diffusers")
    return config


def _class_of(shown: str, config: Mapping[str, Any]) -> Any:
    import diffusers
    from diffusers.models.autoencoders.vae import AutoencoderMixin

    name = config["_class_name"]
    kind = getattr(diffusers, name, None)
    if kind is None:
        raise ValueError(f"the VAE {shown!r} is a {name}, which diffusers {diffusers.__version__} does not have")
    if not (isinstance(kind, type) and issubclass(kind, AutoencoderMixin)):
        raise TypeError(f"{shown!r} is a {name}, not a VAE. Use one such as an AutoencoderKL or an AutoencoderTiny.")
    return kind


def _check_latents(shown: str, config: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuses a VAE whose latents have another shape than those of the model."""
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
    """The channels of a VAE's latents, and the factor from their width to that of the image; None where unknown."""
    import diffusers

    kind: Any = getattr(diffusers, config["_class_name"], None)
    # What a configuration leaves out is the default.
    parameters = inspect.signature(kind.__init__).parameters if kind is not None else {}
    defaults = {name: each.default for name, each in parameters.items() if each.default is not each.empty}
    values = defaults | dict(config)
    blocks = next((values[name] for name in _BLOCKS if name in values), None)
    scale = 2 ** (len(blocks) - 1) if isinstance(blocks, (list, tuple)) else None
    return values.get("latent_channels"), scale
