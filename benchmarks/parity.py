"""How often ours and the reference package agree to the last bit.

Every kind of U-Net that the reference package accelerates, tiny and with random weights; every skip branch; intervals
1 to 6; sizes that are a multiple of the U-Net's factor and sizes that are not.

    python -m benchmarks.parity --output benchmarks/parity.json.gz
"""

from __future__ import annotations

import argparse
import copy
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from benchmarks.harness.denoising_run import ddim, identical, run_denoising
from benchmarks.harness.reference_package import reference_helper_class
from benchmarks.harness.tiny_unets import TINY_UNETS
from DeepCache import DeepCacheSDHelper
from DeepCache.bench.provenance import provenance
from DeepCache.bench.result_file import write_result


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    cases = [
        (name, size, branch, interval)
        for name in options.unets
        for size, branch, interval in product(
            TINY_UNETS[name].sizes, range(TINY_UNETS[name].branches), options.intervals
        )
    ]
    result: dict[str, Any] = provenance(options.seed) | {"steps": options.steps, "threads": 1, "summary": {}}
    comparisons = []
    with Progress() as progress:
        for case in progress.track(cases, description="comparing"):
            comparisons.append(_compare(*case, options.steps, options.seed))
    for name in options.unets:
        agreements = [row["identical"] for row in comparisons if row["unet"] == name]
        result["summary"][name] = {"identical": sum(agreements), "of": len(agreements)}
    result["identical"] = sum(row["identical"] for row in comparisons)
    result["of"] = len(comparisons)
    result["comparisons"] = comparisons
    write_result(options.output, result)
    print(f"{result['identical']} of {result['of']} trajectories are bit-identical: {options.output}")


def _compare(name: str, size: int, branch: int, interval: int, steps: int, seed: int) -> dict[str, Any]:
    kind = TINY_UNETS[name]
    unet, inputs = kind.seeded(seed), kind.make_inputs(size, seed)
    theirs = run_denoising(copy.deepcopy(unet), ddim(steps), reference_helper_class(), interval, branch, inputs)
    ours = run_denoising(unet, ddim(steps), DeepCacheSDHelper, interval, branch, inputs)
    return {
        "unet": name,
        "size": list(inputs.sample.shape[-2:]),
        "branch": branch,
        "interval": interval,
        "identical": identical(ours, theirs),
        "largest_difference": max(
            (first - second).abs().max().item() for first, second in zip(ours, theirs, strict=True)
        ),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/parity.json.gz"))
    parser.add_argument("--unets", nargs="+", choices=list(TINY_UNETS), default=list(TINY_UNETS))
    parser.add_argument("--intervals", nargs="+", type=int, default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
