"""Results as `deepcache benchmark` and `deepcache ablate` write them, with synthetic numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

from PIL import Image, ImageDraw

from DeepCache.bench.ablation_cells import mark_front, mark_over_reuse
from DeepCache.bench.result_file import ABLATION_FORMAT, BENCHMARK_FORMAT, OLDER_ABLATION_FORMAT, write_result
from DeepCache.bench.variants import Variant, parse_variant

PUBLISHED = ("I=3 B=0", "I=5 B=0", "I=5 B=1")
GPU = {
    "type": "cuda",
    "name": "NVIDIA Simulated GPU",
    "memory_gib": 79.6,
    "compute_capability": "9.0",
    "driver": "570.86.15",
    "cuda": "12.8",
}
_BRANCHES = (0.079, 0.224, 0.38, 0.47, 0.564, 0.673, 0.76, 0.848, 0.941)


def benchmark(
    model: str = "sd21",
    sizes: Sequence[tuple[int, int]] = ((512, 512),),
    batches: Sequence[int] = (1,),
    variants: Sequence[str] = PUBLISHED,
    dtypes: Sequence[str] = ("float16",),
    modes: Sequence[str] = ("eager",),
    scopes: Sequence[str] = ("pipeline",),
    steps: int = 50,
    rounds: int = 3,
    reference: bool = True,
    fewer_steps: bool = True,
) -> dict[str, Any]:
    """A finished benchmark."""
    known = [parse_variant(name) for name in variants]
    settings = {
        "model": model,
        "pipeline": "StableDiffusionPipeline",
        "unet": "UNet2DConditionModel",
        "scheduler": "DDIMScheduler",
        "random_weights": True,
        "steps": steps,
        "guidance": 7.5,
        "rounds": rounds,
        "warm_up": 1,
        "threads": 1,
        "variants": {variant.name: variant.config.to_dict() for variant in known},
        "reference": reference,
        "fewer_steps": fewer_steps,
        "grid": {
            "dtypes": list(dtypes),
            "modes": list(modes),
            "sizes": [list(size) for size in sizes],
            "batches": list(batches),
            "scopes": list(scopes),
        },
    }
    grid = product(dtypes, modes, sizes, batches, scopes)
    cells = [_speed_cell(settings, known, *point) for point in grid]
    return _origin("deepcache benchmark", BENCHMARK_FORMAT, settings) | {"cells": cells}


def _speed_cell(
    settings: dict[str, Any],
    variants: list[Variant],
    dtype: str,
    mode: str,
    size: tuple[int, int],
    batch: int,
    scope: str,
) -> dict[str, Any]:
    width, height = size
    steps, rounds = settings["steps"], settings["rounds"]
    whole = steps * batch * width * height * 1.3e-7 * (0.7 if mode == "compiled" else 1.0)
    shares = {variant.name: _share(variant, steps) for variant in variants}
    shown = {variant.name: variant for variant in variants}
    rows = [_row("no caching", f"{steps} steps", steps, 1.0, whole, rounds, "F" * steps, 0)]
    for name, share in shares.items():
        took = whole * (share + 0.02)
        rows.append(_row("DeepCache", name, steps, share, took, rounds, "F.." * (steps // 3), 5 * 2**20))
    for name, share in shares.items() if settings["reference"] else ():
        if shown[name].in_reference:
            rows.append(
                _row("reference package", name, steps, None, whole * (share + 0.035), rounds, None, 113 * 2**20)
            )
    fewer = sorted({max(1, round(steps * share)) for share in shares.values()}, reverse=True)
    for count in fewer if settings["fewer_steps"] else ():
        share = count / steps
        rows.append(_row("fewer steps", f"{count} steps", count, share, whole * share, rounds, "F" * count, 0))
    for row in rows:
        _summarise(row, rows[0])
    return {
        "scope": scope,
        "width": width,
        "height": height,
        "batch": batch,
        "dtype": dtype,
        "mode": mode,
        "status": "done",
        "reason": "",
        "unet_calls": steps,
        "full_gmacs": 402.1,
        "rows": rows,
    }


def _row(
    method: str,
    variant: str,
    steps: int,
    share: float | None,
    took: float,
    rounds: int,
    pattern: str | None,
    kept: int,
) -> dict[str, Any]:
    wobble = [1 + 0.01 * math.sin(len(method + variant) + 2 * number) for number in range(rounds)]
    return {
        "method": method,
        "variant": variant,
        "steps": steps,
        "pattern": pattern,
        "mac_share": share,
        "seconds": [round(took * factor, 6) for factor in wobble],
        "first_seconds": round(took * 1.4, 6),
        "median": None,
        "spread": None,
        "speed_up": None,
        "speed_up_spread": None,
        "limit": None,
        "share_of_limit": None,
        "bytes_kept": kept,
        "peak_memory": 6 * 2**30 + kept,
        "error": "",
    }


def _summarise(row: dict[str, Any], original: dict[str, Any]) -> None:
    ratios = [before / after for before, after in zip(original["seconds"], row["seconds"], strict=True)]
    row |= {
        "median": median(row["seconds"]),
        "spread": [min(row["seconds"]), max(row["seconds"])],
        "speed_up": median(ratios),
        "speed_up_spread": [min(ratios), max(ratios)],
    }
    if row["mac_share"] is not None:
        row |= {"limit": 1 / row["mac_share"], "share_of_limit": row["speed_up"] * row["mac_share"]}


def find_row(cell: dict[str, Any], method: str, variant: str = "") -> dict[str, Any]:
    """A row of a cell."""
    return next(row for row in cell["rows"] if row["method"] == method and variant in ("", row["variant"]))


def fail(row: dict[str, Any], error: str) -> None:
    """Makes a row one that could not be measured."""
    empty = ("median", "spread", "speed_up", "speed_up_spread", "limit", "share_of_limit", "peak_memory")
    row |= dict.fromkeys(empty) | {"seconds": [], "first_seconds": None, "error": error}


def run_out_of_memory(cell: dict[str, Any], reason: str = "CUDA out of memory") -> None:
    """Makes a cell one that needs more memory than there is."""
    cell |= {"status": "out of memory", "reason": reason, "rows": [], "unet_calls": None, "full_gmacs": None}


def wait(cell: dict[str, Any]) -> None:
    """Makes a cell one that is not measured yet."""
    cell |= {"status": "waiting", "rows": [], "unet_calls": None, "full_gmacs": None}


def stop_early(cell: dict[str, Any], rounds: int) -> None:
    """Makes a cell one that has some of its rounds."""
    cell["status"] = "partial"
    for row in cell["rows"]:
        row["seconds"] = row["seconds"][:rounds]
    for row in cell["rows"]:
        _summarise(row, cell["rows"][0])


def ablation(
    model: str = "shapes",
    groups: Sequence[tuple[str, int]] = (("DDIMScheduler", 50),),
    labels: Sequence[str] = ("I=2 B=0", "I=3 B=0", "I=3 B=1", "I=3 B=0 linear", "I=5 B=0", "I=5 B=1", "I=5 B=0 linear"),
    fewer: Sequence[int] = (25, 17, 10),
    prompts: Sequence[str] = ("a red circle", "a blue square", "a green star"),
    seeds: Sequence[int] = (0, 100),
    samples: int = 0,
    size: tuple[int, int] = (64, 64),
    lpips: bool = False,
    clip: bool = False,
    guidances: Sequence[float | None] = (2.0,),
    judged: bool = False,
) -> dict[str, Any]:
    """A finished ablation; `write_samples` writes its samples."""
    left_out = {} if lpips else {"lpips": "the weights of AlexNet are not on this machine"}
    left_out |= {} if clip else {"clip": "openai/clip-vit-large-patch14 is not on this machine"}
    left_out |= {} if judged else {"judge": "only shapes has one"}
    settings = {
        "model": model,
        "pipeline": "StableDiffusionPipeline",
        "unet": "UNet2DConditionModel",
        "width": size[0],
        "height": size[1],
        "dtype": "float32",
        "threads": 1,
        "batch": 8,
        "prompts": list(prompts),
        "seeds": list(seeds),
        "samples": samples,
        "guidances": list(guidances),
        "schedulers": list(dict.fromkeys(scheduler for scheduler, _ in groups)),
        "steps": list(dict.fromkeys(steps for _, steps in groups)),
        "labels": list(labels),
        "left_out": left_out,
    }
    images = len(prompts) * len(seeds)
    known = [parse_variant(label) for label in labels]
    return _origin("deepcache ablate", ABLATION_FORMAT, settings) | {
        "groups": [
            {
                "guidance": guidance,
                **_group(number, scheduler, steps, known, fewer, images, samples > 0, lpips, clip, judged),
            }
            for number, (guidance, (scheduler, steps)) in enumerate(product(guidances, groups))
        ]
    }


def _group(
    number: int,
    scheduler: str,
    steps: int,
    variants: list[Variant],
    fewer: Sequence[int],
    images: int,
    samples: bool,
    lpips: bool,
    clip: bool,
    judged: bool,
) -> dict[str, Any]:
    ways: list[tuple[str, str, dict[str, Any] | None, int, float, float]] = []
    for variant in variants:
        config = variant.config
        share = _share(variant, steps)
        psnr = 41 - 3.1 * config.cache_interval + 1.7 * config.cache_branch_id * (1 - 0.04 * config.cache_branch_id)
        psnr += {"none": 0, "linear": 2.4}.get(config.forecast, 1.9) - 0.9 * config.guidance_reuse
        ways.append(("DeepCache", variant.name, config.to_dict(), steps, share, psnr + 0.3 * number))
    for count in fewer:
        ways.append(("fewer steps", f"{count} steps", None, count, count / steps, 12 + 26 * count / steps))
    cells = []
    for method, label, config, count, share, psnr in ways:
        values = [round(psnr + 2.5 * math.sin(1.7 * index + len(label)), 3) for index in range(images)]
        cells.append(
            {
                "method": method,
                "label": label,
                "config": config,
                "steps": count,
                "pattern": "F" * count,
                "mac_share": share,
                "seconds": round(images * 0.31 * (share + 0.03), 6),
                "psnr": metric(values),
                "ssim": metric([1 - 1 / value for value in values]),
                "lpips": metric([1 / value for value in values]) if lpips else None,
                "clip": metric([value / 1.4 for value in values]) if clip else None,
                "right": metric([min(1.0, round(value / 40, 1)) for value in values]) if judged else None,
                "samples": f"samples/{number}/{label.replace(' ', '_')}.png" if samples else None,
                "front": False,
                "dominated_by": None,
                "over_reuse": None,
            }
        )
    mark_front(cells)
    mark_over_reuse(cells)
    return {
        "scheduler": scheduler,
        "scheduler_class": scheduler,
        "steps": steps,
        "labels": [variant.name for variant in variants],
        "reference": {
            "seconds": images * 0.32,
            "clip": metric([24.0 + index % 2 for index in range(images)]) if clip else None,
            "right": metric([1.0] * images) if judged else None,
            "samples": f"samples/{number}/reference.png" if samples else None,
        },
        "cells": cells,
    }


def metric(values: list[float]) -> dict[str, Any]:
    """A metric of these values."""
    mean = fmean(values)
    half = 1.96 * math.sqrt(fmean([(value - mean) ** 2 for value in values]) / len(values))
    return {"mean": mean, "confidence": [mean - half, mean + half], "p5": min(values) + 0.25, "values": values}


def in_format_1(result: dict[str, Any]) -> dict[str, Any]:
    """An ablation at one guidance scale as earlier versions wrote it."""

    def without(one: dict[str, Any], *names: str) -> dict[str, Any]:
        kept = {name: value for name, value in one.items() if name not in names}
        measured = {name: kept[name] for name in ("psnr", "ssim", "lpips", "clip") if kept.get(name)}
        for name, value in measured.items():
            kept[name] = {key: value[key] for key in ("mean", "confidence", "values")}
        return kept

    settings = without(result["settings"], "guidances") | {"guidance": result["settings"]["guidances"][0]}
    groups = []
    for group in result["groups"]:
        cells = [without(cell, "right", "over_reuse") for cell in group["cells"]]
        reference = group["reference"] and without(group["reference"], "right")
        groups.append(without(group, "guidance") | {"cells": cells, "reference": reference})
    return result | {"format": OLDER_ABLATION_FORMAT, "settings": settings, "groups": groups}


def write_samples(result: dict[str, Any], folder: Path) -> None:
    """Writes the strips of an ablation."""
    settings = result["settings"]
    size = (settings["width"], settings["height"])
    for group in result["groups"]:
        for index, one in enumerate([group["reference"], *group["cells"]]):
            strip = Image.new("RGB", (size[0] * settings["samples"], size[1]), "#d8d8d0")
            pen = ImageDraw.Draw(strip)
            for number in range(settings["samples"]):
                left, side = number * size[0], size[0] // 2
                corner = (left + side // 2 + index % 4, side // 2 + index % 3)
                pen.ellipse((*corner, corner[0] + side, corner[1] + side), fill=("red", "blue", "green")[number % 3])
            path = folder / one["samples"]
            path.parent.mkdir(parents=True, exist_ok=True)
            strip.save(path)


def write(result: dict[str, Any], path: Path) -> Path:
    """Writes a result, with the samples that it names."""
    write_result(path, result)
    if result["format"] == ABLATION_FORMAT and result["settings"]["samples"]:
        write_samples(result, path.parent)
    return path


def _share(variant: Variant, steps: int) -> float:
    config = variant.config
    full = math.ceil(steps / config.cache_interval)
    shallow = _BRANCHES[config.cache_branch_id] * (0.5 if config.guidance_reuse else 1)
    return (full + (steps - full) * shallow) / steps


def _origin(command: str, kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": kind,
        "command": f"{command} --model {settings['model']} -o result.json",
        "date": "2026-11-23T04:41:30+00:00",
        "machine": {
            "cpu": "Simulated CPU",
            "cpu_features": ["avx2"],
            "cores": 16,
            "memory_gib": 128.0,
            "system": "Linux x86_64",
        },
        "versions": {"python": "3.11.7", "DeepCache": "0.2.0", "torch": "2.13.0"},
        "seed": 0,
        "device": dict(GPU),
        "settings": settings,
    }
