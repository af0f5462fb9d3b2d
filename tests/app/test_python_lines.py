import shlex

import pytest
import torch
from PIL import Image, ImageChops
from typer.testing import CliRunner

from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from DeepCache.app.python_lines import command_line, example_prompt, python_lines
from DeepCache.cli import app
from DeepCache.engine.fingerprint import fingerprint, scheduler_settings
from DeepCache.generation import GenerationSettings
from DeepCache.models import MODELS, load_pipeline, set_scheduler
from DeepCache.plan import Plan
from DeepCache.schedule import BranchSchedule, Step, StepSchedule, UniformSchedule

# Some schedulers make an array of a tensor in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPT = example_prompt("shapes")
AWKWARD = "it's \"red\"\\n \\ 'blue'\nand \t green ☃ {x} %s $HOME `ls`"
OTHER = DeepCacheConfig(cache_interval=2, cache_branch_id=1, skip_mode="non-uniform", forecast="none")


@pytest.fixture(scope="module")
def pipe():
    pipe = load_pipeline("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def generated(pipe):
    """Generates an image with the settings themselves."""
    own = pipe.scheduler

    def generated(
        cache, scheduler=None, guidance=MODELS["shapes"].guidance, seed=0, prompt=PROMPT, size=(64, 64), **call
    ):
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

    return generated


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
    assert f"apply_deepcache(pipe, {settings})" in python_lines(request(cache)).splitlines()
    assert command_line(request(cache)).endswith(f" --steps 50 {options}")


def request(cache=None, model="shapes", **values):
    """Settings of the example prompt of the model."""
    values = {"prompts": (example_prompt(model),), "steps": 50} | values
    return GenerationSettings(model=model, cache=cache or DeepCacheConfig(), **values)


def identical(one, other):
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None


@pytest.fixture
def run(tmp_path, monkeypatch, pipe):
    """Runs the lines, and returns the image that they save."""
    monkeypatch.chdir(tmp_path)

    def run(lines):
        names = {}
        exec(compile(lines, "lines.py", "exec"), names)
        assert names["pipe"] is not pipe
        return Image.open(tmp_path / "image.png").convert("RGB")

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
def test_the_lines_generate_the_same_image_as_the_settings(run, generated, cache, others):
    values = {name: value for name, value in others.items() if name != "prompt"}
    lines = python_lines(request(cache, prompts=(others.get("prompt", PROMPT),), steps=4, **values))
    assert identical(run(lines), generated(cache, **others))


def test_the_settings_make_a_difference(generated):
    assert not identical(generated(DeepCacheConfig()), generated(OTHER))


@pytest.mark.parametrize("force", [False, True])
def test_a_plan_is_read_from_its_file(run, generated, plan, tmp_path, force):
    plan.to_file(tmp_path / "plan.json")
    cache = DeepCacheConfig(plan=plan, force_plan=force)
    # The plan replaces the other settings.
    lines = python_lines(request(DeepCacheConfig(5, forecast="none", plan=plan, force_plan=force), steps=4))
    assert ('DeepCacheConfig.from_file("plan.json")' in lines) is not force
    assert ("force_plan=True" in lines) is force
    assert "cache_interval" not in lines
    assert identical(run(lines), generated(cache))


def test_the_lines_have_only_values_that_differ_from_the_defaults():
    assert "DeepCacheConfig()" in python_lines(request())
    assert 'DeepCacheConfig(cache_interval=2, cache_branch_id=1, skip_mode="non-uniform", forecast="none")' in (
        python_lines(request(OTHER))
    )
    assert 'DeepCacheConfig(compile="default")' in python_lines(request(DeepCacheConfig(compile="default")))


def test_without_a_scheduler_or_a_guidance_scale_the_lines_have_none():
    lines = python_lines(request(model="sd15-tiny", steps=30))
    assert lines == (
        "import torch\n"
        "\n"
        "from DeepCache import DeepCacheConfig, apply_deepcache\n"
        "from DeepCache.models import load_pipeline\n"
        "\n"
        'pipe = load_pipeline("sd15-tiny")\n'
        "apply_deepcache(pipe, DeepCacheConfig())\n"
        "image = pipe(\n"
        '    "a photo of an astronaut on a moon",\n'
        "    num_inference_steps=30,\n"
        '    generator=torch.Generator("cpu").manual_seed(0),\n'
        ").images[0]\n"
        'image.save("image.png")\n'
    )


@pytest.mark.parametrize("model", ["owner/name", "./folder", '/a/it\'s "mine"'])
def test_models_of_the_hub_and_folders_are_loaded_by_their_names(run, generated, monkeypatch, model):
    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        return load_pipeline("shapes", device="cpu")

    monkeypatch.setattr("DeepCache.models.load_pipeline", load)
    image = run(python_lines(request(model=model, prompts=(PROMPT,), steps=4, scheduler="ddim")))
    assert asked == [((model,), {})]
    # Without a recommended guidance scale, the pipeline uses its own.
    assert identical(image, generated(DeepCacheConfig(), "ddim", guidance=7.5))


def test_the_command_generates_the_same_image_as_the_settings(generated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = command_line(request(OTHER, steps=4, scheduler="euler"))
    assert identical(command_image(line, tmp_path), generated(OTHER, "euler"))


def test_the_command_reads_a_plan(generated, plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan.to_file("plan.json")
    cache = DeepCacheConfig(plan=plan, force_plan=True)
    line = command_line(request(cache, steps=4))
    assert line == f"deepcache generate '{PROMPT}' --model shapes --steps 4 --plan plan.json --force-plan"
    assert identical(command_image(line, tmp_path), generated(cache))


def command_image(line, folder):
    program, *arguments = shlex.split(line)
    assert program == "deepcache"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (path,) = (folder / "deepcache-output").iterdir()
    return Image.open(path).convert("RGB")


def test_the_command_has_only_values_that_differ_from_the_defaults():
    assert command_line(request()) == f"deepcache generate '{PROMPT}' --model shapes --steps 50"
    cache = DeepCacheConfig(5, 1, "non-uniform", "quadratic", True, compile="default")
    assert command_line(request(cache, "it's/c", steps=25, scheduler="dpm++")) == (
        "deepcache generate 'a photo of an astronaut on a moon' --model 'it'\"'\"'s/c' --scheduler dpm++ --steps 25 "
        "--interval 5 --branch 1 --skip-mode non-uniform --forecast quadratic --guidance-reuse --compile default"
    )


def test_without_caching_only_the_model_is_imported():
    settings = request(DeepCacheConfig(cache_interval=1), steps=20, scheduler="ddim", guidance=7.5)
    lines = python_lines(settings)
    assert "apply_deepcache" not in lines
    assert "DeepCacheConfig" not in lines
    assert "guidance_scale=7.5" in lines
    assert command_line(settings) == (
        f"deepcache generate '{PROMPT}' --model shapes --scheduler ddim --steps 20 --guidance 7.5 --interval 1"
    )


@pytest.mark.parametrize(
    ("model", "guidance", "option"),
    [("shapes", None, ""), ("shapes", 2.0, ""), ("shapes", 7.5, " --guidance 7.5"), ("m", 7.5, " --guidance 7.5")],
)
def test_the_command_has_a_guidance_scale_that_is_not_the_recommended_one(model, guidance, option):
    line = command_line(request(model=model, guidance=guidance))
    assert line.endswith(f"--model {model} --steps 50{option}")


def test_the_command_has_no_option_for_an_explicit_schedule():
    with pytest.raises(ValueError, match="`deepcache generate` has no option for an explicit schedule"):
        command_line(request(DeepCacheConfig(schedule=UniformSchedule(3))))
