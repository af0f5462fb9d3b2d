"""Under which conditions the DeepCache node is exact in ComfyUI's own engine, and how far shallow steps are off.

Tiny models with random weights, Euler with eight steps. `COMFYUI_PATH` names a checkout of ComfyUI.

    COMFYUI_PATH=../ComfyUI python -m benchmarks.comfyui_conditions
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.comfyui_engine import engine
from benchmarks.comfyui_engine.conditions import (
    FURTHER_CONDITIONS,
    RANDOM_LAYERS,
    Condition,
    Unavailable,
    conditions,
    seeded_by_layer,
)
from benchmarks.comfyui_engine.nodes import with_deepcache
from DeepCache.bench.provenance import provenance
from DeepCache.bench.result_file import write_result

# `engine` makes this importable.
from comfyui_version import __version__ as comfyui_version  # isort: skip

STEPS, INTERVAL = 8, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/comfyui_conditions.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = provenance(0) | {"comfyui": comfyui_version, "steps": STEPS, "interval": INTERVAL, "conditions": []}
    listed = {
        name if kind == "SD15" else f"{name}, SDXL": Condition(change, kind, partial(dict, settings))
        for kind in ("SD15", "SDXL")
        for name, (change, settings) in conditions(kind).items()
    }
    for name, condition in {**listed, **FURTHER_CONDITIONS}.items():
        try:
            found = _measured(name, condition)
        except Unavailable:
            continue
        result["conditions"].append({"name": name, "model": condition.kind} | found)
        write_result(options.output, result)
        print(name, found, flush=True)
    print(options.output)


def _measured(name: str, condition: Condition) -> dict[str, Any]:
    model, settings = engine.model(condition.kind), condition.settings()
    settings = {"kind": condition.kind, **settings}

    def sample(patcher: Any, **more: Any) -> torch.Tensor:
        return engine.sample(patcher, **settings | {"steps": STEPS} | more)

    plain = sample(condition.change(model))
    whole = sample(with_deepcache(condition.change(model), interval=1))
    cached = with_deepcache(condition.change(model), interval=INTERVAL)
    shallow = sample(cached)
    # Of a sampler that evaluates the same several times the deep feature is the true one.
    same = seeded_by_layer(model) if name in RANDOM_LAYERS else model
    again = partial(sample, steps=2, sampler=engine.repeat)
    expected, true = again(condition.change(same)), again(with_deepcache(condition.change(same)))
    return {
        "interval_1": (whole - plain).abs().max().item(),
        "true_feature": (true - expected).abs().max().item(),
        "relative_error": ((shallow - plain).norm() / plain.norm()).item(),
        "pattern": cached.model_options["transformer_options"]["deepcache"].stats.pattern,
    }


if __name__ == "__main__":
    main()
