"""Loads and configures the pipeline of a generation run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from DeepCache.models.adapters import check_adapters, load_embeddings, load_loras
from DeepCache.models.loading import load_pipeline
from DeepCache.models.memory import check_offload, divide_vae, load_to_offload, offload_pipeline
from DeepCache.models.schedulers import set_scheduler
from DeepCache.runtime import device_for

if TYPE_CHECKING:
    import torch

    from DeepCache.generation.settings import GenerationSettings

__all__ = ["complete_pipeline", "load_base_pipeline", "prepare_pipeline"]


def prepare_pipeline(
    settings: GenerationSettings,
    *,
    device: torch.device | str = "auto",
    offload: str | None = None,
    vae_slicing: bool = False,
) -> Any:
    """Loads the pipeline of a generation run, with its scheduler, adapters, VAE, runtime and offloading.

    Args:
        settings (`GenerationSettings`):
            What to load.
        device (`torch.device` or `str`, defaults to `"auto"`):
            The device, as `load_pipeline` accepts it.
        offload (`str`, *optional*):
            Offloading of the weights, see `DeepCache.models.offload_pipeline`.
        vae_slicing (`bool`, defaults to `False`):
            Whether the VAE decodes the images of a batch one by one, see `DeepCache.models.divide_vae`.

    Raises:
        FileNotFoundError, OSError, TypeError, ValueError, ImportError: as `load_pipeline`, `set_scheduler`,
            `load_loras`, `load_embeddings`, `divide_vae`, `DeepCache.export.use_runtime` and `offload_pipeline`.

    Example:
        >>> from DeepCache.generation import GenerationSettings
        >>> pipe = prepare_pipeline(GenerationSettings(scheduler="euler"), device="cpu")
        >>> type(pipe.scheduler).__name__
        'EulerDiscreteScheduler'
    """
    pipe = load_base_pipeline(settings, device=device, offload=offload)
    complete_pipeline(pipe, settings, device=device, offload=offload, vae_slicing=vae_slicing)
    return pipe


def load_base_pipeline(
    settings: GenerationSettings, *, device: torch.device | str = "auto", offload: str | None = None
) -> Any:
    """The first half of `prepare_pipeline`: the model with its scheduler, before adapters change its weights."""
    check_offload(offload, settings.runtime)
    check_adapters(settings.loras, settings.embeddings)
    settings.inputs.check()
    options: dict[str, Any] = {"dtype": settings.dtype, "device": device_for(settings.runtime, device)}
    options |= {"vae": settings.vae, "config": settings.config}
    if offload is None:
        pipe: Any = load_pipeline(settings.model, **options)
    else:
        pipe = load_to_offload(settings.model, offload, **options)
    if settings.inputs:
        pipe = settings.inputs.pipeline(pipe)
    pipe.set_progress_bar_config(disable=True)
    if settings.scheduler is not None:
        set_scheduler(pipe, settings.scheduler)
    return pipe


def complete_pipeline(
    pipe: Any,
    settings: GenerationSettings,
    *,
    device: torch.device | str = "auto",
    offload: str | None = None,
    vae_slicing: bool = False,
    on_stage: Callable[[str], None] | None = None,
) -> None:
    """The second half of `prepare_pipeline`, in place: adapters, VAE, runtime (whose export `on_stage` follows) and
    offloading."""
    load_loras(pipe, settings.loras)
    load_embeddings(pipe, settings.embeddings)
    divide_vae(pipe, tiling=settings.vae_tiling, slicing=vae_slicing)
    if settings.runtime != "torch":
        from DeepCache.export import use_runtime

        use_runtime(pipe, settings.runtime, settings.cache, on_stage=on_stage)
    if offload is not None:
        offload_pipeline(pipe, offload, device_for(settings.runtime, device))
