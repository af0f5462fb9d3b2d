"""The index of a pipeline's components: whether it is that of a pipeline with a U-Net."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["INDEX", "refuse_unless_pipeline"]

INDEX = "model_index.json"
# Denoisers with skip connections that no pipeline calls its U-Net.
_DENOISERS = ("HunyuanDiT2DModel", "StableCascadeUNet", "WuerstchenDiffNeXt")


def refuse_unless_pipeline(model: str | os.PathLike[str], source: str, options: dict[str, Any]) -> dict[str, Any]:
    """Refuses what is no pipeline with a U-Net before any weights are read.

    Returns:
        What the index says of each component.
    """
    shown = os.fspath(model)
    if Path(source).is_dir():
        index = Path(source) / INDEX
        if not index.is_file():
            raise FileNotFoundError(f"the folder {shown!r} is no diffusers pipeline: it has no {INDEX}")
    else:
        from huggingface_hub import hf_hub_download

        index = Path(hf_hub_download(source, INDEX, **options))
    try:
        components = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the {INDEX} of {shown!r} is no JSON: {error}") from None
    except OSError as error:
        raise OSError(f"cannot read the {INDEX} of {shown!r}: {error.strerror or error}") from error
    if not isinstance(components, dict) or "_class_name" not in components:
        raise ValueError(f"the {INDEX} of {shown!r} names no pipeline class")
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
