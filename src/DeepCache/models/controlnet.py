"""Loads a ControlNet for a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from DeepCache.models.sources import is_repository

__all__ = ["check_controlnet", "load_controlnet"]


def check_controlnet(controlnet: str | None) -> None:
    """Checks that the folder of a ControlNet exists, before a model is loaded. The hub is not contacted.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if controlnet is not None and not Path(controlnet).expanduser().is_dir() and not is_repository(controlnet):
        raise FileNotFoundError(
            f"there is no ControlNet folder {controlnet!r}; give a folder, or owner/name on the hub"
        )


def load_controlnet(controlnet: str, pipe: Any) -> Any:
    """Loads a ControlNet in the dtype and on the device of a pipeline.

    Args:
        controlnet: a folder that a ControlNet of diffusers was saved to, or a repository of the hub as `owner/name`.
        pipe: the pipeline.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: it cannot be loaded.
        ValueError: it is for another kind of model.
    """
    from diffusers import ControlNetModel

    check_controlnet(controlnet)
    path = Path(controlnet).expanduser()
    try:
        loaded: Any = ControlNetModel.from_pretrained(  # type: ignore[no-untyped-call]
            str(path) if path.is_dir() else controlnet, dtype=pipe.dtype
        )
    # Diffusers raises errors of many types for a folder without a ControlNet.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise OSError(f"cannot load the ControlNet {controlnet!r}: {reason}") from error
    own, other = pipe.unet.config.cross_attention_dim, loaded.config.cross_attention_dim
    if own != other:
        raise ValueError(
            f"the ControlNet {controlnet!r} is for another kind of model: its text has {other} features, and that of "
            f"this {type(pipe).__name__} {own}"
        )
    return loaded.to(pipe.device).eval()
