import sys

import pytest
from PIL import Image

from DeepCache.schedule import FORECASTS
from DeepCache.tune.figure import plot_frontier
from DeepCache.tune.starts import kinds_of_steps
from tests.tune.synthetic_plan import measured, synthetic_plan


@pytest.mark.parametrize("path", [str, lambda path: path], ids=["text", "path"])
def test_a_plot_is_written(path, tmp_path):
    plot_frontier(synthetic_plan(), path(tmp_path / "frontier.png"))
    with Image.open(tmp_path / "frontier.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 8


def test_the_plot_names_the_model_and_every_curve(tmp_path, monkeypatch):
    from matplotlib import rcParams

    monkeypatch.setitem(rcParams, "svg.fonttype", "none")
    plot_frontier(synthetic_plan(), tmp_path / "frontier.svg")
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


def test_curves_are_sorted_and_only_the_front_of_tuned_schedules_is_shown(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    generated = {}
    plot = Axes.plot

    def noted(self, costs, psnrs, *args, **kwargs):
        generated[kwargs["label"]] = (costs, psnrs)
        return plot(self, costs, psnrs, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", noted)
    plot_frontier(synthetic_plan(), tmp_path / "frontier.png")
    assert generated["uniform, none"] == ([0.3, 0.55], [25.0, 31.0])
    assert generated["uniform, linear"] == ([0.3], [27.0])
    assert generated["uniform, linear, guidance reuse"] == ([0.25], [26.5])
    assert generated["fewer steps"] == ([0.25, 0.6], [17.0, 22.0])
    assert generated["tuned"] == ([0.2, 0.28], [24.0, 30.0])
    assert (generated["the plan"], generated["the plan, held-out prompts"]) == ((0.28, 30.0), (0.28, 29.0))


@pytest.mark.parametrize("kind", kinds_of_steps(0, guided=True, skipped=FORECASTS))
def test_every_kind_of_step_has_a_colour(kind, tmp_path):
    plot_frontier(synthetic_plan(uniform=[measured(0.3, 25.0, name=f"interval 4, {kind}")]), tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size


def test_a_model_without_guidance_has_no_curve_of_guidance_reuse(tmp_path):
    plot_frontier(synthetic_plan(uniform=[measured(0.3, 25.0, name="interval 4, none")]), tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"requires matplotlib: pip install 'DeepCache\[tune\]'"):
        plot_frontier(synthetic_plan(), tmp_path / "frontier.png")
    assert not list(tmp_path.iterdir())
