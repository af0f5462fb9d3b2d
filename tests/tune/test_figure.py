import sys

import pytest
from PIL import Image

from DeepCache.schedule import FORECASTS
from DeepCache.tune.figure import draw_frontier
from DeepCache.tune.starts import kinds_of_steps
from tests.tune.made_up_plan import made_up_plan, measured


@pytest.mark.parametrize("path", [str, lambda path: path], ids=["text", "path"])
def test_a_picture_is_written(path, tmp_path):
    draw_frontier(made_up_plan(), path(tmp_path / "frontier.png"))
    with Image.open(tmp_path / "frontier.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 8


def test_it_names_the_model_and_every_curve(tmp_path, monkeypatch):
    from matplotlib import rcParams

    monkeypatch.setitem(rcParams, "svg.fonttype", "none")
    draw_frontier(made_up_plan(), tmp_path / "frontier.svg")
    text = (tmp_path / "frontier.svg").read_text(encoding="utf-8")
    for word in (
        "shapes, DDIMScheduler, 2 steps, guidance 7.5",
        "uniform, none",
        "uniform, linear, guidance reuse",
        "uniform, quadratic",
        "fewer steps",
        "tuned",
        "the plan, held-out prompts",
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
    draw_frontier(made_up_plan(), tmp_path / "frontier.png")
    assert drawn["uniform, none"] == ([0.3, 0.55], [25.0, 31.0])
    assert drawn["uniform, linear"] == ([0.3], [27.0])
    assert drawn["uniform, linear, guidance reuse"] == ([0.25], [26.5])
    assert drawn["fewer steps"] == ([0.25, 0.6], [17.0, 22.0])
    assert drawn["tuned"] == ([0.2, 0.28], [24.0, 30.0])
    assert (drawn["the plan"], drawn["the plan, held-out prompts"]) == ((0.28, 30.0), (0.28, 29.0))


@pytest.mark.parametrize("kind", kinds_of_steps(0, guided=True, skipped=FORECASTS))
def test_there_is_a_colour_for_every_kind_of_steps(kind, tmp_path):
    draw_frontier(made_up_plan(uniform=[measured(0.3, 25.0, name=f"interval 4, {kind}")]), tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size


def test_a_model_without_guidance_has_no_curve_of_guidance_reuse(tmp_path):
    draw_frontier(made_up_plan(uniform=[measured(0.3, 25.0, name="interval 4, none")]), tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"drawing the frontier takes matplotlib: pip install 'DeepCache\[tune\]'"):
        draw_frontier(made_up_plan(), tmp_path / "frontier.png")
    assert not list(tmp_path.iterdir())
