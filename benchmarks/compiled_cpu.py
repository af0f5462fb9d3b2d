"""Compiled against compiled, on the CPU: Stable Diffusion 1.5's U-Net at 512 px, eager, with its transformer blocks
compiled, and whole.

Without caching, with DeepCache and with the reference package, all in turn in one run. The reference package is not
measured whole: the compiler recompiles it for each step. Cold starts are taken first, each in a
process of its own with an empty cache of compiled code. Six steps, of which two are full, as seventeen of fifty are.

    python -m benchmarks.compiled_cpu
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from rich.progress import Progress

from benchmarks.gpu import REFERENCE as REFERENCE_PACKAGE
from DeepCache.bench.benchmark_case import BASELINE, DEEPCACHE, REFERENCE, BenchmarkCase
from DeepCache.bench.clock import timed
from DeepCache.bench.provenance import provenance
from DeepCache.bench.result_file import write_result
from DeepCache.bench.variants import parse_variant
from DeepCache.bench.workload import PipelineCall
from DeepCache.cli.loading import quiet_libraries
from DeepCache.engine.cost import count_costs
from DeepCache.models import load_pipeline, set_scheduler
from DeepCache.schedule import mean_cost

HERE = Path(__file__).parent
STEPS = 6
VARIANT = parse_variant("I=3 B=0")
MODES = ("eager", "regional", "compiled")
FIELD = tuple((method, mode) for mode in MODES for method in (BASELINE, DEEPCACHE, REFERENCE))[:-1]


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    with quiet_libraries():
        if options.cold:
            print(json.dumps(_cold_start(options)))
        else:
            _measure(options)


def _measure(options: argparse.Namespace) -> None:
    result = provenance(seed=0) | {
        "unet": f"{options.model}, random weights",
        "pixels": options.pixels,
        "dtype": options.dtype,
        "batch": "1, guided",
        "steps": STEPS,
        "variant": VARIANT.name,
        "threads": options.threads,
        "cold_start": {mode: _cold_start_apart(mode) for mode in MODES},
    }
    pipe = _pipeline(options)
    cases = {(method, mode): _benchmark_case(pipe, options, method, mode) for method, mode in FIELD}
    loop = cases[BASELINE, "eager"].loop
    share = mean_cost(VARIANT.config.steps(STEPS), count_costs(pipe.unet, loop.args, loop.kwargs))
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in FIELD}
    with Progress() as progress:
        for number in progress.track(range(-1, options.rounds), description="rounds, the first to compile"):
            turn = number % len(FIELD)
            for key in (*FIELD[turn:], *FIELD[:turn]):
                timing = timed(cases[key].run, torch.device("cpu"))
                cases[key].release()
                if number >= 0:
                    seconds[key].append(timing.seconds)
    result |= {
        "limit": 1 / share,
        "rows": [_row(method, mode, seconds, share) for method, mode in FIELD],
    }
    write_result(options.output, result)
    for row in result["rows"]:
        print(row["method"], row["mode"], f"{row['median']:.3g} s, {row['speed_up']:.2f}x")
    print(result["cold_start"])
    print(options.output)


def _row(method: str, mode: str, seconds: dict[tuple[str, str], list[float]], share: float) -> dict[str, Any]:
    own = seconds[method, mode]
    # Each against no caching in the same mode, and against the pipeline as it comes.
    ratios = [before / after for before, after in zip(seconds[BASELINE, mode], own, strict=True)]
    in_all = [before / after for before, after in zip(seconds[BASELINE, "eager"], own, strict=True)]
    return {
        "method": method,
        "mode": mode,
        "median": median(own),
        "speed_up": median(ratios),
        "speed_up_spread": [min(ratios), max(ratios)],
        "share_of_limit": median(ratios) * share if method != BASELINE else None,
        "speed_up_over_eager": median(in_all),
        "seconds": own,
    }


def _benchmark_case(pipe: Any, options: argparse.Namespace, method: str, mode: str) -> BenchmarkCase:
    """They share the weights of the pipeline."""
    return BenchmarkCase(
        pipe,
        method,
        PipelineCall(1, (options.pixels, options.pixels), STEPS, guidance=7.5),
        VARIANT if method != BASELINE else None,
        reference=REFERENCE_PACKAGE,
        unet_only=True,
        mode=mode,
    )


def _pipeline(options: argparse.Namespace) -> Any:
    pipe = load_pipeline(options.model, dtype=options.dtype, device="cpu")
    set_scheduler(pipe, "ddim")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _cold_start(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the first run with DeepCache and of the second."""
    one = _benchmark_case(_pipeline(options), options, DEEPCACHE, options.cold)
    runs = []
    for _ in range(2):
        begin = perf_counter()
        one.run()
        runs.append(perf_counter() - begin)
    return {"first_run": runs[0], "second_run": runs[1], "cold_start": runs[0] - runs[1]}


def _cold_start_apart(mode: str) -> dict[str, float]:
    with TemporaryDirectory() as empty:
        command = [sys.executable, "-m", "benchmarks.compiled_cpu", *sys.argv[1:], "--cold", mode]
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": empty}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "compiled_cpu.json")
    parser.add_argument("--model", default="sd15")
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cold", choices=MODES, help="measure this cold start alone and print it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
