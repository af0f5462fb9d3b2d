"""Loads pipelines: bundled models, architectures, folders, checkpoints and repositories of the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from DeepCache.extras import require
from DeepCache.models.architectures import ARCHITECTURES, architecture_names, random_pipeline
from DeepCache.models.checkpoint import checkpoint_file, load_checkpoint
from DeepCache.models.device import resolve_device, resolve_dtype, warn_of_emulation
from DeepCache.models.memory import load_to_offload, offload_pipeline
from DeepCache.models.registry import MODELS, named_model
from DeepCache.models.schedulers import set_scheduler
from DeepCache.models.sources import INDEX, ask_hub, is_repository, read_index, suggestion, why_not_loaded
from DeepCache.models.vae import load_vae, own_vae

if TYPE_CHECKING:
    import torch
    from diffusers.models.modeling_utils import ModelMixin
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    class LoadedPipeline(DiffusionPipeline):
        """A pipeline that can be called, which the base class of diffusers does not declare."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


__all__ = ["load_pipeline", "locate", "recommended_guidance"]


def load_pipeline(
    model: str | os.PathLike[str] = "shapes",
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    vae: str | os.PathLike[str] | ModelMixin | None = None,
    offload: str | None = None,
    config: str | os.PathLike[str] | None = None,
    scheduler: str | None = None,
    progress_bar: bool = True,
    **options: Any,
) -> LoadedPipeline:
    """Loads a pipeline that DeepCache can accelerate. Names, folders and files need no network.

    Args:
        model (`str` or path, defaults to `"shapes"`):
            A name in `DeepCache.models.MODELS`, a folder that a pipeline was saved to, a name in
            `DeepCache.models.ARCHITECTURES` (with random weights, for measurements), a repository of the hub as
            `owner/name`, or a checkpoint: one `.safetensors` file with U-Net, text encoder and VAE in the original
            layout, of Stable Diffusion 1 or 2, SDXL, its refiner, or inpainting. The first match is loaded; write
            `./shapes` for a folder of that name.
        dtype (`torch.dtype` or `str`, *optional*):
            `float32`, `float16` or `bfloat16`. By default, and with `"auto"`, `float16` on a GPU with CUDA and
            `float32` elsewhere. On a CPU, `bfloat16` is several times faster on processors with AMX, and many times
            slower on those without instructions for it, which raises a warning; `deepcache env` shows the support.
            `float16` is not faster on a CPU.
        device (`torch.device` or `str`, *optional*):
            `cuda`, `cuda:1`, `mps`, `cpu`, …. By default, and with `"auto"`, the first available of `cuda`, `mps` and
            `cpu`.
        vae (`str`, path or model, *optional*):
            An autoencoder that replaces the one of the pipeline: a folder that a VAE of diffusers was saved to, a
            repository of the hub as `owner/name`, or a loaded model. One such as `madebyollin/taesd`, an
            `AutoencoderTiny` for Stable Diffusion 1 and 2, decodes many times faster than the VAE that it was distilled
            from, with some loss of detail. It must be trained on the latents of the model: for Stable Diffusion XL use
            `madebyollin/taesdxl`.
        offload (`str`, *optional*):
            `"model"`, `"group"` or `"sequential"`: the weights stay on the CPU and are moved to the device when they
            are needed, see `offload_pipeline`.
        config (`str` or path, *optional*):
            The configuration of a checkpoint: a name in `DeepCache.models.CONFIGURATIONS`, a folder with the
            configurations of a pipeline of diffusers (without weights), or a repository of the hub as `owner/name`. By
            default it is that of the published model with the same layers. Checkpoints of Stable Diffusion 2 are
            assumed to be for 768 pixels, `"sd21"`, unless their metadata says that they predict the noise: use
            `"sd21-base"` for those for 512 pixels.
        scheduler (`str`, *optional*):
            The scheduler, as `set_scheduler` accepts it; by default that of the model.
        progress_bar (`bool`, defaults to `True`):
            Whether a pipeline call shows a progress bar.
        options:
            Further arguments of `DiffusionPipeline.from_pretrained`, such as `variant="fp16"`, or of `from_single_file`
            for a checkpoint. An architecture has none.

    Returns:
        The pipeline, on the device; with `offload`, on the CPU until it is called.

    Raises:
        FileNotFoundError: the folder or file does not exist or has no pipeline, or the same for the VAE or the
            configuration.
        OSError: the hub has no such repository, or cannot be reached.
        ValueError: the name, dtype, device or scheduler is unknown, the device is not available, the VAE, scheduler or
            configuration does not fit the model, an architecture has options, or a model other than a checkpoint has a
            configuration.
        TypeError: the pipeline has no U-Net, or one that DeepCache does not support; the file is not a checkpoint of
            one; the VAE is not a VAE.
        ImportError: a package of `DeepCache[cli]` is missing, or too old.

    Example:
        >>> pipe = load_pipeline("shapes", device="cpu")
        >>> image = pipe("a red circle", num_inference_steps=5).images[0]
        >>> image.size
        (64, 64)
    """
    require("cli", "load_pipeline")
    if offload is None:
        found_device = resolve_device(device)
        found_dtype = resolve_dtype(dtype, found_device)
        if not _is_architecture(model):
            warn_of_emulation(found_dtype, found_device)
        pipe = _load(os.fspath(model), found_dtype, found_device, vae, config, options)
    else:
        pipe = load_to_offload(model, offload, dtype=dtype, device=device, vae=vae, config=config, **options)
    if not progress_bar:
        pipe.set_progress_bar_config(disable=True)
    if scheduler is not None:
        set_scheduler(pipe, scheduler)
    if offload is not None:
        offload_pipeline(pipe, offload, device)
    return cast("LoadedPipeline", pipe)


def _is_architecture(model: str | os.PathLike[str]) -> bool:
    return os.fspath(model) in ARCHITECTURES and not Path(model).is_dir()


def _load(shown: str, dtype: torch.dtype, device: torch.device, vae: Any, config: Any, options: dict[str, Any]) -> Any:
    checkpoint = checkpoint_file(shown, config)
    if vae is not None and not isinstance(vae, (str, os.PathLike)):
        options["vae"], vae = vae, None
    if _is_architecture(shown):
        if options:
            raise ValueError(
                f"{shown!r} is built with random weights and has no options, got {', '.join(options)}. Remove them"
            )
        built: Any = random_pipeline(shown, dtype=dtype, device=device)
        if vae is not None:
            own = {"_class_name": type(built.vae).__name__, **built.vae.config}
            built.register_modules(vae=load_vae(vae, own, dtype).to(device))
        return built
    if checkpoint is None:
        pipe = _load_saved(shown, dtype, vae, options)
    else:
        pipe = load_checkpoint(checkpoint, shown, config=config, dtype=dtype, vae=vae, options=options)

    from DeepCache.engine.layouts import skip_branches
    from DeepCache.engine.unets import unets_of

    for unet in unets_of(pipe).values():
        skip_branches(unet)
    return pipe.to(device)


def _load_saved(shown: str, dtype: torch.dtype, vae: str | os.PathLike[str] | None, options: dict[str, Any]) -> Any:
    """A pipeline in a folder or on the hub."""
    source, found_options = locate(shown)
    components = read_index(shown, source, found_options)

    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from huggingface_hub import try_to_load_from_cache
    from safetensors import SafetensorError

    if vae is not None:
        options["vae"] = load_vae(vae, own_vae(shown, source, found_options, components), dtype)
    try:
        return DiffusionPipeline.from_pretrained(source, **{"dtype": dtype, **found_options, **options})
    except (OSError, ValueError, SafetensorError) as error:
        folder = Path(source) if Path(source).is_dir() else None
        if folder is None and isinstance(index := try_to_load_from_cache(source, INDEX), str):
            folder = Path(index).parent
        raise OSError(f"cannot load the model {shown!r}: {why_not_loaded(folder, error)}") from error


def recommended_guidance(model: str | os.PathLike[str], pipe: Any) -> float | None:
    """The recommended guidance scale of a model.

    Args:
        model: the model, as `load_pipeline` accepts it.
        pipe: its pipeline.

    Returns:
        That of a bundled model, else the default of the pipeline's class; None if the pipeline has no guidance scale.
    """
    from inspect import signature

    named = named_model(os.fspath(model))
    if named is not None:
        return named.guidance
    parameter = signature(pipe.__call__).parameters.get("guidance_scale")
    if parameter is None or not isinstance(parameter.default, (int, float)):
        return None
    return float(parameter.default)


def locate(model: str) -> tuple[str, dict[str, Any]]:
    """The folder or repository of a model, and the options to load it with."""
    named = named_model(model)
    if named is not None:
        if not named.folder.is_dir():
            raise FileNotFoundError(
                f"the model {model!r} is missing from this installation of DeepCache (looked in {named.folder}); "
                "install the package again"
            )
        return str(named.folder), {}
    if not model:
        raise ValueError("the model has no name; give a name, a folder, or owner/name on the hub")
    path = Path(model).expanduser()
    if path.is_dir():
        return str(path), {}
    if is_repository(model):
        return model, ask_hub(model, INDEX, "not a diffusers pipeline")
    if "/" in model or "\\" in model or model.startswith((".", "~")):
        raise FileNotFoundError(f"there is no model folder {model!r}")
    raise ValueError(
        f"there is no model {model!r}{suggestion(model, [*MODELS, *ARCHITECTURES])}; give a name ({', '.join(MODELS)}; "
        f"with random weights {architecture_names()}), a folder, or owner/name on the hub"
    )
