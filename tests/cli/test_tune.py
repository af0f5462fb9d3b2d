"""`deepcache tune`, from the command line to the plan and its plot."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from DeepCache.plan import Plan
from DeepCache.prompts import bundled_prompts
from DeepCache.schedule import Step, StepSchedule
from DeepCache.tune import Goal, TuningSettings
from tests.cli.helpers import complain
from tests.tune.small_pipeline import small_pipeline
from tests.tune.synthetic_plan import synthetic_plan

PROMPTS = ("a red circle", "a green star", "a blue ring", "a pink heart")
TINY = ("tune", "--prompts", "prompts.txt", "--tune-on", 1, "--check-on", 1, "--steps", 4, "--evaluations", 1)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A small pipeline instead of the model, and prompts for it."""
    import DeepCache.models

    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    pipe = small_pipeline()

    def load(*_, scheduler, **__):
        if scheduler is not None:
            DeepCache.models.set_scheduler(pipe, scheduler)
        return pipe

    monkeypatch.setattr(DeepCache.models, "load_pipeline", load)
    return pipe


@pytest.fixture
def asked(small, monkeypatch):
    """The settings of a tuning with a synthetic plan."""
    import DeepCache.tune

    asked = SimpleNamespace(plan=synthetic_plan())

    def tune(pipe, settings, folder, on_progress):
        asked.pipe, asked.settings, asked.folder = pipe, settings, folder
        return asked.plan

    monkeypatch.setattr(DeepCache.tune, "tune", tune)
    return asked


def test_the_shipped_model_is_tuned(run):
    result = run("tune", "--cost", 0.7, "--steps", 4, "--tune-on", 1, "--check-on", 1, "--evaluations", 0)
    assert result.exit_code == 0, result.stderr
    plan = Plan.from_file("plan.json")
    assert plan.tuned["model"] == "shapes"
    assert plan.guidance == (2, 2)
    assert plan.results["tuning"]["measured"]["cost"] <= 0.7
    with Image.open("plan.png") as plot:
        assert plot.format == "PNG"
    generated = run("generate", PROMPTS[0], "--steps", 4, "--plan", "plan.json")
    assert generated.exit_code == 0, generated.stderr


def test_the_plan_is_shown_next_to_alternatives(run, small):
    result = run(*TINY, "--cost", 0.7)
    assert result.exit_code == 0, result.stderr
    plan = Plan.from_file("plan.json")
    lines = result.stdout.splitlines()
    assert lines[0] == "steps      " + plan.schedule.pattern(4).replace(".", "·")
    assert lines[1].startswith("forecast   ")
    assert len(lines[1].rstrip("\n")) == len(lines[0])
    for row in (
        "prompts tuned on",
        "held-out prompts",
        "uniform, interval 2",
        f"{plan.results['held_out']['fewer_steps']['steps']} steps without DeepCache",
        "\nwithout DeepCache",
    ):
        assert row in result.stdout
    for word in ("cost", "PSNR", "SSIM", "seconds", "dB", f"{plan.results['tuning']['measured']['cost']:.1%}"):
        assert word in result.stdout
    assert lines[-2:] == ["plan.json", "plan.png"]
    assert [line for line in result.stderr.splitlines() if line.endswith("…")] == [
        "recording without DeepCache …",
        "errors of each step …",
        "uniform schedules and fewer steps …",
        "search …",
        "held-out prompts …",
    ]


def test_every_option_reaches_the_tuning(run, small, asked):
    Path("here").mkdir()
    result = run(
        *("tune", "--speed-up", 1.6, "--scheduler", "euler", "--steps", 5, "--guidance", "7.5,2.5", "--seed", 7),
        *("--batch", 1, "--evaluations", 3, "--branches", "1,0", "--prompts", "prompts.txt", "--model", "other"),
        *("--tune-on", 2, "--check-on", 1, "--output", "here/fast.json", "--work", "kept"),
    )
    assert result.exit_code == 0, result.stderr
    assert asked.pipe is small
    assert type(small.scheduler).__name__ == "EulerDiscreteScheduler"
    assert asked.settings == TuningSettings(
        prompts=PROMPTS[:2],
        held_out=PROMPTS[2:3],
        steps=5,
        goal=Goal(cost=1 / 1.6),
        model="other",
        guidances=(2.5, 7.5),
        seed=7,
        batch=1,
        evaluations=3,
        branches=(1, 0),
    )
    assert asked.folder == Path("kept")
    assert Plan.from_file("here/fast.json") == asked.plan
    assert sorted(path.name for path in Path("here").iterdir()) == ["fast.json", "fast.png"]


def test_bundled_prompts_are_the_default(run, asked):
    result = run("tune", "--psnr", 20)
    assert result.exit_code == 0, result.stderr
    settings = asked.settings
    assert settings.goal == Goal(psnr=20)
    assert (*settings.prompts, *settings.held_out) == bundled_prompts("shapes")[: 8 + 16]
    assert (settings.steps, settings.guidances, settings.branches) == (50, (2,), (0,))
    assert asked.folder == Path("plan-tuning")


def test_a_repeated_prompt_counts_once(run, asked):
    Path("prompts.txt").write_text("\n".join((PROMPTS[0], PROMPTS[0], PROMPTS[1])), encoding="utf-8")
    result = run(*TINY, "--cost", 0.5)
    assert result.exit_code == 0, result.stderr
    assert (asked.settings.prompts, asked.settings.held_out) == (PROMPTS[:1], PROMPTS[1:2])


def test_a_missing_prediction_is_omitted_from_the_table(run, asked):
    result = run(*TINY, "--cost", 0.5)
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("held-out prompts")]
    assert row.split()[2:] == ["28.0%", "29.0", "dB", "0.9000", "1.00"]
    asked.plan = synthetic_plan(predicted_psnr=31.0)
    result = run(*TINY, "--cost", 0.5)
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("held-out prompts")]
    assert row.split()[2:] == ["28.0%", "31.0", "dB", "29.0", "dB", "0.9000", "1.00"]


def test_forecasts_are_shown_as_digits_and_explained(run, asked):
    response, limited = Step(False, forecast="response", skipped=True), Step(False, forecast="limited")
    asked.plan = replace(asked.plan, schedule=StepSchedule((Step(True), limited, response, Step(True), response)))
    result = run(*TINY, "--cost", 0.5)
    assert result.stdout.splitlines()[:2] == ["steps      F·-F-", "forecast    34 4"]
    assert "steps: F full, · shallow, - skipped. forecast: 0 none, 1 linear, 2 quadratic, 3 limited, 4 response." in (
        result.stdout
    )


def test_a_better_uniform_schedule_on_held_out_prompts_is_reported(run, asked):
    result = run(*TINY, "--cost", 0.5)
    assert "is closer" not in result.stdout
    asked.plan = synthetic_plan(held_out_uniform=29.5)
    result = run(*TINY, "--cost", 0.5)
    assert (
        "On the held-out prompts, uniform, interval 4, linear, guidance reuse is closer to the original. Tune on more"
        in result.stdout
    )


def test_better_results_of_fewer_steps_are_recommended_per_guidance_scale(run, asked):
    result = run(*TINY, "--cost", 0.5)
    assert "without DeepCache: " not in result.stdout
    asked.plan = synthetic_plan(scales={2.0: (41.0, 30.0), 5.0: (31.0, 31.5), 7.5: (29.0, 33.25)})
    result = run(*TINY, "--cost", 0.5, "--guidance", "2,5,7.5")
    assert [line for line in result.stdout.splitlines() if line.startswith("At guidance")] == [
        f"At guidance {scale} use 1 steps without DeepCache: {fewer} dB at 25.0% of the cost on the held-out prompts, "
        f"where the plan has {own} dB at 28.0%."
        for scale, own, fewer in ((5, "31.0", "31.5"), ("7.5", "29.0", "33.2"))
    ]


def test_fewer_steps_are_recommended_without_guidance_too(run, asked):
    asked.plan = synthetic_plan(scales={None: (29.0, 30.0)})
    result = run(*TINY, "--cost", 0.5)
    assert "\nUse 1 steps without DeepCache: 30.0 dB" in result.stdout


def test_every_guidance_scale_has_a_row(run, asked):
    result = run(*TINY, "--cost", 0.5)
    assert "at guidance" not in result.stdout
    asked.plan = synthetic_plan(scales={5.0: (31.0, 20.0), 7.5: (29.0, 21.0)})
    result = run(*TINY, "--cost", 0.5, "--guidance", "5,7.5")
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("  at guidance")]
    assert [(row[2], row[3], row[4]) for row in rows] == [
        *[("5", "28.0%", "31.0"), ("7.5", "28.0%", "29.0")] * 2,
        ("5", "25.0%", "20.0"),
        ("7.5", "25.0%", "21.0"),
    ]


def test_ctrl_c_loses_nothing_and_the_same_command_resumes(run, small, monkeypatch):
    from DeepCache.cli.progress import WorkDisplay
    from DeepCache.tune.segment_errors import SegmentErrors

    def interrupt_in_the_search(self, now):
        if now.stage == "search":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(WorkDisplay, "__call__", interrupt_in_the_search)
        result = run(*TINY, "--cost", 0.7)
    assert result.exit_code == 130
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert result.stderr == "Stopped. The same command resumes from plan-tuning.\n"
    assert not Path("plan.json").exists()

    def not_again(*_):
        raise AssertionError

    monkeypatch.setattr(SegmentErrors, "measure", not_again)
    result = run(*TINY, "--cost", 0.7)
    assert result.exit_code == 0, result.stderr
    assert Path("plan.json").exists()


def test_without_matplotlib_there_is_a_plan_and_no_plot(run, asked, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run(*TINY, "--cost", 0.7)
    assert result.exit_code == 0, result.stderr
    assert "No plot of the frontier: plotting the frontier requires matplotlib" in result.stderr
    assert result.stdout.splitlines()[-1] == "plan.json"
    assert Path("plan.json").exists()
    assert not Path("plan.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["give one goal", "cost", "PSNR"]),
        (("--cost", 0.3, "--psnr", 30), ["give one goal"]),
        (("--cost", 0.3, "--speed-up", 3), ["--cost and --speed-up cannot be combined"]),
        (("--speed-up", 3, "--psnr", 30), ["give one goal"]),
        (("--cost", 0), ["cost", "between 0 and 1", "0"]),
        (("--cost", 1.5), ["cost", "between 0 and 1", "1.5"]),
        (("--cost", "nan"), ["cost", "nan"]),
        (("--speed-up", 1), ["--speed-up must be above 1, got 1"]),
        (("--speed-up", "inf"), ["cost", "between 0 and 1"]),
        (("--psnr", -3), ["psnr", "-3"]),
        (("--psnr", 120), ["psnr must be below 120 dB", "got 120"]),
        (("--cost", 0.3, "--guidance", "2;5"), ["guidance", "2,4,7.5", "'2;5'"]),
        (("--cost", 0.3, "--guidance", "2,"), ["guidance", "'2,'"]),
        (("--cost", "much"), ["--cost"]),
        (("--cost", 0.3, "--tune-on", 30), ["40 different prompts", "30 to tune on", "--prompts", "--tune-on"]),
        (("--cost", 0.3, "--prompts", "nowhere.txt"), ["'nowhere.txt'"]),
        (("--cost", 0.3, "--output", "nowhere/plan.json"), ["the folder 'nowhere' does not exist"]),
        (("--cost", 0.3, "--branches", "0;1"), ["0,1,3", "'0;1'"]),
        (("--cost", 0.3, "--branches", ""), ["0,1,3", "''"]),
        (("--cost", 0.3, "--branches", "0,"), ["0,1,3", "'0,'"]),
        (("--cost", 0.3, "--model", "shaps"), ["'shaps'", "did you mean shapes"]),
    ],
)
def test_invalid_options_are_refused_in_one_line(run, arguments, words):
    complain(run("tune", *arguments), *words)
    assert not Path("plan.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--scheduler", "eulr"), ["'eulr'", "Did you mean euler or euler-a"]),
        (("--branches", "0,9"), ["between 0 and 3", "got 9"]),
        (("--steps", 100_000), ["steps", "100000"]),
        (("--seed", -1), ["seed", "-1"]),
        (("--guidance", "nan"), ["guidance", "nan"]),
        (
            ("--cost", 0.01),
            ["no schedule of 4 steps meets the goal cost ≤ 0.010: the cheapest", "costs 0."],
        ),
        (("--work", "prompts.txt"), ["'prompts.txt'"]),
    ],
)
def test_options_that_do_not_fit_the_pipeline_are_refused_in_one_line(run, small, arguments, words):
    complain(run(*TINY, "--cost", 0.5, *arguments), *words)
    assert sorted(path.name for path in Path().iterdir()) == ["prompts.txt"]


def test_a_folder_as_output_is_refused_before_anything_is_generated(run, asked):
    Path("folder").mkdir()
    complain(run(*TINY, "--cost", 0.7, "--output", "folder"), "'folder'")
    assert not hasattr(asked, "settings")


def test_the_name_of_the_plot_is_refused_for_the_plan(run, asked):
    complain(run(*TINY, "--cost", 0.7, "--output", "plan.png"), "plan.png")


def test_a_negative_branch_is_refused(run, asked):
    complain(run(*TINY, "--cost", 0.7, "--branches", "0,-1"), "-1")


def test_a_goal_out_of_reach_and_a_folder_of_another_tuning_are_refused(run, small):
    result = run(*TINY, "--psnr", 119)
    assert result.exit_code == 2
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("deepcache: no schedule was found that meets the goal PSNR ≥ 119 dB: the closest costs 0.")
    complain(
        run(*TINY, "--cost", 0.7, "--seed", 3), "'plan-tuning'", "different settings (seed)", "another folder (--work)"
    )
