"""Fidelity of the shipped model under caching, next to fewer steps without caching at a like cost.

Held-out prompts, the model's recommended guidance, DDIM. Every cell generates the same prompts from the same latents as
the pipeline without caching does; PSNR and SSIM are taken image by image against that. The result file is written
after every cell, and an interrupted run resumes from there.

    python -m benchmarks.fidelity --output benchmarks/fidelity.json.gz
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from DeepCache.bench.provenance import provenance
from DeepCache.bench.result_file import write_result
from DeepCache.bench.summary import summary
from DeepCache.files import read_json_text
from DeepCache.metrics import psnr, ssim
from DeepCache.models import load_pipeline, recommended_guidance, set_scheduler


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    prompts = options.prompts.read_text(encoding="utf-8").splitlines()[: options.count]
    pipe = load_pipeline(options.model, dtype="float32", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    set_scheduler(pipe, "ddim")
    settings = {
        "model": options.model,
        "scheduler": "ddim",
        "steps": options.steps,
        "guidance": recommended_guidance(options.model, pipe),
        "prompts": prompts,
        "batch": options.batch,
        "threads": options.threads,
    }
    result = resumed(options.output, settings, options.seed, {"reference_seconds": [], "cached": [], "plain": []})
    studio = _Studio(pipe, settings["guidance"], prompts, options.batch, options.seed)
    done = [(cell["interval"], cell["branch"]) for cell in result["cached"]]
    missing = [cell for cell in product(options.intervals, options.branches) if cell not in done]

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, speed_estimate_period=3600) as progress:
        studio.watch(progress, progress.add_task("", total=studio.calls(options.steps * (1 + len(missing)))))
        reference = studio.generate("without caching", options.steps)
        result["reference_seconds"] = studio.seconds
        for interval, branch in missing:
            engine = apply_deepcache(pipe, DeepCacheConfig(cache_interval=interval, cache_branch_id=branch))
            images = studio.generate(f"I={interval} B={branch}", options.steps)
            stats = engine.stats
            remove_deepcache(pipe)
            if stats.mac_share is None:
                raise RuntimeError(f"multiply-accumulates cannot be counted: {stats.uncounted}")
            cell = {
                "interval": interval,
                "branch": branch,
                "mac_share": stats.mac_share,
                "full_steps": stats.full_steps,
                "plain_steps_of_like_cost": max(1, round(options.steps * stats.mac_share)),
            }
            result["cached"].append(cell | fidelity(images, reference) | {"seconds": studio.seconds})
            write_result(options.output, result)

        fewer = {cell["plain_steps_of_like_cost"] for cell in result["cached"]} - {options.steps}
        lengths = sorted(fewer - {cell["steps"] for cell in result["plain"]})
        studio.watch(progress, progress.add_task("", total=studio.calls(sum(lengths))))
        for steps in lengths:
            images = studio.generate(f"{steps} steps", steps)
            cell = {"steps": steps, "mac_share": steps / options.steps}
            result["plain"].append(cell | fidelity(images, reference) | {"seconds": studio.seconds})
            write_result(options.output, result)
    _report(result)
    print(options.output)


@dataclass
class _Studio:
    """Generates all prompts, each from the same latents every time."""

    pipe: Any
    guidance: float
    prompts: list[str]
    batch: int
    seed: int
    seconds: list[float] = field(default_factory=list)
    bar: tuple[Progress, TaskID] | None = None

    def watch(self, progress: Progress, task: TaskID) -> None:
        """Shows every step on a progress bar."""
        self.bar = progress, task

    def calls(self, steps: int) -> int:
        """The number of U-Net calls of a run with this number of steps."""
        return steps * -(-len(self.prompts) // self.batch)

    def generate(self, title: str, steps: int) -> Tensor:
        """The images, (N, 3, H, W) in 0..1; the seconds of each batch are in `seconds`."""
        if self.bar is not None:
            progress, task = self.bar
            progress.update(task, description=title)
        self.seconds = []
        images = []
        for first in range(0, len(self.prompts), self.batch):
            prompts = self.prompts[first : first + self.batch]
            generators = [torch.Generator().manual_seed(self.seed + first + index) for index in range(len(prompts))]
            start = perf_counter()
            output = self.pipe(
                prompts,
                num_inference_steps=steps,
                guidance_scale=self.guidance,
                generator=generators,
                output_type="pt",
                callback_on_step_end=self._advance,
            )
            self.seconds.append(perf_counter() - start)
            images.append(output.images)
        return torch.cat(images)

    def _advance(self, pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if self.bar is not None:
            progress, task = self.bar
            progress.advance(task)
        return values


def fidelity(images: Tensor, reference: Tensor) -> dict[str, Any]:
    """Mean, 95 % confidence interval and every single value of PSNR and SSIM."""
    return {name: summary(metric(images, reference).tolist()) for name, metric in (("psnr", psnr), ("ssim", ssim))}


def resumed(path: Path, settings: dict[str, Any], seed: int, empty: dict[str, Any]) -> dict[str, Any]:
    """The result file as it is, where it is of the same settings, else an empty one."""
    fresh = provenance(seed) | settings | empty
    if not path.is_file():
        return fresh
    found = json.loads(read_json_text(path, "result"))
    kept = [*settings, "seed", "machine", "versions"]
    if any(found.get(key) != fresh[key] for key in kept):
        raise SystemExit(
            f"{path} is of other settings, versions or another machine: delete it, or give another --output"
        )
    return found


def _report(result: dict[str, Any]) -> None:
    plain = {cell["steps"]: cell for cell in result["plain"]}
    print(" I  B   MACs   PSNR   SSIM | plain steps   PSNR   SSIM")
    for cell in result["cached"]:
        other = plain.get(cell["plain_steps_of_like_cost"])
        row = f"{cell['interval']:2} {cell['branch']:2} {cell['mac_share']:6.1%} {_means(cell)} | "
        print(row + (f"{other['steps']:11} {_means(other)}" if other else "all of them"))


def _means(cell: dict[str, Any]) -> str:
    return f"{cell['psnr']['mean']:6.2f} {cell['ssim']['mean']:6.4f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/fidelity.json.gz"))
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--prompts", type=Path, default=Path("training/held_out.txt"), help="one prompt a line")
    parser.add_argument("--count", type=int, default=64, help="how many prompts, from the first")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--intervals", nargs="+", type=int, default=[2, 3, 5, 10])
    parser.add_argument("--branches", nargs="+", type=int, default=[0, 1, 2, 6])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
