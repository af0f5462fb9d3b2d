"""The first words of a page, which say no more than the results do."""

import pytest

from DeepCache.report.findings import finding
from DeepCache.report.sources import Source
from tests.report.made_up_results import ablation, benchmark, fail, find_row, metric, stop_early, wait


def said(result):
    return finding(Source(None, "result.json", result, "")).replace("\xa0", " ")


def test_a_benchmark():
    result = benchmark(batches=(1, 8), scopes=("unet", "pipeline"))
    cell = next(cell for cell in result["cells"] if cell["scope"] == "pipeline" and cell["batch"] == 1)
    row, fewer = find_row(cell, "DeepCache", "I=3 B=0"), find_row(cell, "fewer steps", "20 steps")
    theirs = find_row(cell, "reference package", "I=3 B=0")
    assert said(result) == (
        f"On NVIDIA Made-Up GPU, I=3 B=0 made sd21 (random weights) {row['speed_up']:.2f} times as fast at 512 px: "
        f"whole pipeline, batch 1, float16, eager, 50 steps. That is {100 * row['share_of_limit']:.1f} % of what the "
        "multiply-accumulates of its U-Net allow. 20 steps without caching, at 40.0 % of the multiply-accumulates "
        f"against {100 * row['mac_share']:.1f} %, were {fewer['speed_up']:.2f} times as fast. The reference package "
        f"was {theirs['speed_up']:.2f} times as fast with the same settings. Over the 2 sizes and batches measured, "
        f"I=3 B=0 was {row['speed_up']:.2f} times as fast."
    )


def test_the_range_over_sizes_and_batches():
    result = benchmark(batches=(1, 8))
    find_row(result["cells"][1], "DeepCache", "I=3 B=0")["speed_up"] = 1.5
    assert "Over the 2 sizes and batches measured, I=3 B=0 was 1.50 to 2.4" in said(result)


def test_a_benchmark_of_little():
    result = benchmark(variants=("I=7 B=0",), reference=False, fewer_steps=False)
    result["settings"]["random_weights"] = False
    row = find_row(result["cells"][0], "DeepCache")
    row |= {"mac_share": None, "limit": None, "share_of_limit": None}
    assert said(result) == (
        f"On NVIDIA Made-Up GPU, I=7 B=0 made sd21 {row['speed_up']:.2f} times as fast at 512 px: whole pipeline, "
        "batch 1, float16, eager, 50 steps."
    )


def test_what_failed_is_not_praised():
    result = benchmark(scopes=("pipeline", "unet"))
    for variant in ("I=3 B=0", "I=5 B=0", "I=5 B=1"):
        fail(find_row(result["cells"][0], "DeepCache", variant), "out of memory")
    fail(find_row(result["cells"][1], "DeepCache", "I=3 B=0"), "out of memory")
    assert ", I=5 B=0 made sd21" in said(result)
    assert ": U-Net alone, batch 1" in said(result)


def test_a_benchmark_in_which_all_failed():
    result = benchmark(variants=("I=3 B=0",))
    fail(find_row(result["cells"][0], "DeepCache"), "out of memory")
    assert said(result) == "On NVIDIA Made-Up GPU, nothing of DeepCache on sd21 could be measured."


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_benchmark_that_is_not_finished(rounds):
    result = benchmark(batches=(1, 8))
    wait(result["cells"][1])
    if rounds:
        stop_early(result["cells"][0], rounds)
        assert said(result).endswith("The measurement is not finished, and what is missing may change this.")
    else:
        wait(result["cells"][0])
        assert said(result) == "On NVIDIA Made-Up GPU, nothing of DeepCache on sd21 is measured yet."


def test_an_ablation():
    result = ablation()
    cells = {cell["label"]: cell for cell in result["groups"][0]["cells"]}
    row, linear, fewer = cells["I=3 B=0"], cells["I=3 B=0 linear"], cells["17 steps"]
    assert said(result) == (
        "On shapes (DDIMScheduler, 50 steps, guidance 2, 6 images), I=3 B=0 takes "
        f"{100 * row['mac_share']:.1f} % of the multiply-accumulates and comes to {row['psnr']['mean']:.2f} dB PSNR "
        "against the images without caching. "
        f"17 steps without caching, at 34.0 %, come to {fewer['psnr']['mean']:.2f} dB. The closest at that cost or "
        f"less is I=3 B=0 linear: {linear['psnr']['mean']:.2f} dB at {100 * linear['mac_share']:.1f} %."
    )


def test_an_ablation_says_where_fewer_steps_win_and_how_many_objects_are_right():
    result = ablation(judged=True)
    cells = {cell["label"]: cell for cell in result["groups"][0]["cells"]}
    cells["17 steps"]["psnr"] = metric([value + 1 for value in cells["I=3 B=0"]["psnr"]["values"]])
    text = said(result)
    assert f"come to {cells['17 steps']['psnr']['mean']:.2f} dB: fewer steps win here." in text
    right = cells["I=3 B=0"]["right"]["mean"]
    assert f" Right objects: {100 * right:.1f} %, without caching 100 %." in text


def test_every_guidance_scale_has_its_finding():
    groups = (("DDIMScheduler", 50), ("EulerDiscreteScheduler", 30))
    text = said(ablation(groups=groups, guidances=(2.0, 7.5)))
    assert text.count("On shapes (DDIMScheduler, 50 steps, guidance 2, 6 images), I=3 B=0 takes") == 1
    assert text.count("On shapes (DDIMScheduler, 50 steps, guidance 7.5, 6 images), I=3 B=0 takes") == 1
    assert "Euler" not in text


def test_an_ablation_of_little():
    result = ablation(labels=["I=5 B=0"], fewer=())
    assert "Nothing else that was generated is closer at that cost or less." in said(result)
    assert said(result).endswith("what is missing may change this.")
    result["groups"][0] |= {"reference": None, "cells": []}
    assert said(result) == "Nothing of DeepCache on shapes is drawn yet."


def test_one_step_is_one_step():
    assert " 1 step without caching, at 2.0 %" in said(ablation(fewer=(1,)))
