"""Cost and fidelity on the shipped model: re-use, forecasting, guidance reuse, tuned plans, and fewer steps.

Held-out prompts from three seeds each, with DDIM, DPM++ 2M and Euler. Every cell draws the same prompts from the same
latents as the pipeline without caching does; PSNR and SSIM are taken image by image against that. The result file of
each scheduler is written after every cell, and a run that was stopped goes on from there. The plans are those of
`deepcache tune`, found in the folder of plans; see CONTRIBUTING.md for how they were tuned.

    python -m benchmarks.frontier --schedulers ddim dpm++ euler
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.fidelity import fidelity, resumed
from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from DeepCache.bench.result_file import write_result
from DeepCache.generation.painter import Painter
from DeepCache.models import load_pipeline, recommended_guidance, set_scheduler
from DeepCache.plan import Plan

SCHEDULERS = {"ddim": 50, "dpm++": 25, "euler": 30}
INTERVALS = (3, 5, 8)
VARIANTS: dict[str, dict[str, Any]] = {
    "re-use": {},
    "linear": {"forecast": "linear"},
    "quadratic": {"forecast": "quadratic"},
    "linear, guidance reuse": {"forecast": "linear", "guidance_reuse": True},
}
FEWER = (0.5, 0.42, 0.3, 0.25, 0.2)


@dataclass(frozen=True)
class Cell:
    """One way to draw: a setting of DeepCache, or fewer steps without it."""

    method: str
    label: str
    steps: int
    config: DeepCacheConfig | None = None


def cells(steps: int, plans: list[Plan]) -> Iterator[Cell]:
    """All cells of one scheduler, tuned plans last."""
    for interval in INTERVALS:
        for name, settings in VARIANTS.items():
            yield Cell(name, f"I={interval}", steps, DeepCacheConfig(cache_interval=interval, **settings))
        if interval == INTERVALS[1]:
            for share in FEWER:
                fewer = round(share * steps)
                yield Cell("fewer steps", f"{fewer} steps", fewer)
    for plan in plans:
        yield Cell("tuned plan", plan.schedule.pattern(steps), steps, DeepCacheConfig(plan=plan))


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    prompts = options.prompts.read_text(encoding="utf-8").splitlines()[: options.count]
    pipe = load_pipeline(options.model, dtype="float32", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    plans = [Plan.from_file(path) for path in sorted(options.plans.glob("*.json"))]
    seeds = [options.seed + 1000 * index for index in range(options.seeds)]
    guidance = recommended_guidance(options.model, pipe)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, speed_estimate_period=3600) as progress:
        for scheduler in options.schedulers:
            set_scheduler(pipe, scheduler)
            steps = SCHEDULERS[scheduler]
            settings = {
                "model": options.model,
                "scheduler": scheduler,
                "steps": steps,
                "guidance": guidance,
                "prompts": prompts,
                "seeds": seeds,
                "batch": options.batch,
                "threads": options.threads,
            }
            output = options.output / f"{scheduler.replace('+', 'p')}.json"
            result = resumed(output, settings, options.seed, {"reference_seconds": None, "cells": []})
            name = type(pipe.scheduler).__name__
            fitting = [plan for plan in plans if plan.scheduler["class"] == name]
            done = {(cell["method"], cell["label"]) for cell in result["cells"]}
            missing = [cell for cell in cells(steps, fitting) if (cell.method, cell.label) not in done]
            if not missing:
                continue
            task = progress.add_task(scheduler, total=sum(_work(cell, steps) for cell in missing) + 1)
            painters = [Painter(pipe, prompts, steps, guidance, seed, options.batch) for seed in seeds]
            reference = _reference(painters, output, settings, result)
            progress.advance(task, 1)
            for cell in missing:
                progress.update(task, description=f"{scheduler}, {cell.method}, {cell.label[:12]}")
                result["cells"].append(_measured(pipe, painters, cell, steps, reference))
                write_result(output, result)
                progress.advance(task, _work(cell, steps))
            _report(result)


def _reference(painters: list[Painter], output: Path, settings: dict[str, Any], result: dict[str, Any]) -> Tensor:
    """The images without caching; kept in `build/`, so that a run that goes on need not draw them again."""
    key = sha256(json.dumps([settings, result["versions"], result["machine"]]).encode()).hexdigest()[:16]
    path = Path("build") / f"frontier-{output.stem}-{key}.safetensors"
    if path.is_file() and result["reference_seconds"] is not None:
        return load_file(path)["images"]
    reference, result["reference_seconds"] = _draw(painters, None)
    path.parent.mkdir(exist_ok=True)
    save_file({"images": reference}, path)
    write_result(output, result)
    return reference


def _work(cell: Cell, steps: int) -> float:
    """About how long a cell takes, in drawings without caching."""
    if cell.config is None:
        return cell.steps / steps
    return sum(step.full for step in cell.config.steps(steps)) / steps * 0.85 + 0.15


def _measured(pipe: Any, painters: list[Painter], cell: Cell, steps: int, reference: Tensor) -> dict[str, Any]:
    if cell.config is None:
        images, seconds = _draw(painters, cell.steps)
        values: dict[str, Any] = {"mac_share": cell.steps / steps, "steps": cell.steps}
    else:
        engine = apply_deepcache(pipe, cell.config)
        images, seconds = _draw(painters, None)
        stats = engine.stats
        remove_deepcache(pipe)
        if stats.mac_share is None:
            raise RuntimeError(f"multiply-accumulates cannot be counted: {stats.uncounted}")
        values = {"mac_share": stats.mac_share, "pattern": stats.pattern, "halved_steps": stats.halved_steps}
        if cell.config.plan is None:
            values |= {"interval": cell.config.cache_interval, "forecast": cell.config.forecast}
    head = {"method": cell.method, "label": cell.label}
    return head | values | {"seconds": round(seconds, 3)} | fidelity(images, reference)


def _draw(painters: list[Painter], steps: int | None) -> tuple[Tensor, float]:
    """All prompts from all seeds, and the seconds that it took."""
    start = perf_counter()
    images = torch.cat([painter.draw(steps) for painter in painters])
    return images, perf_counter() - start


def _report(result: dict[str, Any]) -> None:
    print(result["scheduler"])
    for cell in sorted(result["cells"], key=lambda each: each["mac_share"]):
        print(
            f"  {cell['mac_share']:6.1%} {cell['psnr']['mean']:6.2f} dB {cell['ssim']['mean']:.4f}  "
            f"{cell['method']:24} {cell['label']}"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/frontier"), help="a folder")
    parser.add_argument("--plans", type=Path, default=Path("benchmarks/plans"), help="a folder of plans")
    parser.add_argument("--schedulers", nargs="+", choices=SCHEDULERS, default=list(SCHEDULERS))
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--prompts", type=Path, default=Path("training/held_out.txt"), help="one prompt a line")
    parser.add_argument("--count", type=int, default=64, help="how many prompts, from the first")
    parser.add_argument("--seeds", type=int, default=3, help="how often each prompt is drawn")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
