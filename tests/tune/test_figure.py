import sys

import pytest
from PIL import Image

from DeepCache.plan import Plan
from DeepCache.schedule import Step, StepSchedule
from DeepCache.tune.figure import draw_frontier


def measured(cost, psnr, **values):
    return {"cost": cost, "psnr": psnr, "ssim": 0.9, "seconds": 1.0, **values}


def plan(uniform=None):
    if uniform is None:
        uniform = [
            measured(0.3, 25.0, name="interval 4, none"),
            measured(0.55, 31.0, name="interval 2, none"),
            measured(0.3, 27.0, name="interval 4, linear"),
            measured(0.25, 26.5, name="interval 4, linear, guidance reuse"),
            measured(0.3, 26.0, name="interval 4, quadratic"),
        ]
    return Plan(
        StepSchedule((Step(True), Step(False))),
        model={},
        scheduler={"class": "DDIMScheduler"},
        tuned={"model": "shapes", "steps": 2},
        results={
            "tuning": {"measured": measured(0.28, 30.0)},
            "held_out": {"measured": measured(0.28, 29.0)},
            "frontier": {
                "uniform": uniform,
                "fewer_steps": [measured(0.6, 22.0, steps=3), measured(0.25, 17.0, steps=1)],
                "tuned": [measured(0.2, 24.0), measured(0.3, 23.0), measured(0.28, 30.0)],
            },
        },
    )


@pytest.mark.parametrize("path", [str, lambda path: path], ids=["text", "path"])
def test_a_picture_is_written(path, tmp_path):
    draw_frontier(plan(), path(tmp_path / "frontier.png"))
    with Image.open(tmp_path / "frontier.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 8


def test_it_names_the_model_and_every_curve(tmp_path, monkeypatch):
    from matplotlib import rcParams

    monkeypatch.setitem(rcParams, "svg.fonttype", "none")
    draw_frontier(plan(), tmp_path / "frontier.svg")
    text = (tmp_path / "frontier.svg").read_text(encoding="utf-8")
    for word in (
        "shapes, DDIMScheduler, 2 steps",
        "uniform, re-use",
        "uniform, linear, guidance reuse",
        "uniform, quadratic",
        "fewer steps",
        "tuned",
        "the plan, unseen prompts",
        "PSNR",
    ):
        assert word in text


def test_curves_are_sorted_and_of_tuned_schedules_only_the_best_are_shown(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = {}
    plot = Axes.plot

    def noted(self, costs, psnrs, *args, **kwargs):
        drawn[kwargs["label"]] = (costs, psnrs)
        return plot(self, costs, psnrs, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", noted)
    draw_frontier(plan(), tmp_path / "frontier.png")
    assert drawn["uniform, re-use"] == ([0.3, 0.55], [25.0, 31.0])
    assert drawn["uniform, linear"] == ([0.3], [27.0])
    assert drawn["uniform, linear, guidance reuse"] == ([0.25], [26.5])
    assert drawn["fewer steps"] == ([0.25, 0.6], [17.0, 22.0])
    assert drawn["tuned"] == ([0.2, 0.28], [24.0, 30.0])
    assert (drawn["the plan"], drawn["the plan, unseen prompts"]) == ((0.28, 30.0), (0.28, 29.0))


def test_a_model_without_guidance_has_no_curve_of_guidance_reuse(tmp_path):
    draw_frontier(plan(uniform=[measured(0.3, 25.0, name="interval 4, none")]), tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"drawing the frontier takes matplotlib: pip install 'DeepCache\[tune\]'"):
        draw_frontier(plan(), tmp_path / "frontier.png")
    assert not list(tmp_path.iterdir())
