"""Measures the exported model on held-out captions and writes figures, images and the model card."""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import matplotlib
import torch
import transformers
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)
from PIL import Image, ImageDraw
from torch import Tensor

from DeepCache.judge import PLACE_TOLERANCE, Judge, shares
from training.captions import read_held_out
from training.card import write_card
from training.progress import progress_bar
from training.recogniser import load_recogniser, measure_recogniser
from training.vae import measure_psnr

matplotlib.use("Agg")
from matplotlib import pyplot

GUIDANCES = (2.0, 3.0, 4.0, 5.0, 7.5)
STEPS = 50
SEARCH_STEPS = 20
SEARCH_CAPTIONS = 48
BATCH = 32


@dataclass
class Result:
    """The result of one way to sample."""

    sampler: str
    steps: int
    guidance: float
    captions: int
    objects: int
    objects_right: float
    colour_right: float
    shape_right: float
    place_right: float
    images_right: float
    seconds: float


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The exported model in full precision; any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(
    pipeline: StableDiffusionPipeline,
    captions: list[str],
    guidance: float,
    steps: int = STEPS,
    note: str = "samples",
) -> Tensor:
    """An image for each caption, in 0 to 1; image number n starts from seed n."""
    images = []
    with progress_bar() as bar:
        task = bar.add_task(note, total=len(captions), note="")
        for start in range(0, len(captions), BATCH):
            part = captions[start : start + BATCH]
            seeds = range(start, start + len(part))
            output = pipeline(
                part,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="pt",
            )
            images.append(output.images.float())
            bar.advance(task, len(part))
    return torch.cat(images)


def measure(
    pipeline: StableDiffusionPipeline,
    judge: Judge,
    captions: list[str],
    guidance: float,
    steps: int = STEPS,
) -> tuple[Result, Tensor]:
    """Sample the captions and judge the images."""
    name = type(pipeline.scheduler).__name__.removesuffix("Scheduler")
    started = time.time()
    note = f"{name} {steps} steps, guidance {guidance}"
    images = sample(pipeline, captions, guidance, steps, note)
    seconds = time.time() - started
    verdicts = judge.verdicts(images, captions)
    result = Result(
        sampler=name,
        steps=steps,
        guidance=guidance,
        captions=len(captions),
        objects=sum(verdict.objects for verdict in verdicts),
        seconds=round(seconds, 1),
        **{name: round(share, 4) for name, share in shares(verdicts).items()},
    )
    print(f"{note}: {100 * result.objects_right:.1f} % of objects right")
    return result, images


def evaluate(folder: Path, model: Path, report: Path, seed: int, quick: bool) -> None:
    """Measure the model; write results, log, loss curve and samples to ``report``, and the card."""
    judge = load_recogniser(folder / "recogniser.safetensors")
    pipeline = load_pipeline(model)
    captions = read_held_out()

    few = captions[:SEARCH_CAPTIONS]
    search = [measure(pipeline, judge, few, value, SEARCH_STEPS)[0] for value in GUIDANCES]
    best = max(search, key=lambda result: (result.objects_right, result.images_right)).guidance
    final, images = measure(pipeline, judge, captions[:128] if quick else captions, best)

    ddim = pipeline.scheduler
    others = []
    for scheduler in (DPMSolverMultistepScheduler, EulerDiscreteScheduler):
        pipeline.scheduler = scheduler.from_config(ddim.config)
        others.append(measure(pipeline, judge, few, best, SEARCH_STEPS)[0])

    shutil.copy(folder / "log.csv", report / "log.csv")
    figures = training_figures(report / "log.csv")
    results: dict[str, Any] = {
        "held_out": asdict(final),
        "guidance_search": [asdict(result) for result in search],
        "other_samplers": [asdict(result) for result in others],
        "recommended_guidance": best,
        "place_tolerance": PLACE_TOLERANCE,
        "vae_psnr_db": round(measure_psnr(pipeline.vae, seed), 2),
        "recogniser_objects_right": round(measure_recogniser(judge, seed), 4),
        "training": figures,
        "parameters": {
            name: sum(weight.numel() for weight in getattr(pipeline, name).parameters())
            for name in ("unet", "vae", "text_encoder")
        },
        "bytes": sum(path.stat().st_size for path in model.rglob("*.*") if path.is_file() and path.suffix != ".md"),
        "seed": seed,
        "command": _command(seed, figures),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "accelerator": "none",
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
    }
    (report / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    contact_sheet(images[:48], report / "samples.png")
    labelled_sheet(images[:24], captions[:24], folder / "labelled.png")
    loss_curve(report / "log.csv", report / "loss.png")
    write_card(results, model / "README.md")


def training_figures(log: Path) -> dict[str, dict[str, float]]:
    """Steps and minutes of each stage, from the log."""
    figures: dict[str, dict[str, float]] = {}
    for row in _rows(log):
        minutes = round(float(row["seconds"]) / 60, 1)
        figures[row["stage"]] = {"steps": int(row["step"]), "minutes": minutes}
    return figures


def _command(seed: int, figures: dict[str, dict[str, float]]) -> str:
    """The command that makes as many steps of each stage again."""
    flags = [f"--{stage}-steps {made['steps']}" for stage, made in figures.items()]
    return " ".join(["python -m training.train", f"--seed {seed}", *flags])


def _rows(log: Path) -> list[dict[str, str]]:
    with log.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _as_image(tile: Tensor) -> Image.Image:
    pixels = (tile * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def contact_sheet(images: Tensor, path: Path, columns: int = 8, scale: int = 2) -> None:
    """The images side by side, enlarged."""
    side = images.shape[-1] * scale
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for index, tile in enumerate(images):
        large = _as_image(tile).resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(large, (index % columns * side, index // columns * side))
    sheet.save(path, optimize=True)


def labelled_sheet(images: Tensor, captions: list[str], path: Path) -> None:
    """The images with their captions below them."""
    side, line, columns = 192, 12, 6
    height = side + 4 * line
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * side, rows * height), "white")
    canvas = ImageDraw.Draw(sheet)
    for index, (tile, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = index % columns * side, index // columns * height
        sheet.paste(_as_image(tile).resize((side, side), Image.Resampling.LANCZOS), (left, top))
        lines, text = [""], caption.split()
        for word in text:
            if len(lines[-1]) + len(word) > 30:
                lines.append("")
            lines[-1] = f"{lines[-1]} {word}".strip()
        canvas.text((left + 2, top + side), "\n".join(lines), fill="black")
    sheet.save(path)


def loss_curve(log: Path, path: Path) -> None:
    """The loss of each stage against its steps."""
    rows = _rows(log)
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    figure, axes = pyplot.subplots(1, len(stages), figsize=(4 * len(stages), 3))
    for axis, stage in zip(axes, stages, strict=True):
        points = [row for row in rows if row["stage"] == stage]
        axis.plot([int(r["step"]) for r in points], [float(r["loss"]) for r in points])
        axis.set(title=stage, xlabel="step", yscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("loss")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
