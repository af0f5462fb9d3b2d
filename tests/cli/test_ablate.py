"""`deepcache ablate`, from the command line to the result file."""

from __future__ import annotations

from pathlib import Path

import pytest

from DeepCache import DeepCacheConfig
from DeepCache.bench import ablation
from DeepCache.bench.ablation import AblationSettings, grid
from DeepCache.bench.result_file import read_result
from DeepCache.bench.variants import parse_variant
from DeepCache.cli.progress import WorkDisplay
from DeepCache.plan import Plan
from DeepCache.prompts import bundled_prompts, sample_prompts
from DeepCache.schedule import Step, StepSchedule
from tests.bench.small_models import remember_costs, use_model
from tests.cli.helpers import complain_at_the_end as complain
from tests.cli.helpers import killed
from tests.tune.small_pipeline import PROMPTS, small_pipeline

LITTLE = ("ablate", "--steps", 3, "--prompts", "prompts.txt", "--intervals", 2, "--branches", 0, "--samples", 1)

# The values of a cell that depend on other cells.
OF_ALL = {"front": 0, "dominated_by": 0, "over_reuse": 0}


@pytest.fixture(autouse=True)
def _prompts(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:2]), encoding="utf-8")


@pytest.fixture
def small(monkeypatch):
    """A small pipeline instead of the model."""
    use_model(monkeypatch, small_pipeline)


@pytest.fixture
def asked(monkeypatch):
    """The settings of a run that generates nothing."""
    found = {}

    def run(settings, output, device, on_progress):
        found.update(settings=settings, output=output, device=device)
        return {"groups": [], "settings": {"left_out": {}}}

    monkeypatch.setattr(ablation, "run_ablation", run)
    return found


def test_the_shipped_model_is_measured_and_shown(run, monkeypatch):
    remember_costs(monkeypatch)
    Path("prompts.txt").write_text("a red circle\na blue square left of a green star\n", encoding="utf-8")
    monkeypatch.setenv("COLUMNS", "200")
    result = run(*LITTLE, "--forecasts", "none,linear", "--intervals", "2,3")
    assert result.exit_code == 0, result.stderr
    found = read_result(Path("ablation.json"))
    assert found["settings"]["model"] == "shapes"
    (group,) = found["groups"]
    lines = result.stdout.splitlines()
    assert lines[0] == "DDIMScheduler, 3 steps, guidance 2"
    assert lines[-1] == "ablation.json"
    for words in ("right objects", "over reuse", "beaten by", "Pareto front"):
        assert words in result.stdout
    # The most expensive first.
    cells = sorted(group["cells"], key=lambda cell: -cell["mac_share"])
    rows = [line for line in lines if " dB" in line]
    for line, cell in zip(rows, cells, strict=True):
        assert line.startswith(cell["label"])
        figures = line.removeprefix(cell["label"]).split()
        over, beaten = cell["over_reuse"], cell["dominated_by"]
        assert " ".join(figures) == " ".join(
            [
                f"{cell['mac_share']:.1%}",
                f"{cell['psnr']['mean']:.1f} dB",
                f"{cell['psnr']['p5']:.1f}",
                f"{cell['ssim']['mean']:.4f}",
                f"{cell['right']['mean']:.1%}",
                *([f"{over['psnr']['mean']:+.1f} ±{half_of(over['psnr']):.1f}"] if over else []),
                *([f"{beaten['label']}, +{beaten['psnr_gain']:.1f} dB"] if beaten else []),
            ]
        )
    assert [bool(cell["over_reuse"]) for cell in group["cells"]][:4] == [False, True, False, True]
    (original,) = (line.split() for line in lines if line.startswith("no caching"))
    assert original == ["no", "caching", "100.0%", f"{group['reference']['right']['mean']:.1%}"]
    assert Path(group["reference"]["samples"]).is_file()
    for metric, reason in found["settings"]["left_out"].items():
        assert f"{metric.upper()} is omitted: {reason}." in result.stderr.splitlines()
    stages = [line for line in result.stderr.splitlines() if line.endswith("…")]
    assert stages[:3] == [
        "loading shapes …",
        "model, 3 steps, guidance 2: without caching …",
        "model, 3 steps, guidance 2: I=2 B=0 …",
    ]


def half_of(metric):
    low, high = metric["confidence"]
    return (high - low) / 2


def test_each_guidance_scale_has_a_table_without_right_objects_if_there_is_no_judge(run, small):
    result = run(*LITTLE, "--guidance", "2,7.5", "--no-judge", "--forecasts", "none")
    assert result.exit_code == 0, result.stderr
    titles = [line for line in result.stdout.splitlines() if "Scheduler" in line]
    assert titles == ["DDIMScheduler, 3 steps, guidance 2", "DDIMScheduler, 3 steps, guidance 7.5"]
    assert "right" not in result.stdout
    assert "JUDGE is omitted: it was turned off." in result.stderr.splitlines()


def test_every_option_reaches_the_settings(run, asked):
    Path("here").mkdir()
    plan = Plan(StepSchedule((Step(True), Step(False))), {}, {})
    plan.to_file("mine.json")
    result = run(
        *("ablate", "--model", "sd15", "--guidance", "4, 7.5", "--size", "64x128", "--dtype", "bfloat16"),
        *("--device", "cpu"),
        *("--intervals", "2,5", "--branches", "1,0", "--schedules", "uniform,non-uniform", "--forecasts", "linear"),
        *("--guidance-reuse", "both", "-v", "plan=mine.json", "--variant", "I=5 B=0 linear"),
        *("--schedulers", "ddim,pndm", "--steps", "10,20", "--prompts", "prompts.txt", "--seeds", 3, "--seed", 5),
        *("--batch", 2, "--threads", 1),
        *("--clip", "here", "--no-judge", "--samples", 0, "--output", "here/x.json"),
    )
    assert result.exit_code == 0, result.stderr
    listed = grid((2, 5), (1, 0), ("uniform", "non-uniform"), ("linear",), (False, True))
    assert asked["settings"] == AblationSettings(
        prompts=PROMPTS[:2],
        # Settings of the grid are not repeated.
        variants=(*listed, parse_variant("plan=mine.json")),
        model="sd15",
        schedulers=("ddim", "pndm"),
        steps=(10, 20),
        # Two prompts for each.
        seeds=(5, 7, 9),
        guidances=(4.0, 7.5),
        size=(64, 128),
        batch=2,
        dtype="bfloat16",
        samples=0,
        clip="here",
        judge=False,
    )
    assert (asked["output"], asked["device"]) == (Path("here/x.json"), "cpu")


def test_defaults_are_those_of_the_settings(run, asked):
    assert run("ablate").exit_code == 0
    assert asked["settings"] == AblationSettings(
        bundled_prompts("shapes"),
        grid((2, 3, 5, 10), (0, 1, 2), forecasts=dict.fromkeys(("none", "linear", DeepCacheConfig().forecast))),
    )
    assert (asked["output"], asked["device"]) == (Path("ablation.json"), "auto")


def test_count_samples_prompts_with_the_seed(run, asked):
    assert run("ablate", "--count", 3, "--seed", 4, "--guidance-reuse", "on").exit_code == 0
    assert asked["settings"].prompts == sample_prompts(bundled_prompts("shapes"), 3, 4)
    assert asked["settings"].seeds == (4,)
    assert all(variant.config.guidance_reuse for variant in asked["settings"].variants)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", "many"), ["steps must be whole numbers", "'many'"]),
        (("--intervals", ""), ["intervals", "''"]),
        (("--branches", "-1"), ["cache_branch_id", "got -1"]),
        (("--branches", "0;1"), ["branches", "'0;1'"]),
        (("--schedules", "even"), ["'even'", "'non-uniform'"]),
        (("--forecasts", "cubic"), ["'cubic'", "'quadratic'"]),
        (("--forecasts", ""), ["must have at least one value"]),
        (("--guidance-reuse", "yes"), ["--guidance-reuse must be one of off, on, both, got 'yes'"]),
        (("--variant", "I=3 cubic"), ["'cubic'", "linear or quadratic"]),
        (("--prompts", "nowhere.txt"), ["'nowhere.txt'"]),
        (("--count", 0), ["--count must be 1 or more, got 0"]),
        (("--count", 3), ["must be between 1 and 2", "got 3"]),
        (("--seeds", 0), ["--seeds must be 1 or more, got 0"]),
        (("--seed", -1), ["seed must be", "got -1"]),
        (("--size", "big"), ["'big'", "512x768"]),
        (("--guidance", "2;4"), ["guidance must be numbers separated by commas", "'2;4'"]),
        (("--threads", 0), ["--threads must be 1 or more, got 0"]),
        (("--device", "gpu"), ["'gpu'", "cuda"]),
        (("--output", "nowhere/x.json"), ["the folder 'nowhere' does not exist"]),
        (("--output", "."), ["--output must be a file, and '.' is a folder"]),
        (("--nonsense",), ["--nonsense"]),
    ],
)
def test_invalid_options_are_refused_before_a_model_is_loaded(run, monkeypatch, arguments, words):
    def not_loaded(*_, **__):
        raise AssertionError

    monkeypatch.setattr(ablation, "load_pipeline", not_loaded)
    complain(run(*LITTLE, *arguments), *words)
    assert [path.name for path in Path().iterdir()] == ["prompts.txt"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--schedulers", "ddim,eulr"), ["'eulr'", "Did you mean euler or euler-a"]),
        (("--steps", "3,1001"), ["steps must be <= 1000 for this model, got 1001"]),
        (("--branches", "0,9"), ["cache_branch_id must be between 0 and 3", "got 9"]),
        (("--size", "16x20"), ["height must be a multiple of 8", "20"]),
        (("--guidance", 1, "--guidance-reuse", "both"), ["guidance_reuse", "turn it off"]),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused_before_anything_is_generated(run, small, arguments, words):
    result = run(*LITTLE, *arguments)
    complain(result, *words)
    assert len(result.stderr.splitlines()) == 2
    assert [path.name for path in Path().iterdir()] == ["prompts.txt"]


def test_an_unknown_dtype_is_refused(run):
    complain(run(*LITTLE, "--dtype", "int8"), "'int8'", "float16")


def test_the_file_of_another_run_is_refused_and_not_changed(run, small):
    assert run(*LITTLE).exit_code == 0
    before = Path("ablation.json").read_bytes()
    complain(
        run(*LITTLE, "--samples", 2),
        *("'ablation.json' is of another run", "settings.samples is 1 there and 2 now", "another --output"),
    )
    assert Path("ablation.json").read_bytes() == before


def test_square_brackets_in_a_label_are_shown(run, small):
    DeepCacheConfig(3).to_file("[red]mine.json")
    result = run(*LITTLE, "-v", "plan=[red]mine.json")
    assert result.exit_code == 0, result.stderr
    assert "plan [red]mine" in result.stdout


def test_ctrl_c_keeps_the_file_and_the_same_command_resumes(run, small, monkeypatch):
    def interrupt_at_the_second_setting(self, now):
        if now.stage.endswith("I=2 B=0 linear"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(WorkDisplay, "__call__", interrupt_at_the_second_setting)
        result = run(*LITTLE, "--output", "[b]mine.json")
    assert result.exit_code == 130
    assert "Traceback" not in result.output
    assert (result.stdout, result.stderr) == ("", "Stopped. The same command resumes from [b]mine.json.\n")
    before = read_result(Path("[b]mine.json"))
    (cell,) = before["groups"][0]["cells"]
    result = run(*LITTLE, "--output", "[b]mine.json")
    assert result.exit_code == 0, result.stderr
    assert "I=2 B=0 …" not in result.stderr
    after = read_result(Path("[b]mine.json"))
    first = after["groups"][0]["cells"][0]
    assert first | OF_ALL == cell | OF_ALL


def test_kill_9_loses_nothing(run, tmp_path, monkeypatch):
    remember_costs(monkeypatch)
    arguments = [str(argument) for argument in LITTLE]
    arguments += ["--forecasts", "none,linear,quadratic"]
    arguments += ["--threads", "1", "--device", "cpu", "--output", "killed.json"]
    output = tmp_path / "killed.json"
    before = killed(arguments_in(tmp_path, arguments), output, lambda found: bool(found["groups"][0]["cells"]))
    (group,) = before["groups"]
    assert len(group["cells"]) < 4
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    after = read_result(output)
    assert after["groups"][0]["reference"] == group["reference"]
    assert "without caching" not in result.stderr
    for old, new in zip(group["cells"], after["groups"][0]["cells"], strict=False):
        assert old | OF_ALL == new | OF_ALL
    whole = run(*arguments[:-1], "whole.json")
    assert whole.exit_code == 0, whole.stderr
    groups = (after["groups"][0], read_result(tmp_path / "whole.json")["groups"][0])
    for found, expected in zip(*(group["cells"] for group in groups), strict=True):
        for name in ("label", "pattern", "mac_share", "psnr", "ssim", "front", "dominated_by"):
            assert found[name] == expected[name]
    left = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".partial")}
    assert left == {"killed.json", "killed-samples", "prompts.txt", "whole.json", "whole-samples"}


def arguments_in(folder, arguments):
    """The arguments with absolute paths, for a process in another folder."""
    return [str(folder / word) if word in ("prompts.txt", "killed.json") else word for word in arguments]
