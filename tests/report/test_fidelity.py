import re
from importlib.resources import files
from itertools import product

import pytest

from DeepCache.bench.summary import paired
from DeepCache.bench.variants import parse_variant
from DeepCache.report.fidelity import fidelity_groups
from DeepCache.report.findings import verdicts
from DeepCache.report.heat_map import SHADES
from DeepCache.report.numerals import confidence, gain
from DeepCache.report.sources import Source
from tests.app.contrast import contrast, luminance
from tests.report.reading import charts, columns, is_written_as, parse, rows
from tests.report.synthetic_results import ablation, in_format_1, metric

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
    front, others = page.by_id(f"result-1-{number}-front"), page.by_id(f"result-1-{number}-others")
    in_both = ["Settings", "Cost", "PSNR, dB", "Over fewer steps, dB"]
    more = ["Over re-use, dB", "5th percentile", "SSIM", "LPIPS", "CLIP", "Seconds per image"]
    assert columns(front) == ["Front", *in_both, *more]
    assert columns(others) == ["Best, dB", *in_both]
    assert len(rows(front)) + len(rows(others)) == len(group["cells"])
    for table in (front, others):
        found = [dict(zip(columns(table), row, strict=True)) for row in rows(table)]
        for shown in found:
            cell = cell_of(group, shown["Settings"])
            assert is_written_as(100 * cell["mac_share"], shown["Cost"].removesuffix(" %"))
            assert is_metric(cell["psnr"], shown["PSNR, dB"])
            if cell["method"] == "DeepCache":
                fewer = [other for other in group["cells"] if other["method"] == "fewer steps"]
                like = min(fewer, key=lambda other: abs(other["mac_share"] - cell["mac_share"]))
                against = paired(cell["psnr"]["values"], like["psnr"]["values"])
                assert shown["Over fewer steps, dB"] == gain(against, 2)
            else:
                assert shown["Over fewer steps, dB"] == "–"
        costs = [cell_of(group, shown["Settings"])["mac_share"] for shown in found]
        assert costs == sorted(costs)
    for row in rows(others):
        better = cell_of(group, row[1])["dominated_by"]
        assert row[0] == f"+{better['psnr_gain']:.2f}"
    for shown in (dict(zip(columns(front), row, strict=True)) for row in rows(front)):
        cell = cell_of(group, shown["Settings"])
        assert cell["front"]
        for name, key in (("SSIM", "ssim"), ("LPIPS", "lpips"), ("CLIP", "clip")):
            assert is_metric(cell[key], shown[name])
        assert shown["5th percentile"] == f"{cell['psnr']['p5']:.2f}"
        over = cell["over_reuse"]
        assert shown["Over re-use, dB"] == ("–" if over is None else gain(over["psnr"], 2))
        assert is_written_as(cell["seconds"] / 6, shown["Seconds per image"])


def test_the_original_has_its_seconds_and_clip(page, result):
    for group in result["groups"]:
        clip = confidence(group["reference"]["clip"], 2)
        assert f"No caching took 0.320 s per image, in one run in batches of 8; CLIP {clip}" in page.text


def test_the_front_has_the_numbers_of_the_chart(page, result):
    front = sorted((cell for cell in result["groups"][0]["cells"] if cell["front"]), key=lambda cell: cell["mac_share"])
    found = rows(page.by_id("result-1-1-front"))
    assert [row[:2] for row in found] == [[str(number), cell["label"]] for number, cell in enumerate(front, start=1)]
    texts = charts(page)["PSNR against cost: DDIMScheduler, 50 steps"]
    for word in ("fewer steps", "Pareto front", "DeepCache, dominated", "DeepCache, on the front", "1"):
        assert word in texts


def test_omitted_metrics_have_no_column_and_a_reason(report):
    page = report(ablation())
    assert not {"LPIPS", "CLIP"} & set(columns(page.by_id("result-1-1-front")))
    assert "lpips is not measured: the weights of AlexNet are not on this machine" in page.text
    assert "clip is not measured: openai/clip-vit-large-patch14 is not on this machine" in page.text


def heat_maps(page):
    return {each.attributes["aria-label"]: each for each in page.all("div") if "aria-label" in each.attributes}


def test_heat_maps_for_each_kind_with_the_numbers_in_the_cells(report):
    result = ablation(labels=GRID)
    maps = heat_maps(report(result))
    kinds = ("re-use, uniform", "linear forecast, uniform", "linear forecast, uniform, guidance reuse")
    assert list(maps) == [*kinds, "re-use, non-uniform"]
    group = result["groups"][0]
    found = rows(maps["linear forecast, uniform"].all("table")[0])
    assert [row[0] for row in found] == ["Branch 0", "Branch 1"]
    for branch, row in enumerate(found):
        for interval, text in zip((2, 3, 5), row[1:], strict=True):
            cell = cell_of(group, f"I={interval} B={branch} linear")
            front = " Pareto front" if cell["front"] else ""
            assert text == f"{cell['psnr']['mean']:.1f} dB {100 * cell['mac_share']:.1f} %{front}"


def test_with_a_chosen_cell_the_cells_of_a_heat_map_are_buttons():
    (group,) = fidelity_groups(Source(None, "", ablation(labels=GRID), ""))
    buttons = parse(group.heat_maps[0].html(chosen="I=3 B=1")).all("button")
    places = [(button.attributes["data-interval"], button.attributes["data-branch"]) for button in buttons]
    assert places == [(interval, branch) for branch in "01" for interval in "235"]
    pressed = [
        place for place, button in zip(places, buttons, strict=True) if button.attributes["aria-pressed"] == "true"
    ]
    assert pressed == [("3", "1")]
    assert buttons[0].text.startswith("Interval 2, branch 0: ")


def test_a_higher_psnr_has_a_lighter_shade_on_one_scale_for_the_group():
    (group,) = fidelity_groups(Source(None, "", ablation(labels=GRID), ""))
    shades = sorted(
        (cell["psnr"]["mean"], each.shade(cell)) for each in group.heat_maps for cell in each.cells.values()
    )
    assert [shade for _, shade in shades] == sorted(shade for _, shade in shades)
    assert (shades[0][1], shades[-1][1]) == (0, SHADES - 1)


def test_every_shade_is_legible_and_lighter_than_the_one_before():
    style = (files("DeepCache.report") / "templates" / "heat_map.css").read_text(encoding="utf-8")
    shades = re.findall(r"\.shade-(\d) \{ background: (#\w{6}); color: (#\w{6}); \}", style)
    assert [int(number) for number, _, _ in shades] == list(range(SHADES))
    assert all(contrast(background, text) >= 4.5 for _, background, text in shades)
    found = [luminance(background) for _, background, _ in shades]
    assert all(darker < lighter for darker, lighter in zip(found, found[1:], strict=False))


def test_skipped_steps_and_each_threshold_have_heat_maps_of_their_own():
    grid = list(product((2, 3), (0, 1)))
    words = ("", " alternating", " limited adaptive threshold=0.1", " limited adaptive threshold=0.2")
    result = ablation(labels=[f"I={interval} B={branch}{word}" for word in words for interval, branch in grid])
    (group,) = fidelity_groups(Source(None, "", result, ""))
    assert [each.kind.title for each in group.heat_maps] == [
        "re-use, uniform",
        "re-use, uniform, alternating steps",
        "limited forecast, adaptive with threshold 0.1",
        "limited forecast, adaptive with threshold 0.2",
    ]
    assert [len(each.cells) for each in group.heat_maps] == [4] * 4


def test_a_heat_map_names_cells_that_were_not_measured(report):
    page = report(ablation(labels=["I=2 B=0", "I=3 B=0", "I=3 B=1"]))
    (heat_map,) = heat_maps(page).values()
    assert [cell.text for cell in heat_map.all("td")].count("not measured") == 1


def test_a_row_of_settings_makes_no_heat_map(report):
    assert not heat_maps(report(ablation(labels=["I=2 B=0", "I=3 B=0", "I=3 B=1 linear"])))


def test_settings_that_are_missing_are_named(report):
    result = ablation(groups=(("DDIMScheduler", 50), ("EulerDiscreteScheduler", 30)))
    result["groups"][0]["cells"] = [cell for cell in result["groups"][0]["cells"] if cell["label"] != "I=5 B=1"]
    result["groups"][1] |= {"reference": None, "cells": []}
    page = report(result)
    assert "Not finished: not measured yet: I=5 B=1." in page.text
    assert "Not finished: nothing is measured yet." in page.text
    assert "Not finished: 2 of 2 groups to go." in page.text


def test_fewer_steps_that_are_missing_are_named(report):
    assert "Not finished: not measured yet: fewer steps." in report(ablation(fewer=())).text


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
        "DDIMScheduler, 50 steps, requested as model",
        "DDIMScheduler, 50 steps, requested as DDIMScheduler",
    ]


def test_identical_images_and_settings_without_images(report):
    result = ablation()
    same, none = result["groups"][0]["cells"][:2]
    same["psnr"] = metric([120.0] * 6)
    none["psnr"] = none["ssim"] = None
    page = report(result)
    found = {row[1]: row for name in ("front", "others") for row in rows(page.by_id(f"result-1-1-{name}"))}
    assert found[same["label"]][3] == "120.00 ± 0.00"
    assert found[none["label"]][3] == "–"
    # No chart has an axis up to there.
    assert "120" not in [text for texts in charts(page).values() for text in texts]
    assert "identical" in page.by_id("main").text


def test_settings_with_a_plan_or_schedule_are_in_no_heat_map():
    result = ablation(labels=["I=2 B=0", "I=3 B=0", "I=3 B=1"])
    result["groups"][0]["cells"][0]["config"] = parse_variant("I=2 B=0").config.to_dict() | {"plan": {}}
    (group,) = fidelity_groups(Source(None, "", result, ""))
    assert sorted(cell["label"] for each in group.heat_maps for cell in each.cells.values()) == ["I=3 B=0", "I=3 B=1"]


def test_every_group_has_its_guidance_scale(report):
    groups = (("DDIMScheduler", 50), ("EulerDiscreteScheduler", 30))
    page = report(ablation(groups=groups, guidances=(2.0, 7.5)))
    assert [heading.text for heading in page.all("h3")] == [
        "DDIMScheduler, 50 steps, guidance 2",
        "EulerDiscreteScheduler, 30 steps, guidance 2",
        "DDIMScheduler, 50 steps, guidance 7.5",
        "EulerDiscreteScheduler, 30 steps, guidance 7.5",
    ]
    facts = {entry.all("dt")[0].text: entry.all("dd")[0].text for entry in page.all("div") if entry.all("dt")}
    assert facts["guidances"] == "2, 7.5"


def test_right_objects_have_a_column_and_the_group_its_verdicts(report):
    result = ablation(judged=True)
    page = report(result)
    (group,) = result["groups"]
    for name in ("front", "others"):
        table = page.by_id(f"result-1-1-{name}")
        for row in rows(table):
            shown = dict(zip(columns(table), row, strict=True))
            assert shown["Right objects"].startswith(f"{cell_of(group, shown['Settings'])['right']['mean']:.3f} ± ")
    (shown,) = (part for part in page.all("ul") if part.attributes.get("class") == "verdicts")
    (measured,) = fidelity_groups(Source(None, "", result, ""))
    expected = [" ".join(verdict.split()) for verdict in verdicts(measured)]
    assert [" ".join(item.text.split()) for item in shown.all("li")] == expected
    assert len(expected) > 1


def test_an_older_ablation_is_shown_as_one_of_today(report):
    result = ablation()
    page, older = report(result), report(in_format_1(result))
    for name in ("result-1-1-front", "result-1-1-others"):
        assert columns(older.by_id(name)) == columns(page.by_id(name))
        places = [place for place, column in enumerate(columns(page.by_id(name))) if column != "5th percentile"]
        for row, wanted in zip(rows(older.by_id(name)), rows(page.by_id(name)), strict=True):
            assert [row[place] for place in places] == [wanted[place] for place in places]
