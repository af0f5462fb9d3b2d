"""What `channels_last` gains on CPUs, by dtype and by the instructions that a processor has.

Stable Diffusion 1.5 with random weights at 256 px, on one thread: a full step and shallow steps of its U-Net at branch
0 with guidance (batch 2), and the decoding of one image by its VAE. The weights are contiguous, as they are loaded, or
`channels_last`; what goes in is contiguous, and each layer hands its format on to the next.

A case is a level of instructions (`benchmarks.cpu_levels`, which says what a level is and what it is not) and a dtype.
The cases run one after the other, each in a process of its own. In each round of one both formats run, in turn; a ratio
is the median of those of the rounds. bfloat16 is left out where it is emulated: a step would take minutes. float32 has
no instructions beyond AVX512_CORE, so that `native/float32` is not among the cases that run by default.

    python -m benchmarks.cpu_memory_format
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from benchmarks.cpu_levels import LEVELS, NOTE, rotated, serve, workers
from benchmarks.harness.denoising_run import BarePipe, ddim
from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from DeepCache.bench.provenance import provenance
from DeepCache.bench.result_file import write_result
from DeepCache.models import ARCHITECTURES, random_pipeline
from DeepCache.models.device import cpu_support

MODULE = "benchmarks.cpu_memory_format"
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PARTS = ("full step", "shallow step", "VAE decode")
CASES = "AVX2/float32,AVX512_CORE/float32,native/bfloat16"
EMULATED = ("AVX2", "AVX512_CORE")
TOKENS = 77


def main() -> None:
    options = _options()
    if options.worker:
        torch.set_num_threads(1)
        serve(_Model(options).answer)
        return
    wanted = [case.split("/") for case in options.cases.split(",")]
    cases = [(level, dtype) for level, dtype in wanted if not _emulated(level, dtype)]
    result = provenance(options.seed) | {
        "model": f"{options.model}, random weights",
        "pixels": options.pixels,
        "batch": 2,
        "branch": 0,
        "threads": 1,
        "rounds": options.rounds,
        "shallow_steps": options.shallow_steps,
        "note": NOTE,
        "cells": [],
        "left_out": [
            {"level": level, "dtype": dtype, "reason": "emulated"} for level, dtype in wanted if _emulated(level, dtype)
        ],
    }
    with Progress() as progress:
        task = progress.add_task("rounds, the first of each to warm up", total=len(cases) * (1 + options.rounds))
        for level, dtype in cases:
            arguments = [f"--{name}={getattr(options, name)}" for name in ("model", "pixels", "seed")]
            arguments += [f"--dtype={dtype}", f"--shallow-steps={options.shallow_steps}"]
            with workers(MODULE, [level], arguments) as running:
                rounds = []
                for number in range(-1, options.rounds):
                    rounds.append(running[level].ask(number))
                    progress.advance(task)
            result["cells"].append(cell(level, dtype, rounds[1:]))
            write_result(options.output, result)
    report(result)
    print(options.output)


def cell(level: str, dtype: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """What the rounds of a level and dtype come to."""
    parts = {}
    for part in PARTS:
        seconds = {name: [each["seconds"][name][part] for each in rounds] for name in FORMATS}
        plain, other = seconds.values()
        ratios = [median(one) / median(base) for one, base in zip(other, plain, strict=True)]
        parts[part] = {
            "median_ms": {name: 1000 * median(map(median, times)) for name, times in seconds.items()},
            "ratio": median(ratios),
            "ratio_smallest": min(ratios),
            "ratio_largest": max(ratios),
            "difference": max(each["difference"][part] for each in rounds),
            "seconds": seconds,
        }
    return {"level": level, "dtype": dtype, "environment": LEVELS[level], "parts": parts}


class _Model:
    """The U-Net and the VAE of a worker. They are put into one format and then the other, so that they are there once.

    Args:
        options: those of the worker.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        dtype: Any = getattr(torch, options.dtype)
        pipe: Any = random_pipeline(options.model, dtype=dtype, device="cpu", seed=options.seed)
        self._unet, self._vae = pipe.unet, pipe.vae
        self._shallow_steps = options.shallow_steps
        side = options.pixels // pipe.vae_scale_factor
        generator = torch.Generator().manual_seed(options.seed)
        self._latents = torch.randn(1, self._unet.config.in_channels, side, side, generator=generator).to(dtype)
        width = self._unet.config.cross_attention_dim
        self._text = torch.randn(2, TOKENS, width, generator=generator).to(dtype)

    def answer(self, number: int) -> dict[str, Any]:
        """A round: seconds of each part in each format, and the largest difference of the two formats' outputs, as a
        share of the largest value."""
        seconds: dict[str, dict[str, list[float]]] = {}
        outputs: dict[str, dict[str, Tensor]] = {}
        for name in rotated(list(FORMATS), number):
            seconds[name], outputs[name] = self._run(FORMATS[name])
        plain, other = (outputs[name] for name in FORMATS)
        difference = {part: float((other[part] - plain[part]).abs().max() / plain[part].abs().max()) for part in PARTS}
        return {"seconds": seconds, "difference": difference}

    @torch.no_grad()
    def _run(self, memory_format: torch.memory_format) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
        for network in (self._unet, self._vae):
            network.to(memory_format=memory_format)
        pipe = BarePipe(self._unet, ddim(1 + self._shallow_steps))
        apply_deepcache(pipe, DeepCacheConfig(cache_interval=1 + self._shallow_steps))
        seconds: dict[str, list[float]] = {part: [] for part in PARTS}
        outputs = {}
        guided = self._latents.repeat(2, 1, 1, 1)
        for number, timestep in enumerate(pipe.scheduler.timesteps):
            part = PARTS[0] if number == 0 else PARTS[1]
            start = perf_counter()
            outputs[part] = pipe.unet(guided, timestep, encoder_hidden_states=self._text).sample
            seconds[part].append(perf_counter() - start)
        remove_deepcache(pipe)
        start = perf_counter()
        outputs[PARTS[2]] = self._vae.decode(self._latents).sample
        seconds[PARTS[2]].append(perf_counter() - start)
        return seconds, outputs


def _emulated(level: str, dtype: str) -> bool:
    return dtype == "bfloat16" and (level in EMULATED or cpu_support(torch.bfloat16) == "emulated")


def report(result: dict[str, Any]) -> None:
    """Prints the ratios."""
    for each in result["cells"]:
        shown = (
            f"{part} {found['median_ms']['contiguous']:.0f} ms, channels_last {found['ratio']:.2f} "
            f"({found['ratio_smallest']:.2f} to {found['ratio_largest']:.2f})"
            for part, found in each["parts"].items()
        )
        print(f"{each['level']} {each['dtype']}: {'; '.join(shown)}")
    for each in result["left_out"]:
        print(f"{each['level']} {each['dtype']}: left out, {each['reason']}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/cpu_memory_format.json"))
    parser.add_argument("--model", choices=[name for name in ARCHITECTURES if name.startswith("sd")], default="sd15")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--cases", default=CASES, help=f"LEVEL/DTYPE with commas between; of {', '.join(LEVELS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shallow-steps", type=int, default=3, help="shallow steps in a round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", help="of a worker")
    parser.add_argument("--worker", action="store_true", help="be a worker, which the script starts by itself")
    return parser.parse_args()


if __name__ == "__main__":
    main()
