"""The tabs for an ablation with several guidance scales."""

from __future__ import annotations

import pytest

from DeepCache.app.explorer import Explorer
from DeepCache.app.page import build_page
from DeepCache.app.render_worker import RenderWorker
from DeepCache.app.server import AppSettings
from tests.report.synthetic_results import ablation, in_format_1, write

LABELS = [f"I={interval} B=0{more}" for interval in (2, 3, 5) for more in ("", " linear")]
DDIM, DPM = "DDIMScheduler, 50 steps", "DPMSolverMultistepScheduler, 25 steps"


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    """Guidance 2 with two schedulers; guidance 7.5 with one of them, at which fewer steps beat DeepCache."""
    groups = (("DDIMScheduler", 50), ("DPMSolverMultistepScheduler", 25))
    result = ablation(labels=LABELS, groups=groups, samples=1, fewer=(24, 12), guidances=(2.0, 7.5))
    del result["groups"][3]
    for cell in result["groups"][2]["cells"]:
        if cell["method"] == "fewer steps":
            cell["psnr"]["mean"] += 30
    return Explorer.from_file(write(result, tmp_path_factory.mktemp("ablation") / "result.json"))


@pytest.fixture(scope="module")
def page(explorer):
    with RenderWorker(AppSettings(device="cpu")) as worker:
        yield build_page(worker, explorer)


def called(page, name):
    """A function of the page by its name."""
    return next(each.fn for each in page.fns.values() if each.name == name)


def shown(update):
    """The new value of each field and text, by its label or id."""
    return {part.label or part.elem_id: value for part, value in update.items()}


def test_each_scale_has_its_own_groups(explorer):
    assert explorer.guidance_scales == [2.0, 7.5]
    assert [(group.title, group.guidance) for group in explorer.groups] == [(DDIM, 2.0), (DPM, 2.0), (DDIM, 7.5)]
    assert [group.where for group in explorer.groups] == [
        f"{DDIM}, guidance 2",
        f"{DPM}, guidance 2",
        f"{DDIM}, guidance 7.5",
    ]
    assert explorer.group(DDIM) is explorer.groups[0]


def test_an_older_file_has_the_scale_of_its_settings(tmp_path):
    result = in_format_1(ablation(labels=LABELS, samples=1, guidances=(4.0,)))
    older = Explorer.from_file(write(result, tmp_path / "result.json"))
    assert older.guidance_scales == [4.0]
    assert older.groups[0].where == f"{DDIM}, guidance 4"


def test_the_scale_can_be_selected_if_there_are_several(page, explorer):
    def asked(page):
        fields = [block for block in page.blocks.values() if block.elem_id in ("explore-guidance", "choose-guidance")]
        return {field.elem_id: (field.visible, field.choices) for field in fields}

    several = [("2", 2.0), ("7.5", 7.5)]
    assert asked(page) == {"explore-guidance": (True, several), "choose-guidance": (True, several)}
    one = Explorer(explorer.source, explorer.groups[:2])
    with RenderWorker(AppSettings(device="cpu")) as worker:
        page_of_one = build_page(worker, one)
    assert {visible for visible, _ in asked(page_of_one).values()} == {False}


def test_the_grid_of_another_scale(page, explorer):
    update = shown(called(page, "on_group")(7.5, DPM, "linear forecast, uniform"))
    # That scheduler was not measured at this scale.
    assert (update["Scheduler and steps"]["choices"], update["Scheduler and steps"]["value"]) == ([DDIM], DDIM)
    assert update["Forecast and schedule"]["value"] == "linear forecast, uniform"
    measured = explorer.groups[2].named("I=5 B=0 linear")["psnr"]["mean"]
    assert f"<b>{measured:.1f} dB</b>" in update["grid"]
    assert f"<b>{measured:.1f} dB</b>" not in shown(called(page, "on_group")(2.0, DDIM, "re-use, uniform"))["grid"]


def test_the_page_names_the_measured_scales(page):
    texts = [str(block.value) for block in page.blocks.values() if getattr(block, "value", None)]
    assert any("at guidance 2, 7.5:" in text for text in texts)


def test_each_scale_has_its_own_recommendation(page):
    choose = called(page, "on_change")
    at_two = shown(choose(2.0, DDIM, "speed-up", 2.0))
    assert "For a speed-up of 2 or more: I=" in at_two["advice"]
    assert "guidance_scale=2.0" in at_two["In Python"]
    assert "--guidance" not in at_two["On the command line"]
    at_more = shown(choose(7.5, DDIM, "speed-up", 2.0))
    assert "For a speed-up of 2 or more: use 24 steps without DeepCache." in at_more["advice"]
    assert f"{DDIM}, guidance 7.5" in at_more["advice"]
    assert "num_inference_steps=24" in at_more["In Python"]
    assert "guidance_scale=7.5" in at_more["In Python"]
    assert "apply_deepcache" not in at_more["In Python"]
    assert at_more["On the command line"].endswith(
        "--model shapes --scheduler DDIMScheduler --steps 24 --guidance 7.5 --interval 1"
    )
