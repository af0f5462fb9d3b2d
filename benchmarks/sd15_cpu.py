"""The time of a shallow step and the memory kept between steps in U-Nets of full size: ours and the reference package.

Time: Stable Diffusion 1.5's U-Net with random weights, fp32, batch 1. In every round each case runs one full step
and some shallow ones, in turn, so that other work on the machine affects all of them.
Memory: bytes kept between steps, from that run, and for fp16 with guidance from the shapes of meta tensors (which
have sizes but no storage).

    python -m benchmarks.sd15_cpu --output benchmarks/sd15_cpu.json
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import diffusers
import torch
from diffusers import UNet2DConditionModel
from rich.progress import Progress
from torch import Tensor

from benchmarks.harness.denoising_run import BarePipe, ddim
from benchmarks.harness.reference_package import reference_helper_class
from benchmarks.harness.tiny_unets import UnetInputs
from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from DeepCache.bench.benchmark_case import bytes_of
from DeepCache.bench.provenance import provenance
from DeepCache.bench.result_file import write_result
from DeepCache.engine.cost import count_costs
from DeepCache.models import ARCHITECTURES

CASES = ("plain", "ours", "reference")
SD15, SDXL = (ARCHITECTURES[name].networks["unet"].config for name in ("sd15", "sdxl"))


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    diffusers.utils.logging.set_verbosity_error()
    torch.manual_seed(options.seed)
    inputs = _sd15_inputs(options.pixels, batch=1, dtype=torch.float32, device="cpu")
    unet = UNet2DConditionModel(**SD15).eval().requires_grad_(False)
    rounds, kept = _race(unet, inputs, options.rounds, options.shallow_steps, options.branch)

    costs = count_costs(unet, (inputs.sample, 0), inputs.kwargs)
    result = provenance(options.seed) | {
        "unet": "Stable Diffusion 1.5, random weights",
        "pixels": options.pixels,
        "dtype": "float32",
        "batch": 1,
        "threads": options.threads,
        "branch": options.branch,
        "multiply_accumulates": {
            "full": costs.full,
            "shallow": costs.shallow[options.branch],
            "ratio": costs.share(options.branch),
        },
        "summary": {name: _summary(name, rounds) for name in CASES},
        "bytes_kept": [
            {"unet": "sd15", "pixels": options.pixels, "dtype": "float32", "batch": 1, "how": "measured"} | kept,
            _bytes_from_shapes("sd15", SD15, _sd15_inputs(512, 2, torch.float16, "meta"), 512, options.branch),
            _bytes_from_shapes("sdxl", SDXL, _sdxl_inputs(1024, 2, torch.float16, "meta"), 1024, options.branch),
        ],
        "seconds": rounds,
    }
    write_result(options.output, result)
    for name in CASES:
        print(name, result["summary"][name])
    print(f"multiply-accumulates, shallow/full: {costs.share(options.branch):.4f}")
    for row in result["bytes_kept"]:
        print(row)
    print(options.output)


def _race(
    unet: UNet2DConditionModel, inputs: UnetInputs, rounds: int, shallow_steps: int, branch: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Seconds of each U-Net call, a list per case and round (the first is the full step), and the bytes kept."""
    times, kept = [], {}
    with Progress() as progress:
        for number in progress.track(range(-1, rounds), description="rounds, the first to warm up"):
            # Each goes first equally often.
            order = [CASES[(number + place) % len(CASES)] for place in range(len(CASES))]
            seconds = {}
            for name in order:
                calls = 1 if name == "plain" else 1 + shallow_steps
                pipe = BarePipe(unet, ddim(1 + shallow_steps))
                with _enabled(name, pipe, 1 + shallow_steps, branch) as bytes_kept:
                    seconds[name] = _time_calls(pipe, inputs, calls)
                    kept[name] = bytes_kept()
            if number >= 0:
                times.append(seconds)
    del kept["plain"]
    return times, kept


@torch.no_grad()
def _time_calls(pipe: BarePipe, inputs: UnetInputs, calls: int) -> list[float]:
    seconds = []
    for timestep in pipe.scheduler.timesteps[:calls]:
        start = perf_counter()
        pipe.unet(inputs.sample, timestep, **inputs.kwargs)
        seconds.append(perf_counter() - start)
    return seconds


@contextmanager
def _enabled(name: str, pipe: BarePipe, interval: int, branch: int) -> Iterator[Any]:
    """Enables the caching of a case for the length of a block; yields a function that returns the bytes kept."""
    if name == "ours":
        engine = apply_deepcache(pipe, DeepCacheConfig(cache_interval=interval, cache_branch_id=branch))
        yield lambda: engine.stats.bytes_kept
        remove_deepcache(pipe)
    elif name == "reference":
        helper = reference_helper_class()(pipe=pipe)
        helper.set_params(cache_interval=interval, cache_branch_id=branch)
        helper.enable()
        yield lambda: bytes_of(helper.cached_output.values())
        helper.disable()
        # It leaves the U-Net's own `forward` behind as an attribute of the instance.
        del pipe.unet.forward
    else:
        yield lambda: 0


def _bytes_from_shapes(
    name: str, architecture: dict[str, Any], inputs: UnetInputs, pixels: int, branch: int
) -> dict[str, Any]:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**architecture).to(inputs.sample.dtype)
    kept = {}
    for case in ("ours", "reference"):
        pipe = BarePipe(unet, ddim(2))
        with _enabled(case, pipe, 2, branch) as bytes_kept:
            _time_calls(pipe, inputs, calls=1)
            kept[case] = bytes_kept()
    dtype = str(inputs.sample.dtype).removeprefix("torch.")
    batch = inputs.sample.shape[0]
    return {"unet": name, "pixels": pixels, "dtype": dtype, "batch": batch, "how": "meta tensors"} | kept


def _summary(name: str, rounds: list[dict[str, list[float]]]) -> dict[str, float]:
    full = [seconds[name][0] for seconds in rounds]
    if name == "plain":
        return {"full_median": median(full)}
    shallow = [median(seconds[name][1:]) for seconds in rounds]
    ratios = [one / other for one, other in zip(shallow, full, strict=True)]
    return {
        "full_median": median(full),
        "shallow_median": median(shallow),
        "ratio_median": median(ratios),
        "ratio_smallest": min(ratios),
        "ratio_largest": max(ratios),
    }


def _sd15_inputs(pixels: int, batch: int, dtype: torch.dtype, device: str) -> UnetInputs:
    sample = torch.randn(batch, 4, pixels // 8, pixels // 8, dtype=dtype, device=device)
    return UnetInputs(sample, {"encoder_hidden_states": torch.randn(batch, 77, 768, dtype=dtype, device=device)})


def _sdxl_inputs(pixels: int, batch: int, dtype: torch.dtype, device: str) -> UnetInputs:
    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, dtype=dtype, device=device)

    added = {"text_embeds": normal(1280), "time_ids": normal(6)}
    kwargs = {"encoder_hidden_states": normal(77, 2048), "added_cond_kwargs": added}
    return UnetInputs(normal(4, pixels // 8, pixels // 8), kwargs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/sd15_cpu.json"))
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shallow-steps", type=int, default=3, help="shallow steps in a round")
    parser.add_argument("--branch", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
