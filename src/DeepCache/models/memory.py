"""Less device memory for more time: weights that wait on the CPU, and a VAE that decodes in parts."""

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
"""What `offload` may be, see `offload_pipeline`."""

# The kinds of devices on which weights are copied while the device computes.
_WITH_STREAMS = ("cuda", "xpu")


def check_offload(offload: str | None, runtime: str = "torch") -> None:
    """Refuses a kind of offloading that is unknown, or cannot be used with a runtime.

    Args:
        offload: one of `OFFLOADS`, or None for no offloading.
        runtime: what the U-Net runs in.

    Raises:
        ValueError: it is none of these, or the runtime is not PyTorch.

    Example:
        >>> check_offload("disk")
        Traceback (most recent call last):
        ValueError: offload must be one of model, sequential, group, got 'disk'
    """
    if offload is None:
        return
    if offload not in OFFLOADS:
        raise ValueError(f"offload must be one of {', '.join(OFFLOADS)}, got {offload!r}")
    if runtime != "torch":
        raise ValueError(f"offload={offload!r} cannot be combined with the runtime {runtime!r}. Remove one of them")


def offload_device(offload: str, device: torch.device | str | None = None) -> torch.device:
    """The device that weights are offloaded from.

    Args:
        offload: one of `OFFLOADS`.
        device: as `load_pipeline` takes it.

    Raises:
        ValueError: the kind of offloading is unknown, or there is no such device; or it is the CPU, unless the
            weights are moved in groups, which is possible there and saves nothing.
        ImportError: what `DeepCache[cli]` brings is missing, or too old.

    Example:
        >>> offload_device("model", "cpu")
        Traceback (most recent call last):
        ValueError: offload='model' needs a GPU, and the device is cpu. Remove it
    """
    check_offload(offload)
    require("cli", f"offload={offload!r}")
    found = resolve_device(device)
    if found.type == "cpu" and offload != "group":
        raise ValueError(f"offload={offload!r} needs a GPU, and the device is cpu. Remove it")
    return found


def offload_pipeline(pipe: Any, offload: str, device: torch.device | str | None = None) -> None:
    """Keeps the weights of a pipeline in the memory of the CPU, and moves them to the device when they are needed.

    The images are the same. Offload a pipeline last: after LoRAs are loaded, and after diffusers has made another
    pipeline of its components, such as one that starts from an image. DeepCache may be applied before or after.

    Args:
        pipe (`DiffusionPipeline`):
            The pipeline, on the CPU. One that is on the device is moved from it.
        offload (`str`):
            `"model"`: one model of the pipeline at a time (a text encoder, the U-Net, the VAE) is on the device. The
            U-Net stays there for all steps, so that this costs little time. `"group"`: one layer at a time. On devices
            with streams (CUDA, XPU), the next layer is copied while one computes, which hides much of the copying;
            there the weights are in pinned memory, so the CPU needs more of it. `"sequential"`: one layer at a time,
            which is waited for. It takes the least memory and is many times slower.
        device (`torch.device` or `str`, *optional*):
            Where to compute, as `load_pipeline` takes it.

    Raises:
        ValueError: the kind of offloading is unknown, the device is not in this machine or is the CPU (unless
            `offload` is `"group"`), or the pipeline cannot be offloaded in this way.
        ImportError: what `DeepCache[cli]` brings is missing, or too old.

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
    """Loads a pipeline that `offload_pipeline` is called on later: on the CPU, in the dtype for the device.

    Args:
        model: as `load_pipeline` takes it.
        offload: one of `OFFLOADS`.
        dtype: as `load_pipeline` takes it.
        device: as `load_pipeline` takes it; where to compute.
        options: as `load_pipeline` takes them.

    Raises:
        ValueError, ImportError: as `offload_device`; nothing is loaded then.
        FileNotFoundError, OSError, TypeError: as `load_pipeline`.
    """
    from DeepCache.models.loading import load_pipeline

    found = offload_device(offload, device)
    with warnings.catch_warnings():
        if found.type != "cpu":
            # The CPU only stores what is loaded.
            warnings.filterwarnings("ignore", r"\w+ has no native support on this CPU", UserWarning)
        return load_pipeline(model, dtype=resolve_dtype(dtype, found), device="cpu", **options)


def divide_vae(pipe: Any, *, tiling: bool = False, slicing: bool = False) -> None:
    """Has the VAE of a pipeline encode and decode in parts, which takes less memory.

    Args:
        pipe: the pipeline.
        tiling: in overlapping tiles, which are blended. The memory no longer grows with the size of an image; it takes
            longer, and images that are larger than a tile (512 or 1024 pixels as a rule) change slightly.
        slicing: the images of one pipeline call one after the other. Without effect on a single image.

    Raises:
        ValueError: the pipeline has no VAE, or one that cannot do this.

    Example:
        >>> from DeepCache.models import load_pipeline
        >>> pipe = load_pipeline("shapes")
        >>> divide_vae(pipe, tiling=True)
        >>> pipe.vae.use_tiling
        True
    """
    vae = getattr(pipe, "vae", None)
    for name, wanted in (("tiling", tiling), ("slicing", slicing)):
        if not wanted:
            continue
        if vae is None:
            raise ValueError(f"VAE {name} is for a pipeline with a VAE, and a {type(pipe).__name__} has none")
        try:
            getattr(vae, f"enable_{name}")()
        except (AttributeError, NotImplementedError):
            raise ValueError(
                f"the VAE of this model, a {type(vae).__name__}, does not support {name}. Remove this option"
            ) from None


def vae_notes(pipe: Any) -> dict[str, bool]:
    """What an image's metadata says of the VAE: nothing where it decodes an image as a whole."""
    return {"vae_tiling": True} if getattr(getattr(pipe, "vae", None), "use_tiling", False) is True else {}
