"""The headline numbers of a report."""

import pytest

from DeepCache.report.findings import headline
from DeepCache.report.sources import Source
from tests.report.synthetic_results import ablation, benchmark, fail, find_row, metric, wait


def shown(result):
    found = headline(Source(None, "result.json", result, ""))
    return [f"{number} {words}".replace("\xa0", " ") for number, words in found]


def test_a_benchmark_has_speed_up_seconds_limit_fewer_steps_and_reference():
    result = benchmark(batches=(1, 8), scopes=("unet", "pipeline"))
    cell = next(cell for cell in result["cells"] if cell["scope"] == "pipeline" and cell["batch"] == 1)
    row, fewer = find_row(cell, "DeepCache", "I=3 B=0"), find_row(cell, "fewer steps", "20 steps")
    theirs, original = find_row(cell, "reference package", "I=3 B=0"), find_row(cell, "no caching")
    assert shown(result) == [
        f"{row['speed_up']:.2f}× as fast with I=3 B=0: whole pipeline, 512 px, batch 1, float16, eager, 50 steps",
        f"{row['median']:.3f} s instead of {original['median']:.2f} s",
        f"{100 * row['share_of_limit']:.1f} % of the limit by the multiply-accumulates of the U-Net",
        f"{fewer['speed_up']:.2f}× as fast with 20 steps and no caching, at 40.0 % of the multiply-accumulates "
        f"against {100 * row['mac_share']:.1f} %",
        f"{theirs['speed_up']:.2f}× as fast with the reference package, same settings",
        f"{row['speed_up']:.2f}× to {row['speed_up']:.2f}× over the 2 sizes and batches measured",
    ]


def test_the_range_over_sizes_and_batches():
    result = benchmark(batches=(1, 8))
    find_row(result["cells"][1], "DeepCache", "I=3 B=0")["speed_up"] = 1.5
    assert shown(result)[-1].startswith("1.50× to 2.4")


def test_a_benchmark_without_cost_reference_and_fewer_steps():
    result = benchmark(variants=("I=7 B=0",), reference=False, fewer_steps=False)
    row = find_row(result["cells"][0], "DeepCache")
    row |= {"mac_share": None, "limit": None, "share_of_limit": None}
    first, second = shown(result)
    assert first.startswith(f"{row['speed_up']:.2f}× as fast with I=7 B=0: whole pipeline, 512 px, batch 1")
    assert " s instead of " in second


def test_the_setting_of_the_headline_is_measured():
    result = benchmark(scopes=("pipeline", "unet"))
    for variant in ("I=3 B=0", "I=5 B=0", "I=5 B=1"):
        fail(find_row(result["cells"][0], "DeepCache", variant), "out of memory")
    fail(find_row(result["cells"][1], "DeepCache", "I=3 B=0"), "out of memory")
    assert "as fast with I=5 B=0: U-Net alone, 512 px, batch 1" in shown(result)[0]


@pytest.mark.parametrize("spoil", [wait, lambda cell: fail(find_row(cell, "DeepCache"), "out of memory")])
def test_a_benchmark_without_measurements_has_no_headline(spoil):
    result = benchmark(variants=("I=3 B=0",))
    spoil(result["cells"][0])
    assert shown(result) == []


def test_an_ablation_has_psnr_fewer_steps_and_the_best_at_that_cost():
    result = ablation()
    cells = {cell["label"]: cell for cell in result["groups"][0]["cells"]}
    row, linear, fewer = cells["I=3 B=0"], cells["I=3 B=0 linear"], cells["17 steps"]
    assert shown(result) == [
        f"{row['psnr']['mean']:.2f} dB PSNR with I=3 B=0 at {100 * row['mac_share']:.1f} % of the "
        "multiply-accumulates (DDIMScheduler, 50 steps, 6 images)",
        f"{fewer['psnr']['mean']:.2f} dB with 17 steps and no caching at 34.0 %",
        f"{linear['psnr']['mean']:.2f} dB with the best at that cost or less, I=3 B=0 linear at "
        f"{100 * linear['mac_share']:.1f} %",
    ]


def test_where_fewer_steps_win_and_how_many_objects_are_right():
    result = ablation(judged=True)
    cells = {cell["label"]: cell for cell in result["groups"][0]["cells"]}
    cells["17 steps"]["psnr"] = metric([value + 1 for value in cells["I=3 B=0"]["psnr"]["values"]])
    found = shown(result)
    assert found[1].endswith("with 17 steps and no caching at 34.0 %; fewer steps win here")
    right = cells["I=3 B=0"]["right"]["mean"]
    assert found[-1] == f"{100 * right:.1f} % right objects; 100 % without caching"


def test_every_guidance_scale_has_its_headline():
    groups = (("DDIMScheduler", 50), ("EulerDiscreteScheduler", 30))
    text = "; ".join(shown(ablation(groups=groups, guidances=(2.0, 7.5))))
    assert text.count("(DDIMScheduler, 50 steps, guidance 2, 6 images)") == 1
    assert text.count("(DDIMScheduler, 50 steps, guidance 7.5, 6 images)") == 1
    assert "Euler" not in text


def test_an_ablation_of_one_setting_or_none():
    result = ablation(labels=["I=5 B=0"], fewer=())
    assert len(shown(result)) == 1
    result["groups"][0] |= {"reference": None, "cells": []}
    assert shown(result) == []


def test_one_step_is_singular():
    assert " with 1 step and no caching at 2.0 %" in shown(ablation(fewer=(1,)))[1]
