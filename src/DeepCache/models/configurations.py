"""Configurations of published pipelines, as the folders that diffusers loads them from: for weights that come alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from inspect import Parameter, signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from DeepCache.models.architectures import ARCHITECTURES, Architecture, Component
from DeepCache.models.clip_vocabulary import write_tokenizer
from DeepCache.models.registry import MODELS, named_model
from DeepCache.models.sources import INDEX, ask_hub

__all__ = ["CONFIGURATIONS", "configuration_folder", "written"]

_CLIP_VOCABULARY = 49408


def _with_unet(model: Architecture, **config: Any) -> dict[str, Component]:
    """The networks of a model with another configuration of its U-Net."""
    unet = model.networks["unet"]
    return model.networks | {"unet": replace(unet, config=unet.config | config)}


def _inpainting(model: Architecture, name: str, pipeline: str, scheduler: Component) -> Architecture:
    """A model whose U-Net also takes the mask and the masked image: 9 channels instead of 4."""
    return replace(
        model,
        name=name,
        summary=f"{model.summary.removesuffix('.')}, for inpainting.",
        pipeline=pipeline,
        networks=_with_unet(model, in_channels=9),
        scheduler=scheduler,
    )


_SD15, _SD21, _SDXL = (ARCHITECTURES[name] for name in ("sd15", "sd21", "sdxl"))
_SD21_BASE = replace(
    _SD21,
    name="sd21-base",
    summary="Stable Diffusion 2.1 base, that for 512 pixels.",
    networks=_with_unet(_SD21, sample_size=64, upcast_attention=False)
    | {"vae": replace(_SD21.networks["vae"], config=_SD21.networks["vae"].config | {"sample_size": 512})},
    scheduler=_SD15.scheduler,
    size=(512, 512),
)
_DDIM = replace(_SD21.scheduler, config=_SD21.scheduler.config | {"prediction_type": "epsilon"})

CONFIGURATIONS = {
    each.name: each
    for each in (
        *(architecture for name, architecture in ARCHITECTURES.items() if not name.startswith("svd")),
        _SD21_BASE,
        _inpainting(_SD15, "sd15-inpainting", "StableDiffusionInpaintPipeline", _DDIM),
        _inpainting(_SD21_BASE, "sd2-inpainting", "StableDiffusionInpaintPipeline", _SD21_BASE.scheduler),
        _inpainting(_SDXL, "sdxl-inpainting", "StableDiffusionXLInpaintPipeline", _SDXL.scheduler),
    )
}
"""The configurations that a checkpoint in one file can be loaded with, by name."""


@contextmanager
def configuration_folder(config: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder with the configurations of a pipeline, as diffusers saves them.

    Args:
        config: a name in `CONFIGURATIONS` or of a model in the package, a folder, or a repository of the hub as
            `owner/name`, of which only the configurations are downloaded.

    Raises:
        FileNotFoundError: there is no such folder, or it has no index.
        OSError: the hub has no such repository, or cannot be reached.
        ValueError: the name is unknown.
    """
    shown = os.fspath(config)
    path = Path(shown).expanduser()
    if shown and path.is_dir():
        if not (path / INDEX).is_file():
            raise FileNotFoundError(f"the folder {shown!r} is not the configuration of a pipeline: it has no {INDEX}")
        yield path
    elif (named := named_model(shown)) is not None:
        yield named.folder
    elif shown in CONFIGURATIONS:
        with written(CONFIGURATIONS[shown]) as folder:
            yield folder
    else:
        yield _downloaded(shown)


@contextmanager
def written(architecture: Architecture) -> Iterator[Path]:
    """A temporary folder with the configurations of an architecture."""
    with TemporaryDirectory(prefix="deepcache-configuration-") as name:
        folder = Path(name)
        _write(folder, architecture)
        yield folder


def _downloaded(name: str) -> Path:
    if name.startswith((".", "~", "/")) or name.count("/") != 1 or "\\" in name:
        near = get_close_matches(name, [*CONFIGURATIONS, *MODELS], n=1)
        names = ", ".join(known for known in CONFIGURATIONS if not known.endswith("-tiny"))
        raise FileNotFoundError(
            f"there is no configuration {name!r}"
            + (f" (did you mean {near[0]}?)" if near else "")
            + f"; give a name ({names}), a folder, or owner/name on the hub"
        )
    options = ask_hub(name, INDEX, "not a diffusers pipeline")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=["*.json", "*/*.json", "*/*.txt"], **options))


def _write(folder: Path, architecture: Architecture) -> None:
    import diffusers

    index: dict[str, Any] = {"_class_name": architecture.pipeline, "_diffusers_version": diffusers.__version__}
    index |= {name: [None, None] if value is None else value for name, value in architecture.options.items()}
    for name, component in {**architecture.networks, "scheduler": architecture.scheduler}.items():
        library, config = _as_saved(component)
        index[name] = [library, component.kind]
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (folder / name).mkdir()
        (folder / name / file).write_text(json.dumps(config, indent=2), encoding="utf-8")
        if name.startswith("text_encoder"):
            tokenizer = name.replace("text_encoder", "tokenizer")
            index[tokenizer] = ["transformers", "CLIPTokenizer"]
            _write_tokenizer(folder / tokenizer, component)
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _as_saved(component: Component) -> tuple[str, dict[str, Any]]:
    """The library of a component, and its configuration as that library saves it."""
    import diffusers
    import transformers

    if hasattr(diffusers, component.kind):
        # In full: diffusers converts weights by what is in the file.
        parameters = signature(getattr(diffusers, component.kind).__init__).parameters.values()
        defaults = {each.name: each.default for each in parameters if each.default is not Parameter.empty}
        return "diffusers", {"_class_name": component.kind, **defaults, **component.config}
    kind = getattr(transformers, component.kind)
    return "transformers", {
        "architectures": [component.kind],
        "model_type": kind.config_class.model_type,
        **component.config,
    }


def _write_tokenizer(folder: Path, text_encoder: Component) -> None:
    if text_encoder.config["vocab_size"] != _CLIP_VOCABULARY:
        # The tiny ones have the vocabulary of the bundled model.
        shutil.copytree(MODELS["shapes"].folder / "tokenizer", folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        text = json.dumps(settings | {"model_max_length": 77, "max_length": 77})
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
        return
    # As published: the encoders of OpenCLIP were trained with zeros after the end of the text.
    openclip = text_encoder.config["hidden_act"] == "gelu"
    write_tokenizer(folder, **({"pad": "!"} if openclip else {}))
