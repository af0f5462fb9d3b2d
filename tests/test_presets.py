"""Presets use the forecast with the higher fidelity in the committed results."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from DeepCache.cli.options import preset_config
from DeepCache.config import PRESETS, DeepCacheConfig

RESULTS = sorted(Path(__file__).parents[1].glob("benchmarks/frontier/*.json.gz"))
CLASSES = {
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
@pytest.mark.parametrize("name", PRESETS)
def test_forecast_is_the_better_one_in_the_committed_results(path, name):
    result = json.loads(gzip.decompress(path.read_bytes()))
    fidelity = {
        case["method"]: case["psnr"]["mean"] for case in result["cases"] if case["label"] == f"I={PRESETS[name]}"
    }
    forecast = DeepCacheConfig.preset(name, result["guidance"], CLASSES[result["scheduler"]]).forecast
    other = {"limited": "response", "response": "limited"}[forecast]
    assert fidelity[f"skipped, {forecast}"] >= fidelity[f"skipped, {other}"]


def test_there_are_results_for_four_schedulers_at_three_scales():
    assert len(RESULTS) == 12


@pytest.mark.parametrize("scheduler", [None, *CLASSES.values(), "HeunDiscreteScheduler"])
def test_unknown_guidance_scale_counts_as_a_high_one(scheduler):
    for name in PRESETS:
        assert DeepCacheConfig.preset(name, None, scheduler).forecast == "response"
        assert DeepCacheConfig.preset(name, 1.0, scheduler).forecast == "limited"


def test_the_command_compiles_with_a_preset(capsys):
    cache = DeepCacheConfig(compile="regional")
    found = preset_config("fast", 2.0, "DDIMScheduler", cache)
    assert found == DeepCacheConfig(5, between="skipped", compile="regional")
    assert capsys.readouterr().err == "Preset fast: --interval 5 --between skipped --forecast limited\n"
