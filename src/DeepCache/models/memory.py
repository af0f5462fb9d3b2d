"""Less device memory at the cost of time: offloaded weights, and a VAE that decodes in parts."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

from DeepCache.extras import require
from DeepCache.models.device import resolve_device, resolve_dtype
from DeepCache.models.identity import remember_weights

if TYPE_CHECKING:
    import torch

__all__ = [
    "OFFLOADS",
    "check_offload",
    "divide_vae",
    "load_to_offload",
    "offload_device",
    "offload_pipeline",
    "vae_notes",
]

OFFLOADS = ("model", "sequential", "group")
"""The kinds of offloading, see `offload_pipeline`."""

# Devices that copy weights while they compute.
_WITH_STREAMS = ("cuda", "xpu")


def check_offload(offload: str | None, runtime: str = "torch") -> None:
    """Raises a ValueError if the kind of offloading is unknown, or not supported by the runtime of the U-Net."""
    if offload is None:
        return
    if offload not in OFFLOADS:
        raise ValueError(f"offload must be one of {', '.join(OFFLOADS)}, got {offload!r}")
    if runtime != "torch":
        raise ValueError(f"offload={offload!r} cannot be combined with the runtime {runtime!r}. Remove one of them")


def offload_device(offload: str, device: torch.device | str | None = None) -> torch.device:
    """The device that computes while the weights are offloaded to the CPU. It may be the CPU only for `"group"`."""
    check_offload(offload)
    require("cli", f"offload={offload!r}")
    found = resolve_device(device)
    if found.type == "cpu" and offload != "group":
        raise ValueError(f"offload={offload!r} needs a GPU, and the device is cpu. Remove it")
    return found


def offload_pipeline(pipe: Any, offload: str, device: torch.device | str | None = None) -> None:
    """Keeps the weights of a pipeline on the CPU, and moves them to the device when they are needed.

    The images do not change. Offload a pipeline last: after LoRAs are loaded, and after diffusers has built another
    pipeline from its components, such as one that starts from an image. DeepCache may be applied before or after.

    Args:
        pipe (`DiffusionPipeline`):
            The pipeline, on the CPU or on the device.
        offload (`str`):
            `"model"`: one model of the pipeline at a time (a text encoder, the U-Net, the VAE) is on the device. The
            U-Net stays there for all steps, so this costs little time. `"group"`: one layer at a time. On devices with
            streams (CUDA, XPU), the next layer is copied while one computes, which hides much of the copying; the
            weights are then in pinned memory, so the CPU needs more of it. `"sequential"`: one layer at a time, without
            overlap. It needs the least memory and is many times slower.
        device (`torch.device` or `str`, *optional*):
            The device that computes, as `load_pipeline` accepts it.

    Raises:
        ValueError: the kind of offloading is unknown, the device is not available or is the CPU (unless `offload` is
            `"group"`), or the pipeline does not support this kind.
        ImportError: a package of `DeepCache[cli]` is missing, or too old.

    Example:
        >>> from DeepCache.models import load_pipeline
        >>> pipe = load_pipeline("shapes", device="cpu")
        >>> offload_pipeline(pipe, "group", "cpu")
        >>> pipe("a red circle", num_inference_steps=2).images[0].size
        (64, 64)
    """
    found = offload_device(offload, device)
    try:
        if offload == "group":
            streams = found.type in _WITH_STREAMS
            pipe.enable_group_offload(found, offload_type="leaf_level", use_stream=streams, record_stream=streams)
        elif offload == "model":
            pipe.enable_model_cpu_offload(device=found)
        else:
            remember_weights(pipe)
            pipe.enable_sequential_cpu_offload(device=found)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"cannot offload this {type(pipe).__name__} (offload={offload!r}): {reason}") from error


def load_to_offload(
    model: str | os.PathLike[str],
    offload: str,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> Any:
    """`load_pipeline` for a later `offload_pipeline`: on the CPU, in the default dtype of `device`."""
    from DeepCache.models.loading import load_pipeline

    found = offload_device(offload, device)
    with warnings.catch_warnings():
        if found.type != "cpu":
            # The CPU stores the weights and does not compute.
            warnings.filterwarnings("ignore", r"\w+ has no native support on this CPU", UserWarning)
        return load_pipeline(model, dtype=resolve_dtype(dtype, found), device="cpu", **options)


def divide_vae(pipe: Any, *, tiling: bool = False, slicing: bool = False) -> None:
    """Makes the VAE of a pipeline encode and decode in parts, which needs less memory.

    Args:
        pipe: the pipeline.
        tiling: in overlapping tiles that are blended. Memory no longer grows with the size of an image; it takes
            longer, and images larger than a tile (usually 512 or 1024 pixels) change slightly.
        slicing: the images of a batch one by one. It has no effect on a single image.

    Raises:
        ValueError: the pipeline has no VAE, or one that does not support this.

    Example:
        >>> from DeepCache.models import load_pipeline
        >>> pipe = load_pipeline("shapes")
        >>> divide_vae(pipe, tiling=True)
        >>> pipe.vae.use_tiling
        True
    """
    vae = getattr(pipe, "vae", None)
    for name in ["tiling"] * tiling + ["slicing"] * slicing:
        if vae is None:
            raise ValueError(f"VAE {name} is for a pipeline with a VAE, and a {type(pipe).__name__} has none")
        try:
            getattr(vae, f"enable_{name}")()
        except (AttributeError, NotImplementedError):
            raise ValueError(
                f"the VAE of this model, a {type(vae).__name__}, does not support {name}. Remove this option"
            ) from None


def vae_notes(pipe: Any) -> dict[str, bool]:
    """The metadata of the VAE in an image; empty if the VAE decodes the image as a whole."""
    return {"vae_tiling": True} if getattr(getattr(pipe, "vae", None), "use_tiling", False) is True else {}
