"""Configurations of published pipelines, as the folders that diffusers loads them from: for checkpoints."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from inspect import Parameter, signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from DeepCache.models.architectures import ARCHITECTURES, Architecture, Component, changed
from DeepCache.models.registry import MODELS, named_model
from DeepCache.models.sources import INDEX, ask_hub, is_repository, suggestion

__all__ = ["CONFIGURATIONS", "configuration_folder", "write_tokenizer", "written"]

_CLIP_VOCABULARY = 49408
_START, _END, _END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"


def _inpainting(model: Architecture, name: str, pipeline: str, scheduler: Component) -> Architecture:
    """A model whose U-Net also gets the mask and the masked image: 9 channels instead of 4."""
    return replace(
        changed(model, unet={"in_channels": 9}),
        name=name,
        summary=f"{model.summary.removesuffix('.')}, for inpainting.",
        pipeline=pipeline,
        scheduler=scheduler,
    )


_SD15, _SD21, _SDXL = (ARCHITECTURES[name] for name in ("sd15", "sd21", "sdxl"))
_SD21_BASE = replace(
    changed(_SD21, unet={"sample_size": 64, "upcast_attention": False}, vae={"sample_size": 512}),
    name="sd21-base",
    summary="Stable Diffusion 2.1 base, for 512 pixels.",
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
"""The configurations of checkpoints, by name."""


@contextmanager
def configuration_folder(config: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder with the configurations of a pipeline, as diffusers saves them: of a name, a folder, or a repository of
    the hub, of which only the configurations are downloaded."""
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
    elif is_repository(shown):
        options = ask_hub(shown, INDEX, "not a diffusers pipeline")
        from huggingface_hub import snapshot_download

        yield Path(snapshot_download(shown, allow_patterns=["*.json", "*/*.json", "*/*.txt"], **options))
    else:
        names = ", ".join(known for known in CONFIGURATIONS if not known.endswith("-tiny"))
        raise FileNotFoundError(
            f"there is no configuration {shown!r}{suggestion(shown, [*CONFIGURATIONS, *MODELS])}; give a name "
            f"({names}), a folder, or owner/name on the hub"
        )


@contextmanager
def written(architecture: Architecture) -> Iterator[Path]:
    """A temporary folder with the configurations of an architecture."""
    import diffusers

    with TemporaryDirectory(prefix="deepcache-configuration-") as temporary:
        folder = Path(temporary)
        index: dict[str, Any] = {"_class_name": architecture.pipeline, "_diffusers_version": diffusers.__version__}
        index |= {name: [None, None] if value is None else value for name, value in architecture.options.items()}
        for name, component in {**architecture.networks, "scheduler": architecture.scheduler}.items():
            library, config = _as_saved(component)
            index[name] = [library, component.kind]
            (folder / name).mkdir()
            _write(folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json"), config)
            if name.startswith("text_encoder"):
                tokenizer = name.replace("text_encoder", "tokenizer")
                index[tokenizer] = ["transformers", "CLIPTokenizer"]
                _write_tokenizer(folder / tokenizer, component)
        _write(folder / INDEX, index)
        yield folder


def _write(path: Path, config: dict[str, Any]) -> None:
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _as_saved(component: Component) -> tuple[str, dict[str, Any]]:
    """The library of a component, and its configuration as that library saves it."""
    import diffusers
    import transformers

    if hasattr(diffusers, component.kind):
        # With the defaults: diffusers reads the file when it converts weights.
        parameters = signature(getattr(diffusers, component.kind).__init__).parameters.values()
        defaults = {each.name: each.default for each in parameters if each.default is not Parameter.empty}
        return "diffusers", {"_class_name": component.kind, **defaults, **component.config}
    model_type = getattr(transformers, component.kind).config_class.model_type
    return "transformers", {"architectures": [component.kind], "model_type": model_type, **component.config}


def _write_tokenizer(folder: Path, text_encoder: Component) -> None:
    if text_encoder.config["vocab_size"] == _CLIP_VOCABULARY:
        # The encoders of OpenCLIP were trained with zeros after the end of the text.
        write_tokenizer(folder, **({"pad": "!"} if text_encoder.config["hidden_act"] == "gelu" else {}))
        return
    # The tiny architectures have the vocabulary of the bundled model.
    shutil.copytree(MODELS["shapes"].folder / "tokenizer", folder)
    path = folder / "tokenizer_config.json"
    _write(path, json.loads(path.read_text(encoding="utf-8")) | {"model_max_length": 77, "max_length": 77})


def write_tokenizer(folder: Path, *, pad: str = _END) -> None:
    """Writes the tokenizer of CLIP to a new folder, as transformers saves it; `pad` pads prompts to 77 tokens."""
    data = (files("DeepCache.models") / "clip" / "merges.txt.gz").read_bytes()
    merges = gzip.decompress(data).decode("utf-8").splitlines()
    # A character per byte: the printable ones of Latin-1 stand for themselves and come first.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters = [*map(chr, printable), *(chr(256 + number) for number in range(256 - len(printable)))]
    endings = [character + _END_OF_WORD for character in characters]
    symbols = [*characters, *endings, *(merge.replace(" ", "") for merge in merges), _START, _END]
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": _START,
        "eos_token": _END,
        "unk_token": _END,
        "pad_token": pad,
    }
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
