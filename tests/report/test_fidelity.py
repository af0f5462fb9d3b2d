from itertools import product

import pytest

from DeepCache.bench.summary import paired
from DeepCache.bench.variants import parse_variant
from DeepCache.report.fidelity import fidelity_groups
from DeepCache.report.numerals import gain
from DeepCache.report.sources import Source
from DeepCache.report.verdicts import verdicts
from tests.report.made_up_results import ablation, in_format_1, metric
from tests.report.reading import columns, is_written_as, rows

GRID = [
    f"I={interval} B={branch}{more}"
    for interval, branch, more in product((2, 3, 5), (0, 1), ("", " linear", " linear guidance-reuse", " non-uniform"))
]


def is_metric(value, text):
    mean, half = text.split(" ± ")
    low, high = value["confidence"]
    return is_written_as(value["mean"], mean) and abs(float(half) - (high - low) / 2) <= 0.0051


def cell_of(group, label):
    return next(cell for cell in group["cells"] if cell["label"] == label)


@pytest.fixture(scope="module")
def result():
    return ablation(groups=(("DDIMScheduler", 50), ("EulerDiscreteScheduler", 30)), lpips=True, clip=True)


@pytest.fixture(scope="module")
def page(report, result):
    return report(result)


@pytest.mark.parametrize("number", [1, 2])
def test_every_setting_is_there_with_its_numbers(page, result, number):
    group = result["groups"][number - 1]
    table = page.by_id(f"result-1-{number}-all")
    names = columns(table)
    assert names == [
        "Method",
        "Settings",
        "Cost",
        "PSNR, dB",
        "5th percentile",
        "Pareto front",
        "Over fewer steps, dB",
        "Over re-use, dB",
        "SSIM",
        "5th percentile",
        "Over re-use, SSIM",
        "LPIPS",
        "CLIP",
        "Seconds per image, one run",
    ]
    # Of the two columns of this name the second is that of SSIM.
    names[names.index("5th percentile")] = "PSNR, 5th percentile"
    found = [dict(zip(names, row, strict=True)) for row in rows(table)]
    assert len(found) == len(group["cells"]) + 1
    for shown in found[:-1]:
        cell = cell_of(group, shown["Settings"])
        assert shown["Method"] == cell["method"]
        assert is_written_as(100 * cell["mac_share"], shown["Cost"].removesuffix(" %"))
        for name, key in (("PSNR, dB", "psnr"), ("SSIM", "ssim"), ("LPIPS", "lpips"), ("CLIP", "clip")):
            assert is_metric(cell[key], shown[name])
        assert shown["PSNR, 5th percentile"] == f"{cell['psnr']['p5']:.2f}"
        assert shown["5th percentile"] == f"{cell['ssim']['p5']:.4f}"
        over = cell["over_reuse"]
        assert shown["Over re-use, dB"] == ("–" if over is None else gain(over["psnr"], 2))
        assert shown["Over re-use, SSIM"] == ("–" if over is None else gain(over["ssim"], 4))
        if cell["method"] == "DeepCache":
            fewer = cell_of(group, shown["Over fewer steps, dB"].rpartition(" (")[2].rstrip(")"))
            against = paired(cell["psnr"]["values"], fewer["psnr"]["values"])
            assert shown["Over fewer steps, dB"] == f"{gain(against, 2)} ({fewer['label']})"
        else:
            assert shown["Over fewer steps, dB"] == "–"
        assert is_written_as(cell["seconds"] / 6, shown["Seconds per image, one run"])
        if cell["front"]:
            assert shown["Pareto front"].startswith("on the front, no. ")
        else:
            better = cell["dominated_by"]
            low, high = better["confidence"]
            assert shown["Pareto front"] == (
                f"dominated by {better['label']}, {better['psnr_gain']:.2f} dB nearer ({low:.2f} to {high:.2f})"
            )
    last = found[-1]
    assert (last["Method"], last["Settings"], last["Cost"], last["PSNR, dB"]) == (
        "no caching",
        f"{group['steps']} steps",
        "100 %",
        "–",
    )
    assert is_metric(group["reference"]["clip"], last["CLIP"])
    costs = [cell_of(group, shown["Settings"])["mac_share"] for shown in found[:-1]]
    assert costs == sorted(costs)


def test_the_front_has_its_own_table_with_the_numbers_of_the_chart(page, result):
    front = sorted((cell for cell in result["groups"][0]["cells"] if cell["front"]), key=lambda cell: cell["mac_share"])
    found = rows(page.by_id("result-1-1-front"))
    assert [row[0] for row in found] == [str(number) for number in range(1, len(front) + 1)]
    for row, cell in zip(found, front, strict=True):
        assert row[1:3] == [cell["method"], cell["label"]]
        assert is_metric(cell["psnr"], row[4])
    chart = page.all("svg")[0]
    assert chart.all("title")[0].text == "PSNR against cost: DDIMScheduler, 50 steps"
    texts = [text.text for text in chart.all("text")]
    for word in ("fewer steps", "Pareto front", "DeepCache, dominated", "DeepCache, on the front", "1"):
        assert word in texts


def test_metrics_that_were_left_out_have_no_column_and_a_reason(report):
    page = report(ablation())
    assert not {"LPIPS", "CLIP"} & set(columns(page.by_id("result-1-1-all")))
    assert "lpips : the weights of AlexNet are not on this machine" in page.text
    assert "clip : openai/clip-vit-large-patch14 is not on this machine" in page.text


def test_heat_maps_for_each_kind_with_the_numbers_in_the_cells(report):
    result = ablation(labels=GRID)
    page = report(result)
    maps = {svg.all("title")[0].text: svg for svg in page.all("svg")[1:]}
    kinds = ("re-use, uniform", "linear forecast, uniform", "linear forecast, uniform, guidance reuse")
    assert list(maps) == [
        f"{quantity}: {kind}"
        for kind in (*kinds, "re-use, non-uniform")
        for quantity in ("PSNR, dB", "cost, % of the multiply-accumulates")
    ]
    group = result["groups"][0]
    for interval, branch in product((2, 3, 5), (0, 1)):
        cell = cell_of(group, f"I={interval} B={branch} linear")
        psnr, cost = (
            [text.text for text in maps[f"{quantity}: linear forecast, uniform"].all("text")]
            for quantity in ("PSNR, dB", "cost, % of the multiply-accumulates")
        )
        assert f"{cell['psnr']['mean']:.1f}" in psnr
        assert f"{100 * cell['mac_share']:.1f}" in cost


def test_skipped_steps_and_each_threshold_have_heat_maps_of_their_own():
    grid = list(product((2, 3), (0, 1)))
    words = ("", " alternating", " limited adaptive threshold=0.1", " limited adaptive threshold=0.2")
    result = ablation(labels=[f"I={interval} B={branch}{word}" for word in words for interval, branch in grid])
    (group,) = fidelity_groups(Source(None, "", result, ""))
    assert [each.title for each in group.heat_maps] == [
        "re-use, uniform",
        "re-use, uniform, alternating steps",
        "limited forecast, adaptive with threshold 0.1",
        "limited forecast, adaptive with threshold 0.2",
    ]
    assert [len(each.cells) for each in group.heat_maps] == [4] * 4


def test_a_heat_map_leaves_empty_what_was_not_drawn(report):
    page = report(ablation(labels=["I=2 B=0", "I=3 B=0", "I=3 B=1"]))
    texts = [text.text for text in page.all("svg")[1].all("text")]
    assert texts.count("–") == 1


def test_a_row_of_settings_makes_no_heat_map(report):
    assert len(report(ablation(labels=["I=2 B=0", "I=3 B=0", "I=3 B=1 linear"])).all("svg")) == 1


def test_settings_that_are_missing_are_named(report):
    result = ablation(groups=(("DDIMScheduler", 50), ("EulerDiscreteScheduler", 30)))
    result["groups"][0]["cells"] = [cell for cell in result["groups"][0]["cells"] if cell["label"] != "I=5 B=1"]
    result["groups"][1] |= {"reference": None, "cells": []}
    page = report(result)
    assert "Not finished: not drawn yet: I=5 B=1." in page.text
    assert "Not finished: nothing is drawn yet." in page.text
    assert "Not finished: 2 of 2 groups to go." in page.text


def test_fewer_steps_that_are_missing_are_named(report):
    assert "Not finished: not drawn yet: fewer steps." in report(ablation(fewer=())).text


def test_a_plan_is_not_missing_where_it_was_not_tuned_for():
    result = ablation(groups=(("DDIMScheduler", 50), ("EulerDiscreteScheduler", 30)))
    plan = dict(result["groups"][0]["cells"][0], label="plan mine")
    result["groups"][0]["cells"].append(plan)
    result["groups"][0]["labels"].append("plan mine")
    result["settings"]["labels"].append("plan mine")
    source = Source(None, "", result, "")
    assert [group.missing for group in fidelity_groups(source)] == [[], []]
    result["groups"][0]["cells"].remove(plan)
    assert [group.missing for group in fidelity_groups(source)] == [["plan mine"], []]


def test_two_groups_of_one_scheduler_have_two_names(report):
    result = ablation(groups=(("DDIMScheduler", 50), ("DDIMScheduler", 50)))
    result["groups"][0]["scheduler"] = "model"
    titles = [heading.text for heading in report(result).all("h3")]
    assert titles == [
        "DDIMScheduler, 50 steps, asked for as model",
        "DDIMScheduler, 50 steps, asked for as DDIMScheduler",
    ]


def test_identical_images_and_settings_without_images(report):
    result = ablation()
    same, none = result["groups"][0]["cells"][:2]
    same["psnr"] = metric([120.0] * 6)
    none["psnr"] = none["ssim"] = None
    page = report(result)
    found = {row[1]: row for row in rows(page.by_id("result-1-1-all"))}
    assert found[same["label"]][3] == "120.00 ± 0.00"
    assert found[none["label"]][3] == "–"
    # No chart has an axis up to there.
    assert "120" not in [text.text for svg in page.all("svg") for text in svg.all("text")]


def test_settings_with_a_plan_or_schedule_are_in_no_heat_map():
    result = ablation(labels=["I=2 B=0", "I=3 B=0", "I=3 B=1"])
    result["groups"][0]["cells"][0]["config"] = parse_variant("I=2 B=0").config.to_dict() | {"plan": {}}
    (group,) = fidelity_groups(Source(None, "", result, ""))
    assert sorted(cell["label"] for each in group.heat_maps for cell in each.cells.values()) == []


def test_groups_stand_below_their_guidance_scale(report):
    groups = (("DDIMScheduler", 50), ("EulerDiscreteScheduler", 30))
    result = ablation(groups=groups, guidances=(2.0, 7.5))
    page = report(result)
    headings = [heading.text for heading in page.all("h3", "h4") if heading.text.startswith(("Guidance", "D", "E"))]
    assert headings == [
        "Guidance 2",
        "DDIMScheduler, 50 steps, guidance 2",
        "EulerDiscreteScheduler, 30 steps, guidance 2",
        "Guidance 7.5",
        "DDIMScheduler, 50 steps, guidance 7.5",
        "EulerDiscreteScheduler, 30 steps, guidance 7.5",
    ]
    assert [heading.text for heading in page.all("h5")].count("Every setting") == 4
    facts = {entry.all("dt")[0].text: entry.all("dd")[0].text for entry in page.all("div") if entry.all("dt")}
    assert facts["Guidance"] == "2, 7.5"


def test_right_objects_have_a_column_and_the_group_its_verdicts(report):
    result = ablation(judged=True)
    page = report(result)
    table = page.by_id("result-1-1-all")
    names = columns(table)
    found = {row[1]: row[names.index("Right objects")] for row in rows(table)}
    (group,) = result["groups"]
    for cell in group["cells"]:
        assert found[cell["label"]].startswith(f"{cell['right']['mean']:.3f} ± ")
    assert found["50 steps"] == "1.000 ± 0.000"
    (shown,) = (part for part in page.all("ul") if part.attributes.get("class") == "verdicts")
    (measured,) = fidelity_groups(Source(None, "", result, ""))
    expected = [" ".join(verdict.split()) for verdict in verdicts(measured)]
    assert [" ".join(item.text.split()) for item in shown.all("li")] == expected
    assert len(expected) > 1


def test_an_older_ablation_is_shown_as_one_of_today(report):
    result = ablation()
    page, older = report(result), report(in_format_1(result))
    for name in ("result-1-1-front", "result-1-1-all"):
        assert columns(older.by_id(name)) == columns(page.by_id(name))
    places = [place for place, name in enumerate(columns(page.by_id("result-1-1-all"))) if name != "5th percentile"]
    for row, wanted in zip(rows(older.by_id("result-1-1-all")), rows(page.by_id("result-1-1-all")), strict=True):
        assert [row[place] for place in places] == [wanted[place] for place in places]
