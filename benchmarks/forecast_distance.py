"""What a forecast should count distance in, and whether to damp its slope, on the shipped model.

Linear forecasts at uniform intervals, with the distance of two steps taken in steps, timesteps, the square root of
alpha-bar or log-SNR, and with the slope multiplied by 0.8. PSNR is taken image by image against no caching.

    python -m benchmarks.forecast_distance
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.fidelity import fidelity
from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from DeepCache.bench.provenance import provenance
from DeepCache.bench.result_file import write_result
from DeepCache.engine.forecast import Forecast
from DeepCache.generation.batch_sampler import BatchSampler
from DeepCache.models import load_pipeline, recommended_guidance, set_scheduler

OUTPUT = Path("benchmarks/forecast_distance.json")
PROMPTS = Path("training/held_out.txt")
COUNT, FIRST, SEED = 16, 100, 500
SCHEDULERS = {"ddim": 50, "dpm++": 25}
INTERVALS = (2, 3, 5, 8)
DAMPING = 0.8


def main() -> None:
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()[FIRST : FIRST + COUNT]
    pipe = load_pipeline("shapes", dtype="float32", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    guidance = recommended_guidance("shapes", pipe)
    result = provenance(SEED) | {"prompts": prompts, "guidance": guidance, "damping": DAMPING, "cells": []}
    for scheduler, steps in SCHEDULERS.items():
        set_scheduler(pipe, scheduler)
        sampler = BatchSampler(pipe, prompts, steps, guidance, SEED, COUNT)
        reference = sampler.sample()
        for interval in INTERVALS:
            for name, (places, damping) in _distances(pipe, steps).items():
                apply_deepcache(pipe, DeepCacheConfig(interval, forecast="linear"))
                with _measured_in(places, damping):
                    images = sampler.sample()
                remove_deepcache(pipe)
                cell = {"scheduler": scheduler, "steps": steps, "interval": interval, "distance": name}
                result["cells"].append(cell | {"psnr": fidelity(images, reference)["psnr"]})
                print(scheduler, interval, name, round(result["cells"][-1]["psnr"]["mean"], 2), flush=True)
    write_result(OUTPUT, result)
    print(OUTPUT)


def _distances(pipe: Any, steps: int) -> dict[str, tuple[list[float], float]]:
    """Where each step lies, and what the slope is multiplied by."""
    pipe.scheduler.set_timesteps(steps)
    timesteps = pipe.scheduler.timesteps
    alpha_bar = pipe.scheduler.alphas_cumprod[timesteps.long()]
    numbers = [float(number) for number in range(steps)]
    return {
        "steps": (numbers, 1.0),
        "timesteps": ((-timesteps.float()).tolist(), 1.0),
        "square root of alpha-bar": (alpha_bar.sqrt().tolist(), 1.0),
        "log-SNR": ((alpha_bar / (1 - alpha_bar)).log().tolist(), 1.0),
        "steps, damped": (numbers, DAMPING),
    }


def _measured_in(places: list[float], damping: float) -> Any:
    add, at = Forecast.add, Forecast.at

    class Measured:
        def add(self: Any, place: float, value: torch.Tensor) -> None:
            add(self, places[int(place)], value)

        def at(self: Any, place: float, rule: str = "none", half: int | None = None) -> torch.Tensor:
            latest = self._places[0]
            return at(self, latest + damping * (places[int(place)] - latest), rule, half)

    return patch.multiple(Forecast, add=Measured.add, at=Measured.at)


if __name__ == "__main__":
    main()
