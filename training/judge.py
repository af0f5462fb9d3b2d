"""Puts the trained recogniser into the package, in half precision, and measures how often it is right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from DeepCache.bench.provenance import provenance
from DeepCache.judge import PLACE_TOLERANCE, Verdict, shares
from training.captions import held_out_scenes, read_held_out
from training.evaluate import load_pipeline, measure, training_figures
from training.recogniser import load_recogniser, through_vae
from training.scenes import render_uint8

RENDERS = 1024
GUIDANCES = (2.0, 4.0, 7.5)
CAPTIONS = 48


def ship_judge(folder: Path, model: Path, target: Path, seed: int) -> int:
    """Write ``shapes.safetensors`` and its figures, ``shapes.json``, to ``target``; returns the size in bytes."""
    trained = load_file(folder / "recogniser.safetensors")
    path = target / "shapes.safetensors"
    save_file({name: value.half() if value.is_floating_point() else value for name, value in trained.items()}, path)
    path.chmod(0o644)

    judge = load_recogniser(path)
    scenes = held_out_scenes(RENDERS, seed)
    captions = [scene.caption for scene in scenes]
    pixels = render_uint8(scenes, seed + 2)
    decoded = through_vae(pixels, AutoencoderKL.from_pretrained(model / "vae").eval(), torch.Generator())
    renders = judge.verdicts(pixels / 255, captions)
    pipeline = load_pipeline(model)
    generated = [asdict(measure(pipeline, judge, read_held_out()[:CAPTIONS], guidance)[0]) for guidance in GUIDANCES]
    for row in generated:
        del row["seconds"]  # nothing here is about speed
    figures = {
        "renders": _figures(renders),
        "renders_not_right": [index for index, verdict in enumerate(renders) if not verdict.image_right],
        "renders_through_vae": _figures(judge.verdicts(decoded / 255, captions)),
        "renders_with_the_next_caption": _figures(judge.verdicts(pixels / 255, captions[1:] + captions[:1])),
        "generated_without_caching": generated,
        "place_tolerance": PLACE_TOLERANCE,
        "training": training_figures(folder / "log.csv")["recogniser"],
        "parameters": sum(value.numel() for value in trained.values() if value.is_floating_point()),
        "bytes": path.stat().st_size,
        **provenance(seed),
    }
    (target / "shapes.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return path.stat().st_size


def _figures(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    objects = sum(verdict.objects for verdict in verdicts)
    rounded = {name: round(share, 4) for name, share in shares(verdicts).items()}
    return {"images": len(verdicts), "objects": objects, **rounded}
