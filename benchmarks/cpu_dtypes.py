"""What float32, bfloat16 and float16 cost on CPUs, by the instructions that a processor has.

Three layers of Stable Diffusion 1.5's U-Net at 512 px with guidance (batch 2), on one thread: a convolution of 320
channels, the linear layer of a feed-forward and self-attention over 4096 tokens. There is one process for each level of
instructions (`benchmarks.cpu_levels`, which says what a level is and what it is not). In each round all of them run
every layer in every dtype, in turn, twice each. A layer whose first call takes longer than `--patience` seconds is not
run again: its first call is its time.

    python -m benchmarks.cpu_dtypes
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.cpu_levels import LEVELS, NOTE, described, rotated, serve, workers
from DeepCache.bench.provenance import provenance
from DeepCache.bench.result_file import write_result
from DeepCache.models.device import cpu_support

MODULE = "benchmarks.cpu_dtypes"
DTYPES = ("float32", "bfloat16", "float16")
LAYERS = {
    "convolution": "Conv2d(320, 320, 3), 2x320x64x64",
    "linear": "Linear(320, 2560), 2x4096x320",
    "attention": "scaled_dot_product_attention, 2x8x4096x40",
}


def main() -> None:
    options = _options()
    if options.worker:
        torch.set_num_threads(1)
        torch.manual_seed(options.seed)
        serve(_Layers(options.side).answer)
        return
    levels = [level for level in LEVELS if level != "native"]
    result = provenance(options.seed) | {
        "cpu_support": {name: cpu_support(getattr(torch, name)) for name in DTYPES},
        "threads": 1,
        "rounds": options.rounds,
        "layers": LAYERS,
        "note": NOTE,
    }
    if options.side != 64:
        result["layers"] = {name: f"{layer}, at side {options.side} in place of 64" for name, layer in LAYERS.items()}
    result |= measured(levels, options)
    write_result(options.output, result)
    report(result)
    print(options.output)


def measured(levels: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """All times, and what they come to."""
    cases = [(layer, dtype) for layer in LAYERS for dtype in DTYPES]
    arguments = ["--side", str(options.side), "--seed", str(options.seed)]
    with workers(MODULE, levels, arguments) as running, Progress() as progress:
        task = progress.add_task("rounds, the first to warm up", total=(1 + options.rounds) * len(levels) * len(cases))
        says = {level: worker.ask("describe") for level, worker in running.items()}
        first: dict[tuple[str, str, str], float] = {}
        seconds: dict[tuple[str, str, str], list[float]] = {}
        for number in range(-1, options.rounds):
            for layer, dtype in cases:
                for level in rotated(levels, number):
                    key = (level, layer, dtype)
                    if number < 0:
                        (first[key],) = running[level].ask("time", layer, dtype, 1)
                    elif first[key] <= options.patience:
                        seconds.setdefault(key, []).extend(running[level].ask("time", layer, dtype, 2))
                    progress.advance(task)
    found = {}
    for level in levels:
        times = {key: seconds.get((level, *key), [first[(level, *key)]]) for key in cases}
        found[level] = {
            "environment": LEVELS[level],
            "pytorch_says": says[level],
            "layers": {
                layer: {
                    dtype: {
                        "median_ms": 1000 * median(times[layer, dtype]),
                        "to_float32": median(times[layer, dtype]) / median(times[layer, "float32"]),
                        "first_call_alone": (level, layer, dtype) not in seconds,
                        "seconds": [round(each, 6) for each in times[layer, dtype]],
                    }
                    for dtype in DTYPES
                }
                for layer in LAYERS
            },
        }
    return {"levels": found}


class _Layers:
    """The layers of a worker, in every dtype.

    Args:
        side: height and width of the latents.
    """

    def __init__(self, side: int) -> None:
        self._calls: dict[tuple[str, str], Callable[[], Tensor]] = {}
        convolution, linear = nn.Conv2d(320, 320, 3, padding=1), nn.Linear(320, 2560)
        image = torch.randn(2, 320, side, side)
        tokens, heads = torch.randn(2, side * side, 320), torch.randn(2, 8, side * side, 40)
        for name in DTYPES:
            dtype: Any = getattr(torch, name)
            self._add("convolution", name, deepcopy(convolution).to(dtype), image.to(dtype))
            self._add("linear", name, deepcopy(linear).to(dtype), tokens.to(dtype))
            self._add("attention", name, scaled_dot_product_attention, *[heads.to(dtype)] * 3)

    def _add(self, layer: str, dtype: str, function: Callable[..., Tensor], *inputs: Tensor) -> None:
        self._calls[layer, dtype] = lambda: function(*inputs)

    def answer(self, what: str, *arguments: Any) -> Any:
        """What a worker answers: what PyTorch says of its level, or the seconds of some calls of a layer."""
        return described() if what == "describe" else self.time(*arguments)

    @torch.no_grad()
    def time(self, layer: str, dtype: str, calls: int) -> list[float]:
        """Seconds of each of some calls."""
        found = []
        for _ in range(calls):
            start = perf_counter()
            self._calls[layer, dtype]()
            found.append(perf_counter() - start)
        return found


def report(result: dict[str, Any]) -> None:
    """Prints milliseconds, and for the small dtypes their share of those of float32."""
    for level, found in result["levels"].items():
        print(level)
        for layer, dtypes in found["layers"].items():
            shown = (f"{dtype} {each['median_ms']:.1f} ms ({each['to_float32']:.2f})" for dtype, each in dtypes.items())
            print(f"  {layer}: {', '.join(shown)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/cpu_dtypes.json"))
    parser.add_argument("--side", type=int, default=64, help="of the latents")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patience", type=float, default=5.0, help="seconds that a call may take to be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", action="store_true", help="be a worker, which the script starts by itself")
    return parser.parse_args()


if __name__ == "__main__":
    main()
