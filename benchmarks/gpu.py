"""The table of the documentation of diffusers on a CUDA card: Stable Diffusion 2.1, 1.5, SDXL and SVD at full size.

DeepCache, the reference package, no caching and fewer steps in float16 with 50 steps (SVD: 25): eager, compiled,
captured as CUDA graphs, and with the blocks alone compiled. The weights are random, built on the card: nothing is
downloaded but the reference package, and time does not depend on them. A card and an installed DeepCache are all it
takes:

    python -m benchmarks.gpu

Results are written after every round, so an interrupted run resumes; `--minutes 9` stops by itself,
for machines that are lent in short pieces. `--dry-run` goes through all of it on the CPU with tiny models. A page of
what there is so far: `deepcache report benchmarks/gpu/CARD/*.json`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import torch
from rich.console import Console

from DeepCache.bench.benchmark import BenchmarkSettings, is_complete, run_benchmark
from DeepCache.bench.benchmark_case import CAPTURED
from DeepCache.bench.profiles import PROFILE_FILE, run_profile
from DeepCache.bench.variants import PUBLISHED_VARIANTS, parse_variant
from DeepCache.cli.loading import quiet_libraries
from DeepCache.cli.progress import WorkDisplay

HERE = Path(__file__).parent
REFERENCE = HERE.parent / "build" / "reference"
PINNED_REFERENCE = HERE.parent / "tests" / "parity" / "reference.txt"

# What the table has, and what goes beyond it at the same cost and at less.
VARIANTS = (*PUBLISHED_VARIANTS, *map(parse_variant, ("I=3 linear", "I=3 linear guidance-reuse")))


@dataclass(frozen=True)
class Grid:
    """What of a model is measured."""

    model: str
    sizes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    steps: int = 50


# The table's own model first: what comes first is there even where time runs out.
GRIDS = (
    Grid("sd21", ((512, 512), (768, 768), (1024, 1024)), (1, 4, 8)),
    Grid("sd15", ((512, 512),), (1, 4, 8)),
    Grid("sdxl", ((1024, 1024),), (1, 4)),
    Grid("svd", ((1024, 576),), (1,), steps=25),
)
MODES = ("eager", "captured", "compiled", "regional")


@dataclass(frozen=True)
class Job:
    """One result file."""

    name: str
    settings: BenchmarkSettings


def jobs(reference: Path | None) -> Iterator[Job]:
    """All that is to be measured: everything eager first, whole pipelines before U-Nets alone."""
    for mode in MODES:
        for scope in ("pipeline", "unet"):
            for grid in GRIDS:
                settings = BenchmarkSettings(
                    model=grid.model,
                    variants=VARIANTS,
                    sizes=grid.sizes,
                    batches=grid.batches,
                    dtypes=("float16",),
                    modes=(mode,),
                    scopes=(scope,),
                    steps=grid.steps,
                    rounds=3,
                    reference=reference if mode in ("eager", "regional") else None,
                )
                yield Job(f"{grid.model}-{mode}-{scope}", settings)
    if reference is not None:
        # Last and by itself: the compiler recompiles the reference package for each step, which takes
        # minutes before the first round.
        for grid in GRIDS:
            alone = BenchmarkSettings(
                model=grid.model,
                variants=PUBLISHED_VARIANTS[:1],
                sizes=grid.sizes[:1],
                dtypes=("float16",),
                modes=("compiled",),
                scopes=("pipeline",),
                steps=grid.steps,
                rounds=3,
                fewer_steps=False,
                reference=reference,
            )
            yield Job(f"{grid.model}-compiled-pipeline-reference", alone)


def tiny(job: Job) -> Job | None:
    """The same with a model that a CPU runs in a moment; None where it takes a CUDA device."""
    settings = job.settings
    if set(settings.modes) & set(CAPTURED):
        return None
    small = replace(
        settings,
        model=f"{settings.model}-tiny",
        sizes=tuple((width // 8, height // 8) for width, height in settings.sizes),
        batches=settings.batches[:2],
        dtypes=("float32",),
        steps=6,
        rounds=2,
    )
    return Job(f"{job.name}-tiny", small)


def main() -> None:
    options = _options()
    console = Console(stderr=True)
    if not options.dry_run and not torch.cuda.is_available():
        sys.exit("there is no CUDA device; --dry-run goes through all of it on the CPU with tiny models")
    device = "cpu" if options.dry_run else options.device
    wanted = [tiny(job) if options.dry_run else job for job in jobs(_reference(console))]
    chosen = [job for job in wanted if job and (not options.jobs or any(part in job.name for part in options.jobs))]
    folder = options.output
    if folder is None:
        folder = HERE.parent / "build" / "gpu-dry-run" if options.dry_run else HERE / "gpu" / _card(device)
    folder.mkdir(parents=True, exist_ok=True)
    begin, left = monotonic(), []
    with quiet_libraries():
        for job in chosen:
            seconds = None if options.minutes is None else 60 * options.minutes - (monotonic() - begin)
            if seconds is not None and seconds <= 0:
                left.append(job.name)
                continue
            path = folder / f"{job.name}.json"
            with WorkDisplay() as display:
                result = run_benchmark(job.settings, path, device, display, seconds)
            if not is_complete(result):
                left.append(job.name)
            elif options.profile and job.settings.scopes == ("unet",):
                where = folder / f"{job.name}-profile"
                if not (where / PROFILE_FILE).exists():
                    with WorkDisplay() as display:
                        run_profile(job.settings, result, where, device, display)
            console.print(f"{path}: {_state(result)}", soft_wrap=True, highlight=False)
    if left:
        console.print(f"The same command continues with {', '.join(left)}.", soft_wrap=True, highlight=False)


def _state(result: dict[str, list[dict[str, str]]]) -> str:
    states = [cell["status"] for cell in result["cells"]]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _reference(console: Console) -> Path | None:
    """The reference package, fetched where it is not there yet."""
    if not (REFERENCE / "DeepCache").is_dir() and not any(REFERENCE.glob("*.whl")):
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        fetch += ["--require-hashes", "--requirement", str(PINNED_REFERENCE), "--dest", str(REFERENCE)]
        if subprocess.run(fetch, check=False).returncode:
            console.print(f"Without the reference package, which cannot be fetched to {REFERENCE}.", highlight=False)
            return None
    return REFERENCE if (REFERENCE / "DeepCache").is_dir() else next(REFERENCE.glob("*.whl"))


def _card(device: str) -> str:
    """The name of the card, for a folder."""
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="a folder; benchmarks/gpu/ and the card's name by default")
    parser.add_argument("--jobs", nargs="+", help="only those whose name has one of these in it: sd21, eager, unet, …")
    parser.add_argument("--minutes", type=float, help="begin no round that would end later")
    parser.add_argument("--profile", action="store_true", help="where time goes, for every job of a U-Net alone")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny models")
    return parser.parse_args()


if __name__ == "__main__":
    main()
