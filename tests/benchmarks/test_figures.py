"""The figures of docs/schedules.md and docs/how-it-works.md, and what these pages say that they show."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from itertools import product

import pytest
import torch
from PIL import Image, ImageChops, ImageStat

from benchmarks import figures
from benchmarks.figures import INTERVALS, cell, fewer_steps, psnr
from benchmarks.shallow_unet import left_and_right, shallow_unet_diagram
from DeepCache.engine.layouts import skip_branches
from DeepCache.models import random_pipeline

GROUPS = {(group["scheduler"], group["steps"]): group for group in figures.ablation()["groups"]}
LONG, SHORT = [("ddim", 50), ("dpm++", 50)], [("ddim", 25), ("dpm++", 25)]
EACH = LONG + SHORT
SVG = "{http://www.w3.org/2000/svg}"


def gains(forecast, interval, where=EACH, over="none", branch=0):
    """What a forecast gains over another one, by scheduler and steps."""
    pairs = [[cell(GROUPS[each], interval, branch, name) for name in (forecast, over)] for each in where]
    return [psnr(first) - psnr(second) for first, second in pairs]


def ahead_of_fewer_steps(forecast, interval):
    """The schedulers and steps at which a forecast has a higher PSNR than fewer steps at the closest cost."""
    found = {each: cell(GROUPS[each], interval, 0, forecast) for each in EACH}
    return {each for each, ours in found.items() if psnr(ours) > psnr(fewer_steps(GROUPS[each], ours["mac_share"]))}


@pytest.mark.parametrize("page", figures.pages(), ids=lambda page: page.name)
def test_the_numbers_in_a_page_are_those_of_the_result_files(page):
    _, within, _ = figures.split(page.read_text(encoding="utf-8"))
    assert within == figures.pages()[page]


@pytest.mark.parametrize("name", figures.FIGURES)
def test_figures_match_the_results(name, tmp_path):
    figures.FIGURES[name](list(GROUPS.values()), tmp_path / "diagram.png")
    committed = figures.IMAGES / f"{name}.png"
    assert committed.stat().st_size < 100_000
    with Image.open(tmp_path / "diagram.png") as diagram, Image.open(committed) as there:
        difference = ImageChops.difference(diagram.convert("RGB"), there.convert("RGB"))
    # Of 255 levels; another release of matplotlib may set a letter elsewhere.
    assert max(ImageStat.Stat(difference).mean) < 1


def test_a_forecast_is_compared_at_the_same_cost():
    for group, interval, branch in product(GROUPS.values(), INTERVALS, figures.BRANCHES):
        assert len({cell(group, interval, branch, forecast)["mac_share"] for forecast in figures.FORECASTS}) == 1


def test_linear_forecast_beats_reuse():
    for branch, interval in product(figures.BRANCHES, (2, 3)):
        assert min(gains("linear", interval, branch=branch)) > 0
    for interval in (5, 8):
        assert min(gains("linear", interval, LONG)) > 0
    ddim, dpm = gains("linear", 5, SHORT)
    assert ddim > 0 > dpm > -1.5
    assert max(gains("linear", 8, SHORT)) < 0


def test_a_quadratic_forecast_wants_dense_full_steps():
    assert min(gains("quadratic", 2, [("ddim", 50), ("ddim", 25)], over="linear")) > 0
    assert min(gains("quadratic", 3, LONG, over="linear")) > 0
    assert max(gains("quadratic", 8)) < 0


def test_guidance_reuse_takes_little():
    for interval, where in product((3, 5), EACH):
        whole = cell(GROUPS[where], interval, 0, "linear")
        halved = cell(GROUPS[where], interval, 0, "linear", guidance_reuse=True)
        assert 4 <= round(100 * (whole["mac_share"] - halved["mac_share"])) <= 5
        assert psnr(whole) - psnr(halved) < 1.25
        if interval == 5 and where in SHORT:
            assert psnr(halved) > psnr(whole)


@pytest.mark.parametrize("forecast", ["none", "linear"])
@pytest.mark.parametrize(("small", "large"), [(2, 3), (3, 8)])
def test_a_smaller_interval_comes_before_a_deeper_branch(small, large, forecast):
    for group in GROUPS.values():
        shallow, deep = cell(group, small, 0, forecast), cell(group, large, 1, forecast)
        assert shallow["mac_share"] < deep["mac_share"] + 0.001
        assert psnr(shallow) > psnr(deep)


def test_uniform_full_steps_have_higher_fidelity():
    ahead = []
    for (name, group), interval, forecast in product(GROUPS.items(), INTERVALS, figures.FORECASTS):
        uniform, dense = (cell(group, interval, 0, forecast, non_uniform=each) for each in (False, True))
        assert uniform["mac_share"] == dense["mac_share"]
        if psnr(dense) > psnr(uniform):
            ahead.append((*name, interval))
            assert dense["pattern"].count("F") == 4
    assert set(ahead) == {("ddim", 25, 8)}


def test_where_fewer_steps_are_the_better_choice():
    for interval in (2, 3):
        assert ahead_of_fewer_steps("linear", interval) == set(EACH)
        assert ahead_of_fewer_steps("none", interval) == {("ddim", 50), ("dpm++", 25)}
    for interval in (5, 8):
        assert ahead_of_fewer_steps("none", interval) == set()
    assert ahead_of_fewer_steps("linear", 5) == {*LONG, ("ddim", 25)}
    assert ahead_of_fewer_steps("linear", 8) == set(LONG)
    for group, forecast in product(GROUPS.values(), ("none", "linear")):
        deep = cell(group, 8, max(figures.BRANCHES), forecast)
        assert deep["mac_share"] > 0.7
        assert psnr(deep) < psnr(fewer_steps(group, deep["mac_share"]))


def test_ablation_omits_what_the_page_says():
    assert set(figures.ablation()["settings"]["left_out"]) == {"lpips", "clip"}


@pytest.fixture(scope="module")
def diagram():
    return shallow_unet_diagram()


def test_diagram_is_up_to_date(diagram):
    assert (figures.IMAGES / "shallow-unet.svg").read_text(encoding="utf-8") == diagram


def test_layers_in_the_diagram(diagram):
    shallow, deep = ElementTree.fromstring(diagram).findall(f"{SVG}g")
    ran = [
        {box.get("data-module") for box in panel.iter(f"{SVG}g") if box.get("class") == "runs"}
        for panel in (shallow, deep)
    ]
    # By the published structure: three blocks of two layers with a downsampler each way, and one without.
    assert ran[0] == {"conv_in", "up_blocks.3.resnets.2"}
    assert ran[1] == ran[0] | {
        "down_blocks.0.resnets.0",
        "down_blocks.0.resnets.1",
        "down_blocks.0.downsamplers.0",
        "down_blocks.1.resnets.0",
        "up_blocks.2.resnets.1",
        "up_blocks.2.resnets.2",
        "up_blocks.3.resnets.0",
        "up_blocks.3.resnets.1",
    }
    assert all(len(panel.findall(f"{SVG}g[@data-module]")) == 25 for panel in (shallow, deep))


def test_skip_branches_end_where_the_diagram_shows():
    unet = random_pipeline("sd15-tiny", dtype=torch.float32, device="cpu").unet
    branches = skip_branches(unet)
    made, taken = {}, {}

    def note_made(number):
        def hook(module, args, output):
            made[number] = output[0] if isinstance(output, tuple) else output

        return hook

    def note_taken(number):
        def hook(module, args):
            taken[number] = args[0]

        return hook

    for branch in branches:
        (_, left), (_, right) = left_and_right(branch)
        attention = left.replace("resnets", "attentions")
        modules = dict(unet.named_modules())
        # A layer ends with its transformer where it has one.
        modules.get(attention, modules[left]).register_forward_hook(note_made(branch.number))
        modules[right].register_forward_pre_hook(note_taken(branch.number))
    with torch.no_grad():
        unet(torch.randn(1, 4, 8, 8), 5, encoder_hidden_states=torch.zeros(1, 4, unet.config.cross_attention_dim))
    assert len(made) == len(taken) == 12
    for number, skip in made.items():
        assert torch.equal(taken[number][:, -skip.shape[1] :], skip)
