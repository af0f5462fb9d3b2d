"""`load_pipeline`: a pipeline by name, from a folder, from a file or from the hub."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from DeepCache.extras import require
from DeepCache.models.architectures import ARCHITECTURES, architecture_names, random_pipeline
from DeepCache.models.checkpoint import checkpoint_file, load_checkpoint
from DeepCache.models.damage import why_not_loaded
from DeepCache.models.device import resolve_device, resolve_dtype, warn_of_emulation
from DeepCache.models.hub import ask_hub
from DeepCache.models.memory import load_to_offload, offload_pipeline
from DeepCache.models.pipeline_index import INDEX, refuse_unless_pipeline
from DeepCache.models.registry import MODELS, named_model
from DeepCache.models.vae import load_vae, own_vae

if TYPE_CHECKING:
    import torch
    from diffusers.models.modeling_utils import ModelMixin
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    class LoadedPipeline(DiffusionPipeline):
        """Every pipeline can be called, which diffusers' base class does not say."""

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
    **options: Any,
) -> LoadedPipeline:
    """Loads a pipeline that DeepCache can accelerate.

    No network is touched for a name, a folder or a file.

    Args:
        model (`str` or path, defaults to `"shapes"`):
            A name in `DeepCache.models.MODELS`, a folder that a pipeline was saved to, a name in
            `DeepCache.models.ARCHITECTURES`, a repository of the hub as `owner/name`, or a checkpoint: one
            `.safetensors` file with U-Net, text encoder and VAE in the original layout, of Stable Diffusion 1 or 2,
            SDXL, its refiner, or inpainting. The first of these that fits is taken; write `./shapes` for a folder of
            that name. The weights of an architecture are random: it is there to be measured, and draws noise.
        dtype (`torch.dtype` or `str`, *optional*):
            `float32`, `float16` or `bfloat16`. By default, and with `"auto"`, `float16` on a GPU
            with CUDA and `float32` elsewhere. On a CPU, `bfloat16` is several times faster where the
            processor has AMX, and many times slower where it has no instructions for it, which is
            warned of; `deepcache env` shows what it has. `float16` gains nothing there.
        device (`torch.device` or `str`, *optional*):
            `cuda`, `cuda:1`, `mps`, `cpu`, …. By default, and with `"auto"`, the first of `cuda`,
            `mps` and `cpu` that is there.
        vae (`str` or path, *optional*):
            An autoencoder to use in place of the pipeline's own: a folder that a VAE of diffusers was saved to, or a
            repository of the hub as `owner/name`, of the class that its `config.json` names. One such as
            `madebyollin/taesd`, an `AutoencoderTiny` for Stable Diffusion 1 and 2, decodes many times faster than the
            VAE that it was distilled from, at some loss of detail. It must be made for the latents of the model:
            `madebyollin/taesdxl` is that for Stable Diffusion XL. A model that is loaded already is taken as it is.
        offload (`str`, *optional*):
            `"model"`, `"group"` or `"sequential"`: the weights stay on the CPU, and are moved to the device when they
            are needed, see `offload_pipeline`.
        config (`str` or path, *optional*):
            The configuration of a checkpoint: a name in `DeepCache.models.CONFIGURATIONS`, a folder with the
            configurations of a pipeline of diffusers (weights are not needed), or a repository of the hub as
            `owner/name`. By default it is that of the published model whose layers the checkpoint has. Checkpoints of
            Stable Diffusion 2 are taken for those for 768 pixels, `"sd21"`, unless the file says that it predicts the
            noise: give `"sd21-base"` for one for 512 pixels.
        options:
            Handed to `DiffusionPipeline.from_pretrained`, `variant="fp16"` for one, or for a checkpoint to
            `from_single_file`. An architecture takes none.

    Returns:
        The pipeline, on the device; with `offload`, on the CPU until it is called.

    Raises:
        FileNotFoundError: the folder or file does not exist or holds no pipeline, or the same of the VAE or the
            configuration.
        OSError: the hub has no such repository, or cannot be reached.
        ValueError: the name, dtype or device is unknown, the device is not in this machine, the
            VAE or the configuration does not fit the model, there are options for an architecture, or a configuration
            for what is not a checkpoint.
        TypeError: the pipeline has no U-Net, or one that DeepCache cannot work on; the file is not a checkpoint of one;
            the VAE is not one.
        ImportError: what `DeepCache[cli]` brings is missing, or too old.

    Example:
        >>> pipe = load_pipeline("shapes", device="cpu")
        >>> image = pipe("a red circle", num_inference_steps=5).images[0]
        >>> image.size
        (64, 64)
    """
    require("cli", "load_pipeline")
    if offload is not None:
        offloaded = load_to_offload(model, offload, dtype=dtype, device=device, vae=vae, config=config, **options)
        offload_pipeline(offloaded, offload, device)
        return cast("LoadedPipeline", offloaded)
    found_device = resolve_device(device)
    found_dtype = resolve_dtype(dtype, found_device)
    shown = os.fspath(model)
    checkpoint = checkpoint_file(shown, config)
    if vae is not None and not isinstance(vae, (str, os.PathLike)):
        options["vae"], vae = vae, None
    if shown in ARCHITECTURES and not Path(shown).is_dir():
        if options:
            raise ValueError(f"{shown!r} is built with random weights and takes no options, got {', '.join(options)}")
        built: Any = random_pipeline(shown, dtype=found_dtype, device=found_device)
        if vae is not None:
            own = {"_class_name": type(built.vae).__name__, **built.vae.config}
            built.register_modules(vae=load_vae(vae, own, found_dtype).to(found_device))
        return cast("LoadedPipeline", built)
    warn_of_emulation(found_dtype, found_device)
    if checkpoint is None:
        pipe = _load_saved(shown, dtype=found_dtype, vae=vae, options=options)
    else:
        pipe = load_checkpoint(checkpoint, shown, config=config, dtype=found_dtype, vae=vae, options=options)

    from DeepCache.engine.layouts import skip_branches
    from DeepCache.engine.unets import unets_of

    for unet in unets_of(pipe).values():
        skip_branches(unet)
    return cast("LoadedPipeline", pipe.to(found_device))


def _load_saved(shown: str, *, dtype: torch.dtype, vae: str | os.PathLike[str] | None, options: dict[str, Any]) -> Any:
    """A pipeline from a folder or from the hub."""
    source, found_options = locate(shown)
    components = refuse_unless_pipeline(shown, source, found_options)

    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from safetensors import SafetensorError

    if vae is not None:
        options["vae"] = load_vae(vae, own_vae(shown, source, found_options, components), dtype)
    try:
        return DiffusionPipeline.from_pretrained(source, **{"dtype": dtype, **found_options, **options})
    except (OSError, ValueError, SafetensorError) as error:
        raise OSError(f"cannot load the model {shown!r}: {why_not_loaded(_folder_of(source), error)}") from error


def _folder_of(source: str) -> Path | None:
    """Where the files of a pipeline are on this machine."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(source, INDEX)
    return Path(index).parent if isinstance(index, str) else None


def recommended_guidance(model: str | os.PathLike[str], pipe: Any) -> float | None:
    """The guidance scale to draw with where none is asked for.

    Args:
        model: what `load_pipeline` was given.
        pipe: the pipeline that it returned.

    Returns:
        What the registry says of a named model, else the default of the pipeline's class; None
        where the pipeline takes no guidance scale.
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
    """Where to load the model from, and the options that this needs."""
    named = named_model(model)
    if named is not None:
        if not named.folder.is_dir():
            raise FileNotFoundError(
                f"the model {model!r} is missing from this installation of DeepCache (looked in "
                f"{named.folder}); install the package again"
            )
        return str(named.folder), {}
    if not model:
        raise ValueError("the model has no name; give a name, a folder, or owner/name on the hub")
    path = Path(model).expanduser()
    if path.is_dir():
        return str(path), {}
    looks_like_a_path = model.startswith((".", "~", "/")) or model.count("/") > 1 or "\\" in model
    if looks_like_a_path:
        raise FileNotFoundError(f"there is no model folder {model!r}")
    if "/" not in model:
        near = get_close_matches(model, [*MODELS, *ARCHITECTURES], n=1)
        raise ValueError(
            f"there is no model {model!r}"
            + (f" (did you mean {near[0]}?)" if near else "")
            + f"; give a name ({', '.join(MODELS)}; with random weights {architecture_names()}), a folder, or "
            "owner/name on the hub"
        )
    return model, ask_hub(model, INDEX, "no diffusers pipeline")
