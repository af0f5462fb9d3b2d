"""Combines the trained parts into a standard diffusers folder in half precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from training.unet import build_scheduler, load_unet

MOST_BYTES = 16_000_000


def export(folder: Path, target: Path) -> int:
    """Write the pipeline to ``target``, keeping a model card there; returns its size in bytes."""
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae").half(),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder").half(),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=load_unet(folder).half(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    fresh = folder / "export"
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.save_pretrained(fresh, safe_serialization=True)
    _save_vocabulary(fresh / "tokenizer")
    for part in ("unet", "vae", "text_encoder"):
        _tidy(fresh / part / "config.json")
    if (target / "README.md").exists():
        shutil.copy(target / "README.md", fresh / "README.md")
    for path in fresh.rglob("*.safetensors"):
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in fresh.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise ValueError(f"the model takes {size} bytes, more than {MOST_BYTES}")

    target.parent.mkdir(parents=True, exist_ok=True)
    staged, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    for leftover in (staged, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(fresh, staged)
    if target.exists():
        target.rename(old)
    staged.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return size


def _tidy(config: Path) -> None:
    """Forget the folder of origin; load the text encoder in single precision, as the U-Net does."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("_name_or_path", None)
    if "dtype" in settings:
        settings["dtype"] = "float32"
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _save_vocabulary(folder: Path) -> None:
    """Write the tokenizer's vocabulary and merges also as older readers of CLIP expect them."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    vocabulary = json.dumps(model["vocab"], ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    lines = ["#version: 0.2", *merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
