"""`load_pipeline`: a pipeline by name, from a folder or from the hub."""

from __future__ import annotations

import json
import os
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from DeepCache.extras import require
from DeepCache.models.architectures import ARCHITECTURES, architecture_names, random_pipeline
from DeepCache.models.damage import why_not_loaded
from DeepCache.models.device import resolve_device, resolve_dtype, warn_of_emulation
from DeepCache.models.hub import ask_hub
from DeepCache.models.memory import load_to_offload, offload_pipeline
from DeepCache.models.registry import MODELS, named_model
from DeepCache.models.vae import load_vae, own_vae

if TYPE_CHECKING:
    import torch
    from diffusers.models.modeling_utils import ModelMixin
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    class LoadedPipeline(DiffusionPipeline):
        """Every pipeline can be called, which diffusers' base class does not say."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


__all__ = ["load_pipeline", "locate", "recommended_guidance", "refuse_unless_pipeline"]

_INDEX = "model_index.json"
# Denoisers with skip connections that no pipeline calls its U-Net.
_DENOISERS = ("HunyuanDiT2DModel", "StableCascadeUNet", "WuerstchenDiffNeXt")


def load_pipeline(
    model: str | os.PathLike[str] = "shapes",
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    vae: str | os.PathLike[str] | ModelMixin | None = None,
    offload: str | None = None,
    **options: Any,
) -> LoadedPipeline:
    """Loads a pipeline that DeepCache can accelerate.

    No network is touched for a name or for a folder.

    Args:
        model (`str` or path, defaults to `"shapes"`):
            A name in `DeepCache.models.MODELS`, a folder that a pipeline was saved to, a name in
            `DeepCache.models.ARCHITECTURES`, or a repository of the hub as `owner/name`. The first
            of these that fits is taken; write `./shapes` for a folder of that name. The weights
            of an architecture are random: it is there to be measured, and draws noise.
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
        options:
            Handed to `DiffusionPipeline.from_pretrained`, `variant="fp16"` for one. An architecture
            takes none.

    Returns:
        The pipeline, on the device; with `offload`, on the CPU until it is called.

    Raises:
        FileNotFoundError: the folder does not exist or holds no pipeline, or the same of the VAE.
        OSError: the hub has no such repository, or cannot be reached.
        ValueError: the name, dtype or device is unknown, the device is not in this machine, the
            VAE does not fit the model, or there are options for an architecture.
        TypeError: the pipeline has no U-Net, or one that DeepCache cannot work on; the VAE is not one.
        ImportError: what `DeepCache[cli]` brings is missing, or too old.

    Example:
        >>> pipe = load_pipeline("shapes", device="cpu")
        >>> image = pipe("a red circle", num_inference_steps=5).images[0]
        >>> image.size
        (64, 64)
    """
    require("cli", "load_pipeline")
    if offload is not None:
        offloaded = load_to_offload(model, offload, dtype=dtype, device=device, vae=vae, **options)
        offload_pipeline(offloaded, offload, device)
        return cast("LoadedPipeline", offloaded)
    found_device = resolve_device(device)
    found_dtype = resolve_dtype(dtype, found_device)
    shown = os.fspath(model)
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
    source, found_options = locate(shown)
    components = refuse_unless_pipeline(model, source, found_options)

    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from safetensors import SafetensorError

    from DeepCache.engine.layouts import skip_branches
    from DeepCache.engine.unets import unets_of

    if vae is not None:
        options["vae"] = load_vae(vae, own_vae(shown, source, found_options, components), found_dtype)
    try:
        pipe = DiffusionPipeline.from_pretrained(source, **{"dtype": found_dtype, **found_options, **options})
    except (OSError, ValueError, SafetensorError) as error:
        raise OSError(f"cannot load the model {shown!r}: {why_not_loaded(_folder_of(source), error)}") from error
    for unet in unets_of(pipe).values():
        skip_branches(unet)
    return cast("LoadedPipeline", pipe.to(found_device))


def _folder_of(source: str) -> Path | None:
    """Where the files of a pipeline are on this machine."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(source, _INDEX)
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
    if path.exists():
        raise ValueError(f"the model {model!r} is a file; give the folder that holds {_INDEX}")
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
    return model, ask_hub(model, _INDEX, "no diffusers pipeline")


def refuse_unless_pipeline(model: str | os.PathLike[str], source: str, options: dict[str, Any]) -> dict[str, Any]:
    """Refuses what is no pipeline with a U-Net before any weights are read.

    Returns:
        What the index says of each component.
    """
    shown = os.fspath(model)
    if Path(source).is_dir():
        index = Path(source) / _INDEX
        if not index.is_file():
            raise FileNotFoundError(f"the folder {shown!r} is no diffusers pipeline: it has no {_INDEX}")
    else:
        from huggingface_hub import hf_hub_download

        index = Path(hf_hub_download(source, _INDEX, **options))
    try:
        components = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the {_INDEX} of {shown!r} is no JSON: {error}") from None
    except OSError as error:
        raise OSError(f"cannot read the {_INDEX} of {shown!r}: {error.strerror or error}") from error
    if not isinstance(components, dict) or "_class_name" not in components:
        raise ValueError(f"the {_INDEX} of {shown!r} names no pipeline class")
    _check_class(shown, components["_class_name"])
    unet = components.get("unet")
    classes = [component[-1] for component in components.values() if isinstance(component, list)]
    if (not isinstance(unet, list) or unet[0] is None) and not any(name in _DENOISERS for name in classes):
        instead = ", which has a transformer instead" if "transformer" in components else ""
        raise TypeError(
            f"DeepCache needs a pipeline with a U-Net, and {shown!r} is a {components['_class_name']}{instead}"
        )
    return components


def _check_class(model: str, class_name: str | list[str]) -> None:
    import diffusers

    # A list names a class that comes with the model.
    if isinstance(class_name, str) and not hasattr(diffusers, class_name):
        raise ValueError(
            f"the model {model!r} is a {class_name}, which diffusers {diffusers.__version__} does not have"
        )
