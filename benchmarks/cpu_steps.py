"""An image of Stable Diffusion 1.5 at 512 px on one core of a CPU, from the pipeline as it comes to the least that the
settings of this project give, step by step, all in turn in one run; and few steps without guidance, as models that were
distilled for them take.

Weights are random: this measures time alone.

    python -m benchmarks.cpu_steps
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from diffusers import AutoencoderTiny
from rich.progress import Progress

from DeepCache.bench.benchmark_case import sharing_weights
from DeepCache.bench.provenance import provenance
from DeepCache.bench.result_file import write_result
from DeepCache.bench.variants import parse_variant
from DeepCache.cli.loading import quiet_libraries
from DeepCache.engine.attach import apply_deepcache
from DeepCache.models import load_pipeline, set_scheduler

HERE = Path(__file__).parent
GUIDANCE = 7.5


@dataclass(frozen=True)
class Way:
    """One way to generate an image.

    Args:
        name: what it is.
        variant: the settings of DeepCache; None for none.
        tiny_vae: whether an AutoencoderTiny decodes.
        channels_last: whether weights are in that memory format.
        steps: denoising steps; None for those of the run.
        guided: whether there is classifier-free guidance.
    """

    name: str
    variant: str | None = None
    tiny_vae: bool = False
    channels_last: bool = False
    steps: int | None = None
    guided: bool = True


WAYS = (
    Way("no caching"),
    Way("DeepCache, I=3", "I=3"),
    Way("DeepCache, I=5", "I=5"),
    Way("… and AutoencoderTiny", "I=5", tiny_vae=True),
    Way("… and channels_last", "I=5", tiny_vae=True, channels_last=True),
    Way("… and skipped steps", "I=5 response skipped", tiny_vae=True, channels_last=True),
    Way("4 steps, no caching", steps=4),
    Way("distilled: 4 steps, no guidance", steps=4, guided=False),
    Way("distilled: 1 step, AutoencoderTiny", tiny_vae=True, channels_last=True, steps=1, guided=False),
)


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    with quiet_libraries():
        result = _measured(options)
    write_result(options.output, result)
    for row in result["rows"]:
        print(row["name"], f"{row['median']:.3g} s, {row['speed_up']:.2f}x")
    print(options.output)


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    pipes = {last: _pipeline(options, last) for last in (False, True)}
    runs = {way.name: partial(_run, _ready(pipes[way.channels_last], way), way, options) for way in WAYS}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with Progress() as progress:
        for name in progress.track(runs, description="warming up"):
            runs[name](steps=2)
        for number in progress.track(range(options.rounds), description="rounds"):
            names, turn = list(runs), number * len(runs) // options.rounds
            for name in (*names[turn:], *names[:turn]):
                begin = perf_counter()
                runs[name]()
                seconds[name].append(perf_counter() - begin)
    return provenance(seed=0) | {
        "model": f"{options.model}, random weights",
        "pixels": options.pixels,
        "dtype": options.dtype,
        "guidance": GUIDANCE,
        "steps": options.steps,
        "rounds": options.rounds,
        "threads": options.threads,
        "rows": [_row(way, seconds) for way in WAYS],
    }


def _pipeline(options: argparse.Namespace, channels_last: bool) -> Any:
    pipe = load_pipeline(options.model, dtype=options.dtype, device="cpu")
    set_scheduler(pipe, "ddim")
    pipe.set_progress_bar_config(disable=True)
    if channels_last:
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    return pipe


def _ready(pipe: Any, way: Way) -> Any:
    made = copy.copy(pipe)
    made.unet = sharing_weights(pipe.unet)
    if way.tiny_vae:
        made.vae = AutoencoderTiny(scaling_factor=pipe.vae.config.scaling_factor).eval().to(pipe.dtype)
        if way.channels_last:
            made.vae.to(memory_format=torch.channels_last)
    if way.variant is not None:
        apply_deepcache(made, parse_variant(way.variant).config)
    return made


def _run(pipe: Any, way: Way, options: argparse.Namespace, steps: int | None = None) -> None:
    pipe(
        "a photo of an astronaut on a moon",
        height=options.pixels,
        width=options.pixels,
        num_inference_steps=steps or way.steps or options.steps,
        guidance_scale=GUIDANCE if way.guided else 1.0,
        generator=torch.Generator().manual_seed(0),
    )


def _row(way: Way, seconds: dict[str, list[float]]) -> dict[str, Any]:
    own = seconds[way.name]
    ratios = [before / after for before, after in zip(seconds[WAYS[0].name], own, strict=True)]
    return {
        "name": way.name,
        "variant": way.variant,
        "seconds": own,
        "median": median(own),
        "speed_up": median(ratios),
        "speed_up_spread": [min(ratios), max(ratios)],
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "cpu_steps.json")
    parser.add_argument("--model", default="sd15")
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
