"""Cost and fidelity on the bundled model: every kind of setting, tuned plans, other projects' rules, and fewer steps.

Held-out prompts, with DDIM, DPM++ 2M, Euler and UniPC as diffusers' Stable Diffusion pipelines configure them, at
several guidance scales. Every case generates the same prompts from the same latents as the pipeline without caching;
PSNR and SSIM are taken image by image against that, and the judge counts the objects that are right. A result file for
each scheduler and guidance scale is written after every case, and a run that was stopped resumes from there.

Rules that decide during the run are measured with one image a pipeline call, as their authors do, and all others in
batches.

    python -m benchmarks.frontier
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.fidelity import resumed
from benchmarks.peers import PEERS
from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from DeepCache.bench.result_file import write_result
from DeepCache.bench.summary import summary
from DeepCache.engine.fingerprint import other_guidance
from DeepCache.generation.batch_sampler import BatchSampler
from DeepCache.judge import Judge, load_judge
from DeepCache.metrics import psnr, ssim
from DeepCache.models import load_pipeline, set_scheduler
from DeepCache.plan import Plan

SCHEDULERS = {"ddim": 50, "dpm++": 25, "euler": 30, "unipc": 20}
GUIDANCES = (2.0, 4.0, 7.5)
INTERVALS = (2, 3, 5, 8)
FEWER = (0.6, 0.5, 0.42, 0.3, 0.25, 0.2)
IDENTICAL = 120.0  # dB that two identical images count as, so that a mean can be taken.

UNIFORM: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "limited": (INTERVALS, {}),
    "re-use": (INTERVALS, {"forecast": "none"}),
    "linear": (INTERVALS, {"forecast": "linear"}),
    "skipped, response": ((2, 3, 5), {"between": "skipped", "forecast": "response"}),
    "skipped, limited": ((2, 3, 5), {"between": "skipped"}),
    "limited, guidance reuse": ((3, 5), {"guidance_reuse": True}),
    "alternating, response": ((3,), {"between": "alternating", "forecast": "response"}),
}
ADAPTIVE = {"response": (0.05, 0.1)}
LONGEST = 8  # The most steps from one full step to the next of an adaptive schedule.
# Rules that decide during the run.
ONE_BY_ONE = ("EasyCache", "LazyCache", "SADA", "AdaptiveDiffusion", "first-block")
ALL_PEERS_WITH = "dpm++"
# Those that are measured with the other schedulers too.
EVERYWHERE = (
    "EasyCache 0.2",
    "ZEUS 1/3",
    "Spectrum w=1 flex=0",
    "T-GATE gate 10 of 25",
    "prediction minus input re-used, I=3",
)


@dataclass(frozen=True)
class Case:
    """One way to generate: a setting of DeepCache, a peer's rule, or fewer steps without either.

    Args:
        method: what it belongs to in tables and figures.
        label: the setting.
        steps: denoising steps.
        config: DeepCache's settings.
        peer: the name of a rule in `PEERS`.
        one_by_one: whether each image is a pipeline call of its own.
    """

    method: str
    label: str
    steps: int
    config: DeepCacheConfig | None = None
    peer: str | None = None
    one_by_one: bool = False


def cases(steps: int, plans: list[Plan], peers: Sequence[str], intervals: Sequence[int] = INTERVALS) -> Iterator[Case]:
    """All cases of one scheduler and guidance scale."""
    for method, (tried, settings) in UNIFORM.items():
        for interval in sorted(set(tried) & set(intervals)):
            yield Case(method, f"I={interval}", steps, DeepCacheConfig(cache_interval=interval, **settings))
    for share in FEWER if len(intervals) == len(INTERVALS) else (0.42, 0.3):
        yield Case("fewer steps", f"{round(share * steps)} steps", round(share * steps))
    for plan in plans:
        yield Case("tuned plan", plan.schedule.pattern(steps), steps, DeepCacheConfig(plan=plan))
    for forecast, thresholds in ADAPTIVE.items():
        for threshold in thresholds:
            adaptive = DeepCacheConfig(
                LONGEST, skip_mode="adaptive", forecast=forecast, between="skipped", threshold=threshold
            )
            yield Case(f"adaptive, {forecast}", f"threshold {threshold:g}", steps, adaptive, one_by_one=True)
    for name in peers:
        yield Case("peer", name, steps, peer=name, one_by_one=name.startswith(ONE_BY_ONE))


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    prompts = options.prompts.read_text(encoding="utf-8").splitlines()[: options.count]
    judge = load_judge("shapes")
    pipe = load_pipeline("shapes", dtype="float32", device="cpu")
    # A fifth faster on a CPU.
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.set_progress_bar_config(disable=True)
    plans = [Plan.from_file(path) for path in sorted(options.plans.glob("*.json"))]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, speed_estimate_period=3600) as progress:
        for guidance in options.guidance:
            for scheduler in options.schedulers:
                bench = _Bench(pipe, judge, scheduler, guidance, prompts, options)
                fitting = [
                    plan
                    for plan in plans
                    if plan.scheduler["class"] == type(pipe.scheduler).__name__ and not other_guidance(plan, guidance)
                ]
                peers = tuple(PEERS) if scheduler == ALL_PEERS_WITH else EVERYWHERE
                if guidance not in options.peers_at:
                    peers = ()
                listed = cases(SCHEDULERS[scheduler], fitting, peers, options.intervals)
                bench.run([case for case in listed if not options.only or case.method in options.only], progress)


class _Bench:
    """The cases of one scheduler and guidance scale, and their result file."""

    def __init__(
        self, pipe: Any, judge: Judge, scheduler: str, guidance: float, prompts: list[str], options: argparse.Namespace
    ) -> None:
        set_scheduler(pipe, scheduler)
        self.pipe, self.judge, self.prompts = pipe, judge, prompts
        self.steps = SCHEDULERS[scheduler]
        self.name = f"{scheduler.replace('+', 'p')}-{guidance:g}"
        self.path = options.output / f"{self.name}.json.gz"
        settings = {
            "model": "shapes",
            "scheduler": scheduler,
            "steps": self.steps,
            "guidance": guidance,
            "prompts": prompts,
            "batch": options.batch,
            "threads": options.threads,
        }
        self.result = resumed(self.path, settings, options.seed, {"reference": None, "cases": []})
        self.settings = settings
        self.in_batches = BatchSampler(pipe, prompts, self.steps, guidance, options.seed, options.batch)
        self.one_by_one = BatchSampler(pipe, prompts, self.steps, guidance, options.seed, 1)

    def run(self, listed: list[Case], progress: Progress) -> None:
        done = {(case["method"], case["label"]) for case in self.result["cases"]}
        missing = [case for case in listed if (case.method, case.label) not in done]
        if not missing:
            return
        task = progress.add_task(self.name, total=len(missing) + 1)
        reference = self._reference()
        progress.advance(task)
        for case in missing:
            progress.update(task, description=f"{self.name}, {case.method}, {case.label[:20]}")
            self.result["cases"].append(self._measured(case, reference))
            write_result(self.path, self.result)
            progress.advance(task)

    def _reference(self) -> Tensor:
        """The images without caching; kept in `build/`, so that a run that resumes need not generate them again."""
        key = sha256(json.dumps([self.settings, self.result["versions"], self.result["machine"]]).encode()).hexdigest()
        path = Path("build") / f"frontier-{self.name}-{key[:16]}.safetensors"
        if path.is_file() and self.result["reference"] is not None:
            return load_file(path)["images"]
        start = perf_counter()
        images = self.in_batches.sample()
        seconds = round(perf_counter() - start, 3)
        self.result["reference"] = {"seconds": seconds, "right": self._right(images)}
        path.parent.mkdir(exist_ok=True)
        save_file({"images": images}, path)
        write_result(self.path, self.result)
        return images

    def _measured(self, case: Case, reference: Tensor) -> dict[str, Any]:
        sampler = self.one_by_one if case.one_by_one else self.in_batches
        start = perf_counter()
        if case.peer is not None:
            images, values = self._by_peer(case.peer, sampler)
        elif case.config is not None:
            images, values = self._by_deepcache(case.config, sampler)
        else:
            images, values = sampler.sample(case.steps), {"mac_share": case.steps / self.steps}
        values["seconds"] = round(perf_counter() - start, 3)
        head = {"method": case.method, "label": case.label, "one_by_one": case.one_by_one}
        measured = {
            "psnr": summary(psnr(images, reference).clamp_max(IDENTICAL).tolist()),
            "ssim": summary(ssim(images, reference).tolist()),
            "right": self._right(images),
        }
        return head | values | measured

    def _by_peer(self, name: str, sampler: BatchSampler) -> tuple[Tensor, dict[str, Any]]:
        peer = PEERS[name]()
        with peer.on(self.pipe, self.steps):
            images = sampler.sample()
        sizes = [len(self.prompts[first : first + sampler.batch]) for first in sampler.batches]
        spent = sum(run.mac_share * size for run, size in zip(peer.runs, sizes, strict=True))
        return images, {"mac_share": spent / len(self.prompts), "pattern": peer.pattern}

    def _by_deepcache(self, config: DeepCacheConfig, sampler: BatchSampler) -> tuple[Tensor, dict[str, Any]]:
        engine = apply_deepcache(self.pipe, config)
        images, shares = [], []
        for first in sampler.batches:
            images.append(sampler.sample_batch(first))
            stats = engine.stats
            if stats.mac_share is None:
                raise RuntimeError(f"multiply-accumulates cannot be counted: {stats.uncounted}")
            shares += [stats.mac_share] * len(images[-1])
        remove_deepcache(self.pipe)
        interval = config.cache_interval if config.plan is None else None
        return torch.cat(images), {"mac_share": fmean(shares), "pattern": stats.pattern, "interval": interval}

    def _right(self, images: Tensor) -> dict[str, Any]:
        return summary([verdict.share for verdict in self.judge.verdicts(images, self.prompts)])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/frontier"), help="a folder")
    parser.add_argument("--plans", type=Path, default=Path("benchmarks/plans"), help="a folder of plans")
    parser.add_argument("--schedulers", nargs="+", choices=SCHEDULERS, default=list(SCHEDULERS))
    parser.add_argument("--guidance", nargs="+", type=float, default=list(GUIDANCES))
    parser.add_argument("--intervals", nargs="+", type=int, default=list(INTERVALS))
    parser.add_argument("--peers-at", nargs="*", type=float, default=[7.5], help="guidance scales of the peers' rules")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="such as 'limited' 're-use'")
    parser.add_argument("--prompts", type=Path, default=Path("training/held_out.txt"), help="one prompt a line")
    parser.add_argument("--count", type=int, default=48, help="how many prompts, from the first")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
