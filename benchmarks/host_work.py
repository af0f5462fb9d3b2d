"""Measures the work of the host between the steps of a denoising run, and where it waits for the device. Needs no GPU.

DeepCache's own work: a U-Net of real structure whose layers do nothing, called with DeepCache and without in turn.
A compiled call: a U-Net whose graph does nothing, which leaves the compiler's guards and DeepCache's hooks.
Schedulers' work: a step on the CPU, on the latents of SDXL and on a single value.
All three are processor time of one thread, which excludes other work on the machine.
Waits: schedulers and pipelines run on a simulated device (`benchmarks.simulated_device`).

    python -m benchmarks.host_work --output benchmarks/host_work.json.gz
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from time import thread_time_ns
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import diffusers
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, fx, nn

from benchmarks.host_work_waits import pipeline_rows, scheduler_rows, setting_rows
from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.bench.provenance import provenance
from DeepCache.bench.result_file import write_result
from DeepCache.engine.layouts import layout_of, skip_branches
from DeepCache.engine.patch import ClassSwap
from DeepCache.models import ARCHITECTURES

UNETS = {
    "tiny": {
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    },
    **{name: ARCHITECTURES[name].networks["unet"].config for name in ("sd15", "sdxl")},
}
METHODS = {
    "re-use": DeepCacheConfig(forecast="none"),
    "linear": DeepCacheConfig(forecast="linear"),
    "linear, guidance reuse": DeepCacheConfig(forecast="linear", guidance_reuse=True),
}
KINDS = ("first", "full", "shallow")

_REUSE = DeepCacheConfig(cache_interval=2, forecast="none")
# The settings of each method, and whether the U-Net has another class on shallow steps.
COMPILED = {
    "no caching": (None, True),
    "re-use": (_REUSE, True),
    "re-use, without the other class": (_REUSE, False),
}
COMPILED_STEPS = 6


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    # As in `timeit`.
    gc.disable()
    result = provenance(options.seed) | {
        "threads": 1,
        "rounds": options.rounds,
        "deepcache": [row for name in UNETS for row in deepcache_work(name, options.rounds)],
        "compiled": [row for name in ("sd15", "sdxl") for row in compiled_work(name)],
        "schedulers": scheduler_rows(options.rounds),
        "pipelines": pipeline_rows(METHODS),
        "settings": setting_rows(),
    }
    write_result(options.output, result)
    for row in result["deepcache"] + result["compiled"]:
        print(f"{row['unet']:10} {row['method']:31} {row['kind']:8} {row['microseconds']:7.1f} µs")
    for row in result["schedulers"]:
        print(f"{row['name']:13} {row['microseconds']} µs, waits {row['waits'][0]}, then {max(row['waits'][1:])}")
    print(options.output)


# DeepCache's own work


class HollowUnet(UNet2DConditionModel):
    """A U-Net that runs only the layers that DeepCache depends on: those that return the deep feature and the mid block
    or its replacement. They return their input."""

    def empty(self) -> None:
        self.__dict__["deep"] = list(layout_of(self).tapped(skip_branches(self)[0]))
        for layer in (*self.deep, self.mid_block):
            layer.forward = _identity

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        timestep_cond: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        return_dict: bool = True,
    ) -> tuple[Tensor]:
        for layer in self.deep if self.mid_block is self._modules["mid_block"] else ():
            sample = layer(sample)
        return (self.mid_block(sample),)


def deepcache_work(name: str, rounds: int) -> list[dict[str, Any]]:
    """Microseconds of a call of a U-Net that computes nothing, with DeepCache and without."""
    with torch.device("meta"):
        bare, ours = (HollowUnet(**UNETS[name]).eval() for _ in range(2))
    modules, rows = sum(1 for _ in bare.modules()), []
    for method, config in METHODS.items():
        for kind, pairs in _race(bare, ours, config, rounds).items():
            own = [after - before for before, after in pairs]
            row = {"unet": name, "modules": modules, "method": method, "kind": kind}
            row |= {"microseconds": round(median(own), 1), "spread": [round(min(own), 1), round(max(own), 1)]}
            row |= {"ratio": round(median(after / before for before, after in pairs), 2), "every_round": pairs}
            rows.append(row)
    return rows


@torch.no_grad()
def _race(
    bare: HollowUnet, ours: HollowUnet, config: DeepCacheConfig, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Medians of each round, without and with DeepCache, of the first call of a run, of full and of shallow calls."""
    bare.empty()
    ours.empty()
    deep, pipe = bare.deep, SimpleNamespace(unet=ours, scheduler=None)
    engine, pattern = apply_deepcache(pipe, config), config.steps(50)
    # The two halves of a guided batch, as small as possible.
    sample = torch.randn(1, 4, 2, 2).repeat(2, 1, 1, 1)
    call = {
        "encoder_hidden_states": torch.randn(2, 3, 4),
        "timestep_cond": None,
        "cross_attention_kwargs": None,
        "added_cond_kwargs": {"text_embeds": torch.randn(2, 4), "time_ids": torch.randn(2, 6)},
        "return_dict": False,
    }
    pairs: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for number in range(-2, rounds):
        gc.collect()
        pipe.scheduler = DDIMScheduler()
        pipe.scheduler.set_timesteps(len(pattern))
        spent: dict[tuple[str, nn.Module], list[float]] = {(kind, unet): [] for kind in KINDS for unet in (bare, ours)}
        for step, timestep in enumerate(pipe.scheduler.timesteps):
            kind = "first" if step == 0 else "full" if pattern[step].full else "shallow"
            bare.__dict__["deep"] = [] if kind == "shallow" else deep
            # Each goes first equally often.
            for unet in (bare, ours) if (step + number) % 2 else (ours, bare):
                start = thread_time_ns()
                unet(sample, timestep, **call)
                spent[kind, unet].append((thread_time_ns() - start) / 1000)
        engine.end_run()
        # The first two rounds warm up.
        for kind in KINDS if number >= 0 else ():
            pairs[kind].append((round(median(spent[kind, bare]), 2), round(median(spent[kind, ours]), 2)))
    engine.detach()
    return pairs


def _identity(value: Tensor) -> Tensor:
    return value


# A compiled call


def compiled_work(name: str, runs: int = 30) -> list[dict[str, Any]]:
    """Microseconds of a call of a compiled U-Net whose graph does nothing, with DeepCache and without: the compiler's
    guards, passing the inputs to the graph, and DeepCache's hooks."""
    rows = []
    for method, (config, other_class) in COMPILED.items():
        with nullcontext() if other_class else class_kept():
            graphs, times = _time_compiled(name, config, runs)
        for kind, every in times.items():
            row = {"unet": name, "method": method, "kind": kind, "graphs": graphs, "microseconds": round(median(every))}
            rows.append(row | {"spread": [round(min(every)), round(max(every))], "every_run": every})
    return rows


def class_kept() -> Any:
    """Disables the class swap of shallow steps for the length of a block."""
    return patch.object(ClassSwap, "apply", lambda swap: None)


@torch.no_grad()
def _time_compiled(name: str, config: DeepCacheConfig | None, runs: int) -> tuple[int, dict[str, list[float]]]:
    """The number of graphs, and the medians of the full and shallow calls of each run without its first."""
    # Otherwise the graphs of another U-Net are tried too.
    torch.compiler.reset()
    graphs: list[fx.GraphModule] = []

    def backend(graph: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        outputs = graph(*inputs)
        return lambda *_: outputs

    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[name]).eval().requires_grad_(False)
        sample = torch.randn(2, unet.config.in_channels, 64, 64)
        call = _conditions(unet)
    unet.compile(backend=backend)
    pipe = SimpleNamespace(unet=unet, scheduler=DDIMScheduler())
    engine = None if config is None else apply_deepcache(pipe, config)
    kinds = ["full"] * COMPILED_STEPS
    if config is not None:
        kinds = ["full" if step.full else "shallow" for step in config.steps(COMPILED_STEPS)]
    times: dict[str, list[float]] = {kind: [] for kind in dict.fromkeys(kinds)}
    gc.collect()
    # Three runs warm up. No garbage collection in between: it would empty the processor's caches.
    for number in range(-3, runs):
        pipe.scheduler.set_timesteps(COMPILED_STEPS)
        spent: dict[str, list[float]] = {kind: [] for kind in times}
        for step, timestep in enumerate(pipe.scheduler.timesteps):
            start = thread_time_ns()
            unet(sample, timestep, **call)
            if step:
                spent[kinds[step]].append((thread_time_ns() - start) / 1000)
        for kind in times if number >= 0 else ():
            times[kind].append(round(median(spent[kind]), 1))
    if engine is not None:
        engine.detach()
    torch.compiler.reset()
    return len(graphs), times


def _conditions(unet: UNet2DConditionModel) -> dict[str, Any]:
    """The inputs of a U-Net besides the sample and the timestep."""
    call = {"encoder_hidden_states": torch.randn(2, 77, unet.config.cross_attention_dim), "return_dict": False}
    if unet.config.addition_embed_type == "text_time":
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        call["added_cond_kwargs"] = {"text_embeds": torch.randn(2, pooled), "time_ids": torch.randn(2, 6)}
    return call


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json.gz"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
