"""`load_pipeline`: a pipeline by name, from a folder or from the hub."""

from __future__ import annotations

import json
import os
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from DeepCache.models.registry import MODELS, named_model

if TYPE_CHECKING:
    import torch
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

__all__ = ["load_pipeline", "recommended_guidance", "resolve_device"]

_INDEX = "model_index.json"
_DTYPES = {
    "float32": "float32",
    "fp32": "float32",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
}
_DEVICES = ("cpu", "cuda", "mps", "xpu")
_HUB_SECONDS = 10.0


def load_pipeline(
    model: str | os.PathLike[str] = "shapes",
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> DiffusionPipeline:
    """Loads a pipeline that DeepCache can accelerate.

    No network is touched for a model that comes with the package or for a folder.

    Args:
        model (`str` or path, defaults to `"shapes"`):
            A name in `DeepCache.models.MODELS`, a folder that a pipeline was saved to, or a
            repository of the hub as `owner/name`. A name goes before a folder that is called the
            same; write `./shapes` for the folder.
        dtype (`torch.dtype` or `str`, *optional*):
            `float32`, `float16` or `bfloat16`. By default, and with `"auto"`, `float16` on a GPU
            with CUDA and `float32` elsewhere.
        device (`torch.device` or `str`, *optional*):
            `cuda`, `cuda:1`, `mps`, `cpu`, …. By default, and with `"auto"`, the first of `cuda`,
            `mps` and `cpu` that is there.
        options:
            Handed to `DiffusionPipeline.from_pretrained`, `variant="fp16"` for one.

    Returns:
        The pipeline, on the device.

    Raises:
        FileNotFoundError: the folder does not exist or holds no pipeline.
        OSError: the hub has no such repository, or cannot be reached.
        ValueError: the name, dtype or device is unknown, or the device is not in this machine.
        TypeError: the pipeline has no U-Net, or one that DeepCache cannot work on.

    Example:
        >>> pipe = load_pipeline("shapes", device="cpu")
        >>> image = pipe("a red circle", num_inference_steps=5).images[0]
        >>> image.size
        (64, 64)
    """
    found_device = resolve_device(device)
    found_dtype = _resolve_dtype(dtype, found_device)
    source, found_options = _locate(os.fspath(model))
    _check_index(model, source, found_options)

    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    from DeepCache.engine.branches import skip_branches
    from DeepCache.engine.unets import unets_of

    try:
        pipe = DiffusionPipeline.from_pretrained(source, **{"dtype": found_dtype, **found_options, **options})
    except (OSError, ValueError) as error:
        raise OSError(f"cannot load the model {os.fspath(model)!r}: {error}") from error
    for unet in unets_of(pipe).values():
        skip_branches(unet)
    return pipe.to(found_device)


def resolve_device(device: torch.device | str | None = None) -> torch.device:
    """The device of that name, or the best there is.

    Args:
        device: a device or its name; None or `"auto"` for the first of CUDA, MPS and the CPU.

    Raises:
        ValueError: the name is that of no device, or the machine has none of that kind.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    import torch

    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in _DEVICES:
        raise ValueError(
            f"device must be auto, {', '.join(_DEVICES)} or one with a number such as cuda:1, got {str(device)!r}"
        )
    present = {
        "cpu": lambda: 1,
        "cuda": torch.cuda.device_count,
        "mps": lambda: int(torch.backends.mps.is_available()),
        "xpu": torch.xpu.device_count,
    }[found.type]()
    if present == 0:
        raise ValueError(
            f"device {str(device)!r} was asked for, but PyTorch finds no such device in this machine; use auto or cpu"
        )
    if (found.index or 0) >= present:
        raise ValueError(
            f"device {str(device)!r} was asked for, but there is only {found.type}:0"
            + (f" to {found.type}:{present - 1}" if present > 1 else "")
        )
    return found


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


def _resolve_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None or dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    name = _DTYPES.get(dtype.lower().removeprefix("torch."))
    if name is None:
        raise ValueError(f"dtype must be auto, float32, float16 or bfloat16, got {dtype!r}")
    found: torch.dtype = getattr(torch, name)
    return found


def _locate(model: str) -> tuple[str, dict[str, Any]]:
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
        near = get_close_matches(model, MODELS, n=1)
        raise ValueError(
            f"there is no model {model!r}"
            + (f" (did you mean {near[0]}?)" if near else "")
            + f"; give a name ({', '.join(MODELS)}), a folder, or owner/name on the hub"
        )
    return model, _ask_hub(model)


def _ask_hub(model: str) -> dict[str, Any]:
    """The options to load a repository of the hub with, after a look at whether it is there."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    # One question and no retries: a person who is offline should not wait for an answer.
    try:
        files = HfApi().model_info(model, timeout=_HUB_SECONDS).siblings or []
    except HFValidationError as error:
        raise ValueError(f"{model!r} is neither a folder nor a hub id: {error}") from error
    except GatedRepoError as error:
        raise OSError(
            f"the hub gives {model!r} only to people who accepted its terms: accept them on its "
            f"page, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise OSError(
            f"there is no folder {model!r}, and no public model of that name on the hub; for a "
            f"private one, log in with `hf auth login`"
        ) from error
    # Which error tells of a missing connection depends on the HTTP library below the hub's.
    except Exception as error:
        if isinstance(try_to_load_from_cache(model, _INDEX), str):
            return {"local_files_only": True}
        raise OSError(
            f"there is no folder {model!r}, and the hub cannot be asked for it "
            f"({_first_line(error)}); connect to the network, or give a folder"
        ) from error
    if all(file.rfilename != _INDEX for file in files):
        raise ValueError(f"the hub's {model!r} is no diffusers pipeline: it has no {_INDEX}")
    return {}


def _check_index(model: str | os.PathLike[str], source: str, options: dict[str, Any]) -> None:
    """Refuses what is no pipeline with a U-Net before any weights are read."""
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
    except ValueError as error:
        raise ValueError(f"the {_INDEX} of {shown!r} is no JSON: {error}") from error
    if not isinstance(components, dict) or "_class_name" not in components:
        raise ValueError(f"the {_INDEX} of {shown!r} names no pipeline class")
    _check_class(shown, components["_class_name"])
    unet = components.get("unet")
    if not isinstance(unet, list) or unet[0] is None:
        instead = ", which has a transformer instead" if "transformer" in components else ""
        raise TypeError(
            f"DeepCache needs a pipeline with a U-Net, and {shown!r} is a {components['_class_name']}{instead}"
        )


def _check_class(model: str, class_name: str | list[str]) -> None:
    import diffusers

    # A list names a class that comes with the model.
    if isinstance(class_name, str) and not hasattr(diffusers, class_name):
        raise ValueError(
            f"the model {model!r} is a {class_name}, which diffusers {diffusers.__version__} does not have"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
