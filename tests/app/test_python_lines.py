import shlex

import pytest
import torch
from PIL import Image, ImageChops
from typer.testing import CliRunner

from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from DeepCache.app.python_lines import command_line, python_lines
from DeepCache.cli import app
from DeepCache.engine.fingerprint import fingerprint, scheduler_settings
from DeepCache.models import MODELS, load_pipeline, set_scheduler
from DeepCache.plan import Plan
from DeepCache.schedule import BranchSchedule, Step, StepSchedule, UniformSchedule

# Some schedulers make an array of a tensor in a way that NumPy 2 would rather have otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPT = "a red circle left of a blue square"
AWKWARD = "it's \"red\"\\n \\ 'blue'\nand \t green ☃ {x} %s $HOME `ls`"
OTHER = DeepCacheConfig(cache_interval=2, cache_branch_id=1, skip_mode="non-uniform", forecast="none")


@pytest.fixture(scope="module")
def pipe():
    pipe = load_pipeline("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def draw(pipe):
    """Draws with the settings themselves."""
    own = pipe.scheduler

    def draw(cache, scheduler=None, guidance=MODELS["shapes"].guidance, seed=0, prompt=PROMPT, size=(64, 64), **call):
        pipe.scheduler = own
        if scheduler is not None:
            set_scheduler(pipe, scheduler)
        apply_deepcache(pipe, cache)
        generator = torch.Generator().manual_seed(seed)
        try:
            call |= {"guidance_scale": guidance, "generator": generator, "width": size[0], "height": size[1]}
            return pipe(prompt, num_inference_steps=4, **call).images[0]
        finally:
            remove_deepcache(pipe)

    return draw


@pytest.fixture(scope="module")
def plan(pipe):
    steps = (Step(True), Step(False, 1, "linear"), Step(True), Step(False, 0, "linear", guidance_reuse=True))
    known = fingerprint(pipe.unet), scheduler_settings(pipe.scheduler)
    return Plan(StepSchedule(steps), *known, guidance=(1, 10), tuned={"model": "shapes", "steps": 4})


@pytest.mark.parametrize(
    ("cache", "settings", "options"),
    [
        (
            DeepCacheConfig(between="skipped", forecast="response"),
            'DeepCacheConfig(forecast="response", between="skipped")',
            "--between skipped --forecast response",
        ),
        (
            DeepCacheConfig(8, skip_mode="adaptive", threshold=0.2),
            'DeepCacheConfig(cache_interval=8, skip_mode="adaptive", threshold=0.2)',
            "--interval 8 --skip-mode adaptive --threshold 0.2",
        ),
    ],
)
def test_skipped_steps_and_adaptive_schedules_are_shown(cache, settings, options):
    assert f"apply_deepcache(pipe, {settings})" in python_lines("shapes", cache, 50, None).splitlines()
    assert command_line("shapes", cache, 50, None).endswith(f" --steps 50 {options}")


def identical(one, other):
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None


@pytest.fixture
def run(tmp_path, monkeypatch, pipe):
    """Runs the lines, and returns the picture that they saved."""
    monkeypatch.chdir(tmp_path)

    def run(lines):
        names = {}
        exec(compile(lines, "lines.py", "exec"), names)
        assert names["pipe"] is not pipe
        return Image.open(tmp_path / "picture.png").convert("RGB")

    return run


@pytest.mark.parametrize(
    ("cache", "others"),
    [
        (OTHER, {"scheduler": "euler", "seed": 7}),
        (DeepCacheConfig(guidance_reuse=True, forecast="quadratic"), {"prompt": AWKWARD, "scheduler": "dpm++"}),
        (DeepCacheConfig(schedule=BranchSchedule(UniformSchedule(3), after=(0, 1))), {}),
        (OTHER, {"guidance": 7.5, "negative_prompt": AWKWARD, "size": (72, 48)}),
    ],
)
def test_the_lines_draw_the_same_bits_as_the_settings(run, draw, cache, others):
    scheduler = others.get("scheduler")
    given = {"seed": 0} | {name: value for name, value in others.items() if name != "scheduler"}
    lines = python_lines("shapes", cache, 4, scheduler, **given)
    assert identical(run(lines), draw(cache, **others))


def test_the_settings_make_a_difference_to_the_bits(draw):
    assert not identical(draw(DeepCacheConfig()), draw(OTHER))


@pytest.mark.parametrize("force", [False, True])
def test_a_plan_is_read_from_its_file(run, draw, plan, tmp_path, force):
    plan.to_file(tmp_path / "plan.json")
    cache = DeepCacheConfig(plan=plan, force_plan=force)
    # A plan says them all, so that these are of no account.
    lines = python_lines("shapes", DeepCacheConfig(5, forecast="none", plan=plan, force_plan=force), 4, None, seed=0)
    assert ('DeepCacheConfig.from_file("plan.json")' in lines) is not force
    assert ("force_plan=True" in lines) is force
    assert "cache_interval" not in lines
    assert identical(run(lines), draw(cache))


def test_only_what_differs_from_the_defaults_is_said():
    assert "DeepCacheConfig()" in python_lines("shapes", DeepCacheConfig(), 50, None)
    assert 'DeepCacheConfig(cache_interval=2, cache_branch_id=1, skip_mode="non-uniform", forecast="none")' in (
        python_lines("shapes", OTHER, 50, None)
    )
    assert 'DeepCacheConfig(compile="default")' in python_lines("shapes", DeepCacheConfig(compile="default"), 50, None)


def test_without_a_seed_or_a_scheduler_the_lines_have_none():
    lines = python_lines("sd15-tiny", DeepCacheConfig(), 30, None)
    assert lines == (
        "from DeepCache import DeepCacheConfig, apply_deepcache\n"
        "from DeepCache.models import load_pipeline\n"
        "\n"
        'pipe = load_pipeline("sd15-tiny")\n'
        "apply_deepcache(pipe, DeepCacheConfig())\n"
        "image = pipe(\n"
        '    "a photo of an astronaut on a moon",\n'
        "    num_inference_steps=30,\n"
        ").images[0]\n"
        'image.save("picture.png")\n'
    )


@pytest.mark.parametrize("model", ["owner/name", "./folder", '/a/it\'s "mine"'])
def test_models_of_the_hub_and_folders_are_loaded_with_nothing_but_their_names(run, draw, monkeypatch, model):
    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        return load_pipeline("shapes", device="cpu")

    monkeypatch.setattr("DeepCache.models.load_pipeline", load)
    picture = run(python_lines(model, DeepCacheConfig(), 4, "ddim", seed=0, prompt=PROMPT))
    assert asked == [((model,), {})]
    # Where no guidance scale is recommended, the pipeline takes its own.
    assert identical(picture, draw(DeepCacheConfig(), "ddim", guidance=7.5))


def test_the_command_draws_the_same_bits_as_the_settings(draw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = command_line("shapes", OTHER, 4, "euler")
    assert identical(command_picture(line, tmp_path), draw(OTHER, "euler"))


def test_the_command_reads_a_plan(draw, plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan.to_file("plan.json")
    cache = DeepCacheConfig(plan=plan, force_plan=True)
    line = command_line("shapes", cache, 4, None)
    assert line == f"deepcache generate '{PROMPT}' --model shapes --steps 4 --plan plan.json --force-plan"
    assert identical(command_picture(line, tmp_path), draw(cache))


def command_picture(line, folder):
    program, *arguments = shlex.split(line)
    assert program == "deepcache"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (path,) = (folder / "deepcache-output").iterdir()
    return Image.open(path).convert("RGB")


def test_only_what_differs_from_the_defaults_is_in_the_command():
    assert command_line("shapes", DeepCacheConfig(), 50, None) == (
        f"deepcache generate '{PROMPT}' --model shapes --steps 50"
    )
    cache = DeepCacheConfig(5, 1, "non-uniform", "quadratic", True, compile="default")
    assert command_line("it's/c", cache, 25, "dpm++") == (
        "deepcache generate 'a photo of an astronaut on a moon' --model 'it'\"'\"'s/c' --scheduler dpm++ --steps 25 "
        "--interval 5 --branch 1 --skip-mode non-uniform --forecast quadratic --guidance-reuse --compile default"
    )


def test_without_deepcache_nothing_is_imported_from_it_but_the_model():
    lines = python_lines("shapes", None, 20, "ddim", guidance=7.5)
    assert "apply_deepcache" not in lines
    assert "DeepCacheConfig" not in lines
    assert "guidance_scale=7.5" in lines
    assert command_line("shapes", None, 20, "ddim") == (
        f"deepcache generate '{PROMPT}' --model shapes --scheduler ddim --steps 20 --interval 1"
    )


@pytest.mark.parametrize(
    ("model", "guidance", "option"),
    [("shapes", None, ""), ("shapes", 2.0, ""), ("shapes", 7.5, " --guidance 7.5"), ("m", 7.5, " --guidance 7.5")],
)
def test_the_command_has_the_guidance_that_is_not_the_recommended_one(model, guidance, option):
    line = command_line(model, DeepCacheConfig(), 50, None, guidance=guidance)
    assert line.endswith(f"--model {model} --steps 50{option}")


def test_a_schedule_is_more_than_the_command_takes():
    with pytest.raises(ValueError, match="`deepcache generate` takes no schedule of its own"):
        command_line("shapes", DeepCacheConfig(schedule=UniformSchedule(3)), 50, None)
