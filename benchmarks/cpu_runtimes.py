"""Stable Diffusion 1.5's U-Net at 512 px on the CPU: PyTorch eager and compiled, OpenVINO and ONNX Runtime, each
without caching and with DeepCache, and the reference package where it runs, all in turn in one run.

Every call of the U-Net is timed, so that one run gives full and shallow steps, whole loops, and fewer steps without
caching. Then the fidelity of weights of 8 bits, on the bundled model, and the share of a shallow step of SDXL.

Each runtime keeps the weights in its own way, and in float32 all of them together take more than 24 GB. So PyTorch and
each of the others run in processes of their own, one after the other in each round; graphs are made before the first.

    python -m benchmarks.cpu_runtimes --steps 5
    python -m benchmarks.cpu_runtimes --dtype bfloat16 --runtimes eager,regional,compiled,openvino \\
        --sdxl-pixels 512 --output benchmarks/cpu_runtimes_bfloat16.json
    python -m benchmarks.cpu_runtimes --model shapes --pixels 64 --steps 20 --rounds 5 \\
        --output benchmarks/cpu_runtimes_shapes.json
"""

from __future__ import annotations

import argparse
import copy
import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from rich.progress import Progress

from benchmarks.cpu_levels import Worker, rotated, serve
from benchmarks.gpu import REFERENCE as REFERENCE_PACKAGE
from DeepCache.bench.benchmark_case import BASELINE, DEEPCACHE, GRAPHS, MODES, REFERENCE, sharing_weights
from DeepCache.bench.provenance import provenance
from DeepCache.bench.reference import reference_helper_class
from DeepCache.bench.result_file import write_result
from DeepCache.bench.summary import summary
from DeepCache.bench.variants import parse_variant
from DeepCache.bench.workload import PipelineCall, UnetLoop
from DeepCache.cli.loading import quiet_libraries
from DeepCache.config import DeepCacheConfig
from DeepCache.engine.attach import DeepCacheEngine, apply_deepcache, remove_deepcache
from DeepCache.engine.compilation import Compilation
from DeepCache.engine.cost import count_costs
from DeepCache.export import export_graphs, load_graphs
from DeepCache.export.formats import graph_format
from DeepCache.export.identity import versions_of
from DeepCache.generation.batch_sampler import BatchSampler
from DeepCache.metrics import psnr
from DeepCache.models import load_pipeline, set_scheduler
from DeepCache.prompts.bundled import bundled_prompts
from DeepCache.schedule import mean_cost

HERE = Path(__file__).parent
VARIANTS = {"I=3": parse_variant("I=3 B=0"), "I=5": parse_variant("I=5 B=0")}
INT8 = "openvino int8"
RUNTIMES = ("eager", "regional", "compiled", "openvino", INT8, "onnx")
GUIDANCE = 7.5
Key = tuple[str, str, str]
"""A runtime, a method and its settings."""
EAGER: Key = ("eager", BASELINE, "no caching")
WARM_UP = 2  # a full step and a shallow one


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    with quiet_libraries():
        if options.worker:
            serve(_Runtimes(options).answer)
            return
        with TemporaryDirectory() as folder:
            result = _measured(options, Path(folder))
            if INT8 in options.runtimes:
                result["int8_fidelity"] = _int8_fidelity(Path(folder))
        if options.sdxl_pixels:
            result["sdxl"] = _sdxl(options)
    write_result(options.output, result)
    for row in result["rows"]:
        print(row["runtime"], row["method"], row["settings"], f"{row['median']:.3g} s, {row['speed_up']:.2f}x")
    print(options.output)


def _measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    on_graphs = [runtime for runtime in options.runtimes if _is_graphs(runtime)]
    on_pytorch = ",".join(runtime for runtime in options.runtimes if not _is_graphs(runtime))
    with Progress() as progress:
        for runtime in progress.track(on_graphs, description="making graphs"):
            with _process(options, runtime, folder) as process:
                process.ask("export")
        seconds: dict[Key, list[list[float]]] = {}
        groups = [on_pytorch, *on_graphs]
        for number in progress.track(range(options.rounds), description="rounds"):
            for runtimes in rotated(groups, number):
                with _process(options, runtimes, folder) as process:
                    for key in map(tuple, process.ask("prepare")):
                        # Both intervals share what is compiled.
                        if key[2] != "I=5":
                            process.ask("seconds", *key, WARM_UP)
                        seconds.setdefault(key, []).append(process.ask("seconds", *key, options.steps))
                    if runtimes == on_pytorch:
                        shares = process.ask("shares")
    keys = sorted(seconds, key=lambda key: options.runtimes.index(key[0]))
    versions = {}
    for runtime in on_graphs:
        versions |= versions_of(graph_format(runtime.split()[0]).packages)
    made = provenance(seed=0)
    fewer = sorted({max(1, round(options.steps * shares[name])) for name in VARIANTS}, reverse=True)
    return made | {
        "versions": made["versions"] | versions,
        "unet": f"{options.model}, random weights",
        "pixels": options.pixels,
        "dtype": options.dtype,
        "batch": "1, guided",
        "guidance": GUIDANCE,
        "steps": options.steps,
        "rounds": options.rounds,
        "threads": options.threads,
        "shallow_share_of_macs": shares["shallow"],
        "rows": [row for key in keys for row in _rows(key, seconds, fewer)],
    }


def _is_graphs(runtime: str) -> bool:
    return runtime.split()[0] in GRAPHS


def _process(options: argparse.Namespace, runtimes: str, folder: Path) -> Worker:
    """A process for runtimes that share the weights."""
    same = [f"--{name}={getattr(options, name)}" for name in ("model", "pixels", "dtype", "steps", "threads")]
    arguments = [*same, f"--runtimes={runtimes}", f"--graphs={folder / runtimes.replace(' ', '-')}"]
    return Worker("benchmarks.cpu_runtimes", "native", arguments, threads=options.threads)


class _Runtimes:
    """Answers for runtimes that share the weights, or the graphs: both intervals share what is compiled."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._pipe = _pipeline(options.model, options.dtype)
        self._call = PipelineCall(1, (options.pixels, options.pixels), options.steps, guidance=GUIDANCE)
        self._runs: dict[Key, Callable[[int], list[float]]] = {}

    def answer(self, question: str, *arguments: Any) -> Any:
        gc.collect()
        return getattr(self, question)(*arguments)

    def export(self) -> None:
        runtime = self._options.runtimes[0]
        call = self._call.arguments(self._pipe)
        export_graphs(
            self._pipe, self._options.graphs, call, format=runtime.split()[0], int8=runtime == INT8, overwrite=True
        )

    def prepare(self) -> list[Key]:
        """What can be run: runtime, method and settings."""
        self._loop = UnetLoop.of(self._pipe, self._call)
        if _is_graphs(self._options.runtimes[0]):
            self._pipe.unet = load_graphs(self._options.graphs)
        # The loop has all that a call of the U-Net takes.
        self._pipe.text_encoder = self._pipe.vae = None
        for runtime in self._options.runtimes:
            self._runs |= dict(self._runs_in(runtime))
        return list(self._runs)

    def _runs_in(self, runtime: str) -> Iterator[tuple[Key, Callable[[int], list[float]]]]:
        loop, mode = self._loop, "eager" if _is_graphs(runtime) else runtime
        yield (runtime, BASELINE, "no caching"), partial(_timed_calls, _copy(self._pipe, mode), loop)
        engine = apply_deepcache(_copy(self._pipe), _config("I=3", mode))
        for name in VARIANTS:
            yield (runtime, DEEPCACHE, name), partial(_with_deepcache, engine, loop, _config(name, mode))
        if runtime == "eager":
            helper = reference_helper_class(REFERENCE_PACKAGE)(pipe=_copy(self._pipe))
            for name, variant in VARIANTS.items():
                interval = variant.config.cache_interval
                yield (runtime, REFERENCE, name), partial(_with_reference, helper, loop, interval)

    def seconds(self, runtime: str, method: str, settings: str, steps: int) -> list[float]:
        return self._runs[runtime, method, settings](steps)

    def shares(self) -> dict[str, float]:
        """The work of a shallow step, and of a run with each interval, as shares of that without caching."""
        costs = count_costs(self._pipe.unet, self._loop.args, self._loop.kwargs, [0])
        runs = {name: mean_cost(variant.config.steps(self._options.steps), costs) for name, variant in VARIANTS.items()}
        return runs | {"shallow": costs.share(0)}


def _copy(pipe: Any, mode: str = "eager") -> Any:
    """The pipeline with a U-Net of its own that shares the weights, compiled as the mode says."""
    made = copy.copy(pipe)
    made.unet = sharing_weights(pipe.unet)
    Compilation(made.unet, MODES[mode]).attach()
    return made


def _config(name: str, mode: str) -> DeepCacheConfig:
    return replace(VARIANTS[name].config, compile=MODES[mode])


def _with_deepcache(engine: DeepCacheEngine, loop: UnetLoop, config: DeepCacheConfig, steps: int) -> list[float]:
    engine.configure(config)
    seconds = _timed_calls(engine.pipe, loop, steps)
    engine.end_run()
    return seconds


def _with_reference(helper: Any, loop: UnetLoop, interval: int, steps: int) -> list[float]:
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()
    try:
        return _timed_calls(helper.pipe, loop, steps)
    finally:
        helper.disable()


def _timed_calls(pipe: Any, loop: UnetLoop, steps: int) -> list[float]:
    """Seconds of each call of the U-Net in the first steps of a run."""
    each = []
    pipe.scheduler.timesteps = loop.timesteps
    with torch.no_grad():
        for timestep in loop.timesteps[loop.first :][:steps]:
            begin = perf_counter()
            pipe.unet(loop.args[0], timestep, *loop.args[2:], **loop.kwargs)
            each.append(perf_counter() - begin)
    return each


def _rows(key: Key, seconds: dict[Key, list[list[float]]], fewer: list[int]) -> list[dict[str, Any]]:
    runtime, method, name = key
    own, eager, same = seconds[key], seconds[EAGER], seconds[runtime, BASELINE, "no caching"]
    interval = VARIANTS[name].config.cache_interval if name in VARIANTS else 1
    rows = [_row(runtime, method, name, [sum(each) for each in own], eager, same)]
    if method == BASELINE:
        rows += [
            _row(runtime, "fewer steps", f"{count} steps", [sum(each[:count]) for each in own], eager, same)
            for count in fewer
        ]
    full = [median(each[::interval]) for each in own]
    rows[0]["full_step"] = full
    if interval > 1:
        shallow = [median(value for number, value in enumerate(each) if number % interval) for each in own]
        rows[0] |= {
            "shallow_step": shallow,
            "shallow_over_full": median(one / other for one, other in zip(shallow, full, strict=True)),
        }
    return rows


def _row(
    runtime: str, method: str, name: str, own: list[float], eager: list[list[float]], same: list[list[float]]
) -> dict[str, Any]:
    over_eager = [sum(before) / after for before, after in zip(eager, own, strict=True)]
    over_same = [sum(before) / after for before, after in zip(same, own, strict=True)]
    return {
        "runtime": runtime,
        "method": method,
        "settings": name,
        "seconds": own,
        "median": median(own),
        "speed_up": median(over_eager),
        "speed_up_spread": [min(over_eager), max(over_eager)],
        "speed_up_in_runtime": median(over_same),
    }


def _int8_fidelity(folder: Path) -> dict[str, Any]:
    """PSNR of images with weights of 8 bits against the same graphs in float32, each without caching and with I=3."""
    pipe = _pipeline("shapes", "float32")
    prompts = bundled_prompts("shapes")[:24]
    call = PipelineCall(8, (64, 64), 25, guidance=GUIDANCE).arguments(pipe)
    images = {}
    for int8 in (False, True):
        export_graphs(pipe, folder / f"shapes-{int8}", call, format="openvino", int8=int8)
    for int8 in (False, True):
        pipe.unet = load_graphs(folder / f"shapes-{int8}")
        images[int8] = BatchSampler(pipe, prompts, 25, GUIDANCE, 0, 8).sample()
    return {
        "model": "shapes",
        "scheduler": type(pipe.scheduler).__name__,
        "prompts": len(prompts),
        "steps": 25,
        "guidance": GUIDANCE,
        "psnr": summary(psnr(images[True], images[False]).tolist()),
    }


def _sdxl(options: argparse.Namespace) -> dict[str, Any]:
    """A shallow step of SDXL's U-Net as a share of a full one."""
    pipe = _pipeline("sdxl", "bfloat16")
    size = options.sdxl_pixels
    loop = UnetLoop.of(pipe, PipelineCall(1, (size, size), 6, guidance=GUIDANCE))
    engine = apply_deepcache(pipe, VARIANTS["I=3"].config)
    _timed_calls(pipe, loop, WARM_UP)
    ratios = []
    for _ in range(options.rounds):
        engine.end_run()
        each = _timed_calls(pipe, loop, 6)
        ratios.append(median([*each[1:3], *each[4:]]) / median([each[0], each[3]]))
    remove_deepcache(pipe)
    costs = count_costs(pipe.unet, loop.args, loop.kwargs, [0])
    return {
        "pixels": size,
        "dtype": "bfloat16",
        "shallow_over_full": median(ratios),
        "spread": [min(ratios), max(ratios)],
        "share_of_macs": costs.share(0),
    }


def _pipeline(model: str, dtype: str) -> Any:
    pipe = load_pipeline(model, dtype=dtype, device="cpu")
    set_scheduler(pipe, "ddim")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "cpu_runtimes_float32.json")
    parser.add_argument("--model", default="sd15")
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--runtimes", type=lambda text: tuple(text.split(",")), default=RUNTIMES)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--graphs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sdxl-pixels", type=int, default=0, help="measure SDXL at this size too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
