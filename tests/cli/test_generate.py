"""`deepcache generate`, from the command line to the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch._dynamo.testing import CompileCounter

from DeepCache import DeepCacheConfig, DeepCacheSDHelper
from DeepCache.engine.fingerprint import fingerprint, scheduler_settings
from DeepCache.models import MODELS, load_pipeline
from DeepCache.plan import Plan
from DeepCache.schedule import Step, StepSchedule
from tests.cli.helpers import complain, settings_of, written
from tests.engine.backend import use_backend
from tests.models.small_vaes import save_tiny

PROMPT = "a red circle left of a blue square"


@pytest.fixture(scope="module")
def plain():
    """An image of the bundled model from the plain pipeline."""
    pipe = load_pipeline("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)

    def generate(prompt=PROMPT, steps=3, seed=0, **call):
        call = {"guidance_scale": MODELS["shapes"].guidance} | call
        generator = torch.Generator().manual_seed(seed)
        return pipe(prompt, num_inference_steps=steps, generator=generator, **call).images[0]

    generate.pipe = pipe
    return generate


@pytest.fixture
def plan(plain, tmp_path):
    """A plan for the bundled model with four steps, in the file plan.json."""
    reused = Step(False, 0, "linear", guidance_reuse=True)
    schedule = StepSchedule((Step(True), Step(True), reused, Step(False, 1, "linear")))
    plan = Plan(
        schedule,
        fingerprint(plain.pipe.unet),
        scheduler_settings(plain.pipe.scheduler),
        tuned={"model": "shapes", "steps": 4},
        guidance=(2, 2),
    )
    plan.to_file(tmp_path / "plan.json")
    return plan


def read(path):
    with Image.open(path) as image:
        image.load()
        return image


def pixels(image):
    image = read(image) if isinstance(image, Path) else image
    return image.size, image.convert("RGB").tobytes()


def generated_with(plain, steps=4, **settings):
    """The image of the pipeline with DeepCache at these settings."""
    with DeepCacheSDHelper(plain.pipe) as helper:
        helper.set_params(**settings)
        return plain(steps=steps)


def refused(result, *words):
    complain(result, *words)
    assert not written()


def test_the_bundled_model_generates_an_image(run):
    result = run("generate", PROMPT, "--steps", 4)
    assert result.exit_code == 0, result.stderr
    (path,) = written()
    assert path.name == "0001-a-red-circle-left-of-a-blue-square-seed0.png"
    assert read(path).size == (64, 64)
    assert str(path) in result.stdout
    assert "F··F" in result.stderr
    assert not list(path.parent.glob(".*"))


def test_the_same_seed_gives_the_same_image_in_a_new_file(run):
    for _ in range(2):
        assert run("generate", PROMPT, "--steps", 4, "--seed", 7).exit_code == 0
    first, second = written()
    assert pixels(first) == pixels(second)
    assert (first.name[:4], second.name[:4]) == ("0001", "0002")


@pytest.mark.parametrize(("interval", "identical"), [(1, True), (3, False)])
def test_interval_1_is_the_plain_pipeline(run, plain, interval, identical):
    assert run("generate", PROMPT, "--steps", 4, "--interval", interval).exit_code == 0
    assert (pixels(written()[0]) == pixels(plain(steps=4))) is identical


@pytest.mark.parametrize("option", ["--negative-prompt", "--negative"])
def test_every_option_reaches_the_pipeline(run, plain, option):
    from diffusers import EulerDiscreteScheduler

    result = run(
        *("generate", PROMPT, option, "a star", "--steps", 3, "--guidance", 2.5, "--size", "72x64"),
        *("--seed", 5, "--interval", 1, "--scheduler", "euler", "--dtype", "bfloat16", "--device", "cpu", "-o", "here"),
    )
    assert result.exit_code == 0, result.stderr
    pipe = load_pipeline("shapes", device="cpu", dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    expected = pipe(
        PROMPT,
        negative_prompt="a star",
        num_inference_steps=3,
        guidance_scale=2.5,
        width=72,
        height=64,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    assert pixels(written("here")[0]) == pixels(expected)


def test_a_negative_prompt_without_guidance_is_refused(run):
    result = run("generate", PROMPT, "--steps", 3, "--negative-prompt", "a star", "--guidance", 1)
    refused(result, "a negative prompt requires a guidance scale above 1, got 1. Remove the negative prompt")


def test_compare_writes_both_images_and_a_comparison(run, plain):
    result = run("generate", PROMPT, "--steps", 4, "--compare")
    assert result.exit_code == 0, result.stderr
    folder = Path("deepcache-output")
    stem = "0001-a-red-circle-left-of-a-blue-square-seed0"
    assert {path.name for path in written()} == {f"{stem}{end}.png" for end in ("", "-original", "-compare")}
    assert pixels(folder / f"{stem}-original.png") == pixels(plain(steps=4))
    sheet = read(folder / f"{stem}-compare.png")
    assert sheet.width > 2 * 320
    assert sheet.height > 320
    for word in ("speed-up", "full", "shallow", "MACs", "kept", "PSNR", "SSIM", "dB", "×"):
        assert word in result.stdout
    for path in written():
        assert str(path) in result.stdout


def test_compare_does_not_change_the_image(run):
    assert run("generate", PROMPT, "--steps", 4, "-o", "alone").exit_code == 0
    assert run("generate", PROMPT, "--steps", 4, "-o", "both", "--compare").exit_code == 0
    (alone,) = written("alone")
    assert pixels(alone) == pixels(Path("both") / alone.name)


def test_compare_at_interval_1_is_identical(run):
    result = run("generate", PROMPT, "--steps", 2, "--interval", 1, "--compare")
    assert "identical" in result.stdout
    assert "100.0%" in result.stdout


def test_each_image_has_its_own_seed_and_can_be_regenerated_alone(run, plain):
    Path("prompts.txt").write_text(f"# two\n\n  {PROMPT} \na green star\n", encoding="utf-8")
    result = run("generate", "--prompts", "prompts.txt", "--images", 2, "--seed", 10, "--steps", 2, "-i", 1)
    assert result.exit_code == 0, result.stderr
    files = written()
    assert [path.stem.rsplit("seed")[1] for path in files] == ["10", "11", "12", "13"]
    assert pixels(files[3]) == pixels(plain("a green star", steps=2, seed=13))
    assert "mean" in result.stdout


def test_columns_of_a_prompt_file_override_options(run, plain):
    lines = ["prompt,seed,negative_prompt,size", f"{PROMPT},7,a star,72x64", "a green star,,,"]
    Path("prompts.csv").write_text("\n".join(lines), encoding="utf-8")
    result = run("generate", "--prompts", "prompts.csv", "--seed", 20, "--steps", 2, "-i", 1, "--negative", "a ring")
    assert result.exit_code == 0, result.stderr
    first, second = written()
    assert pixels(first) == pixels(plain(steps=2, seed=7, negative_prompt="a star", width=72, height=64))
    assert pixels(second) == pixels(plain("a green star", steps=2, seed=21, negative_prompt="a ring"))
    info = read(first).info
    assert (info["seed"], info["negative_prompt"]) == ("7", "a star")
    assert (settings_of(first)["width"], settings_of(first)["height"]) == (72, 64)


def test_an_invalid_row_is_refused_before_anything_is_generated(run):
    Path("prompts.csv").write_text("prompt,size\nx,64\ny,65\n", encoding="utf-8")
    refused(run("generate", "--prompts", "prompts.csv", "--steps", 2), "width must be a multiple of 8", "65")


def test_help_lists_the_columns(run):
    shown = " ".join(run("generate", "--help").stdout.replace("│", " ").split())
    assert "seed, negative_prompt, and size (or width and height)" in shown


@pytest.mark.parametrize("more", [(), ("--compare",)], ids=["alone", "compare"])
def test_an_image_of_nan_is_an_error_and_is_not_written(run, more):
    result = run("generate", PROMPT, "--steps", 3, "--guidance", 1e38, *more)
    refused(result, "NaN", "float32", "bfloat16", "the VAE in float32", "'a red circle left of a blue square'")


@pytest.mark.filterwarnings("default:the prompt:UserWarning")
def test_a_long_prompt_is_shortened_in_the_output(run):
    result = run("generate", "a red circle " * 1000, "--steps", 2, "--compare")
    assert result.exit_code == 0, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "tokens" in line]
    assert line.startswith("deepcache: warning: the prompt 'a red circle")
    assert len(result.output) < 3000
    assert read(written()[0]).height < 1000
    refused = run("generate", "x", "--negative", "a red circle " * 1000, "--guidance", 1e38, "--steps", 2)
    assert len(refused.stderr) < 1000


def test_the_image_contains_prompt_seed_and_settings(run):
    arguments = ("--negative", "a ring", "--seed", 3, "--steps", 2, "-i", 2, "-b", 1, "--scheduler", "ddim")
    assert run("generate", "ein roter Kreis ★", *arguments).exit_code == 0
    info = read(written()[0]).info
    assert (info["prompt"], info["negative_prompt"], info["seed"]) == ("ein roter Kreis ★", "a ring", "3")
    settings = json.loads(info["settings"])
    assert settings["model"] == "shapes"
    assert settings["scheduler"] == "DDIMScheduler"
    assert (settings["steps"], settings["width"], settings["height"]) == (2, 64, 64)
    assert settings["guidance"] == MODELS["shapes"].guidance
    assert (settings["cache_interval"], settings["cache_branch_id"]) == (2, 1)
    assert set(settings["versions"]) == {"DeepCache", "diffusers", "torch"}


def test_a_saved_folder_is_a_model(run, plain, tmp_path):
    load_pipeline("shapes", device="cpu").save_pretrained(tmp_path / "model")
    assert run("generate", PROMPT, "-m", tmp_path / "model", "--steps", 2, "-i", 1, "--guidance", 2).exit_code == 0
    assert pixels(written()[0]) == pixels(plain(steps=2, guidance_scale=2))


def test_another_vae_decodes_and_is_in_the_metadata(run, plain, tmp_path):
    assert run("generate", PROMPT, "--steps", 2, "-i", 1, "-o", "own").exit_code == 0
    saved = save_tiny(tmp_path / "vae")
    result = run("generate", PROMPT, "--steps", 2, "-i", 1, "--vae", "vae", "--compare")
    assert result.exit_code == 0, result.stderr
    own = plain.pipe.vae
    plain.pipe.register_modules(vae=saved)
    expected = plain(steps=2)
    plain.pipe.register_modules(vae=own)
    _, original, path = written()
    assert pixels(path) == pixels(original) == pixels(expected) != pixels(written("own")[0])
    assert settings_of(path)["vae"] == settings_of(original)["vae"] == "vae"
    assert settings_of(written("own")[0])["vae"] is None


@pytest.mark.parametrize(
    ("vae", "words"),
    [
        ("", ["the VAE has no name"]),
        ("nowhere", ["there is no VAE folder 'nowhere'", "owner/name on the hub"]),
        ("model/unet", ["'model/unet' is a UNet2DConditionModel, not a VAE"]),
        ("wide", ["'wide' does not fit", "16 channels", "the model 4"]),
        ("deep", ["'deep' does not fit", "8 times", "the model 4 times"]),
    ],
)
def test_a_vae_that_does_not_fit_is_refused(run, plain, tmp_path, vae, words):
    plain.pipe.save_pretrained(tmp_path / "model")
    save_tiny(tmp_path / "wide", latent_channels=16)
    save_tiny(tmp_path / "deep", levels=4)
    refused(run("generate", PROMPT, "--vae", vae), *words)


def test_a_second_order_scheduler_shows_all_steps(run):
    result = run("generate", PROMPT, "--steps", 3, "--scheduler", "Heun")
    assert result.exit_code == 0
    assert "F··F·" in result.stderr


def test_ctrl_c_keeps_finished_images(run, monkeypatch):
    from DeepCache.cli.progress import StepDisplay

    shown = StepDisplay.__call__

    def interrupt_in_the_second_image(self, done):
        shown(self, done)
        if done.image == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(StepDisplay, "__call__", interrupt_in_the_second_image)
    result = run("generate", PROMPT, "--images", 3, "--steps", 2)
    assert result.exit_code == 130
    assert "Traceback" not in result.output
    assert "1 of 3" in result.stderr
    (path,) = written()
    assert str(path) in result.stdout
    assert not list(path.parent.glob(".*"))


def test_a_linear_forecast_is_another_image_with_its_metadata(run, plain):
    for forecast in ("none", "linear"):
        result = run("generate", PROMPT, "--steps", 4, "-i", 2, "--forecast", forecast, "-o", forecast)
        assert result.exit_code == 0, result.stderr
        (path,) = written(forecast)
        assert settings_of(path)["forecast"] == forecast
        assert pixels(path) == pixels(generated_with(plain, cache_interval=2, forecast=forecast))
    assert pixels(written("none")[0]) != pixels(written("linear")[0])


def test_guidance_reuse_is_another_image_with_its_metadata(run, plain):
    result = run("generate", PROMPT, "--steps", 4, "-i", 2, "-f", "linear", "--guidance-reuse")
    assert result.exit_code == 0, result.stderr
    (path,) = written()
    assert settings_of(path)["guidance_reuse"] is True
    assert pixels(path) == pixels(generated_with(plain, cache_interval=2, forecast="linear", guidance_reuse=True))
    assert pixels(path) != pixels(generated_with(plain, cache_interval=2, forecast="linear"))


@pytest.mark.parametrize(
    ("options", "settings", "pattern"),
    [
        (("-f", "response", "--between", "skipped"), {"forecast": "response", "between": "skipped"}, "F--F--"),
        (("--between", "alternating"), {"between": "alternating"}, "F.-F.-"),
        (
            ("--skip-mode", "adaptive", "--threshold", 1e6, "--between", "skipped"),
            {"skip_mode": "adaptive", "threshold": 1e6, "between": "skipped"},
            "FFF--F",
        ),
    ],
    ids=["skipped", "alternating", "adaptive"],
)
def test_skipped_steps_and_adaptive_schedules(run, plain, options, settings, pattern):
    result = run("generate", PROMPT, "--steps", 6, *options)
    assert result.exit_code == 0, result.stderr
    assert f"6 steps {pattern.replace('.', '·')}" in result.stderr
    header = result.stdout.splitlines()[0].split()
    assert header[2:5] == ["full", "shallow", "skipped"]
    (path,) = written()
    noted_values = settings_of(path)
    assert {name: noted_values[name] for name in settings} == settings
    settings = {"cache_interval": 3, "forecast": "limited"} | settings
    assert pixels(path) == pixels(generated_with(plain, steps=6, **settings))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--forecast", "response"), ["'response' is for skipped steps", "'skipped'"]),
        (("--between", "nothing"), ["between must be one of 'shallow', 'skipped', 'alternating'", "'nothing'"]),
        (("--skip-mode", "adaptive", "--threshold", 0), ["threshold must be above 0, got 0"]),
        (("--between", "skipped", "--guidance-reuse"), ["guidance_reuse", "'shallow'"]),
        (("--threshold", 0.2), ["--threshold requires --skip-mode adaptive, got 0.2 with --skip-mode uniform"]),
        (("--threshold", 0.2, "--skip-mode", "non-uniform"), ["got 0.2 with --skip-mode non-uniform"]),
        (("--force-plan",), ["--force-plan requires --plan FILE"]),
        (("--forecast", "cubic"), ["forecast", "'linear'", "'cubic'"]),
        (("--skip-mode", "random"), ["skip_mode", "'non-uniform'", "'random'"]),
        (("--compile", "fast"), ["compile", "'reduce-overhead'", "'fast'"]),
    ],
)
def test_invalid_settings_of_deepcache_are_refused(run, options, words):
    refused(run("generate", PROMPT, *options), *words)


@pytest.mark.filterwarnings("default:.* has no native support on this CPU:UserWarning")
def test_a_dtype_that_the_cpu_emulates_is_a_warning_in_one_line(run, monkeypatch):
    monkeypatch.setattr("DeepCache.models.device.cpu_support", lambda dtype: "emulated")
    result = run("generate", PROMPT, "--steps", 2, "--dtype", "bfloat16", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "bfloat16" in line]
    assert line == (
        "deepcache: warning: bfloat16 has no native support on this CPU: convolutions are many times slower than in "
        "float32. Use float32."
    )


@pytest.mark.filterwarnings("default:the plan does not record:UserWarning")
def test_a_plan_without_guidance_scales_is_a_warning_in_one_line(run, plan, tmp_path):
    values = plan.to_dict() | {"format": "DeepCache plan 1"}
    del values["guidance"]
    (tmp_path / "old.json").write_text(json.dumps(values), encoding="utf-8")
    result = run("generate", PROMPT, "--steps", 4, "--plan", "old.json")
    assert result.exit_code == 0, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "guidance" in line]
    assert line.startswith("deepcache: warning: the plan does not record the guidance scales it was tuned at")
    assert "UserWarning" not in result.stderr


@pytest.mark.parametrize("more", [(), ("--compare",)], ids=["alone", "compare"])
def test_guidance_reuse_without_guidance_is_refused_before_anything_is_generated(run, more):
    refused(run("generate", PROMPT, "--steps", 3, "--guidance", 1, "--guidance-reuse", *more), "guidance_reuse", "off")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_compiled_images_and_originals_are_compiled_once(run, monkeypatch):
    graphs = use_backend(monkeypatch, CompileCounter())
    torch.compiler.reset()
    result = run("generate", PROMPT, "--steps", "4", "--images", "2", "--compare", "--compile", "default")
    assert "compile the U-Net, which takes a minute or more" in result.stderr
    # The original, and full and shallow steps with DeepCache.
    assert graphs.frame_count == 3
    torch.compiler.reset()
    run("generate", PROMPT, "--steps", "4", "--images", "2", "--compare", "--output", "uncompiled")
    compiled, uncompiled = written(), written("uncompiled")
    assert len(compiled) == 6
    both = [path for path in compiled if not path.stem.endswith("-compare")]
    assert [pixels(path) for path in both] == [pixels(path.parent.parent / "uncompiled" / path.name) for path in both]
    assert {settings_of(path)["compile"] for path in both} == {"default"}
    assert {settings_of(path)["compile"] for path in uncompiled if not path.stem.endswith("-compare")} == {"none"}


def test_full_steps_can_be_non_uniform(run):
    result = run("generate", PROMPT, "--steps", 9, "--skip-mode", "non-uniform")
    assert result.exit_code == 0, result.stderr
    pattern = DeepCacheConfig(3, skip_mode="non-uniform").effective_schedule.pattern(9)
    assert pattern != "F..F..F.."
    assert pattern.replace(".", "·") in result.stderr
    assert settings_of(written()[0])["skip_mode"] == "non-uniform"


def test_a_plan_is_used_and_is_in_the_metadata(run, plain, plan):
    result = run("generate", PROMPT, "--steps", 4, "--plan", "plan.json")
    assert result.exit_code == 0, result.stderr
    (path,) = written()
    assert pixels(path) == pixels(generated_with(plain, plan=plan))
    assert Plan.from_dict(settings_of(path)["plan"]) == plan


def test_a_plan_is_compared_with_the_original(run, plain, plan):
    result = run("generate", PROMPT, "--steps", 4, "--plan", "plan.json", "--compare", "--images", 2)
    assert result.exit_code == 0, result.stderr
    sheet, original, first, *second = written()
    assert len(second) == 3
    assert sheet.name.endswith("compare.png")
    assert pixels(original) == pixels(plain(steps=4))
    assert pixels(first) == pixels(generated_with(plain, plan=plan))
    assert "FF01" in result.stderr


@pytest.mark.parametrize("more", [(), ("--compare",)], ids=["alone", "compare"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--steps", 3), ["for 4 steps, got 3", "--force-plan"]),
        (("--steps", 5), ["for 4 steps, got 5", "--force-plan"]),
        (("--steps", 4, "--guidance", 7.5), ["the guidance scale is 7.5 and not 2", "--force-plan"]),
    ],
)
def test_a_plan_for_other_settings_is_refused_before_anything_is_generated(run, plan, options, words, more):
    refused(run("generate", PROMPT, "--plan", "plan.json", *options, *more), *words)


@pytest.mark.parametrize("more", [(), ("--compare",)], ids=["alone", "compare"])
@pytest.mark.parametrize("steps", [1, 8])
def test_a_forced_plan_is_stretched_to_another_number_of_steps(run, plain, plan, steps, more):
    result = run("generate", PROMPT, "--steps", steps, "--plan", "plan.json", "--force-plan", *more)
    assert result.exit_code == 0, result.stderr
    path = written()[-1]
    assert pixels(path) == pixels(generated_with(plain, steps, schedule=plan.schedule.stretched(steps)))
    assert settings_of(path)["force_plan"] is True


def test_a_plan_for_another_scheduler_is_refused_unless_it_is_forced(run, plan):
    arguments = ("generate", PROMPT, "--steps", 4, "--plan", "plan.json", "--scheduler", "euler")
    refused(run(*arguments, "--compare"), "the scheduler is a EulerDiscreteScheduler and not a DDIMScheduler")
    result = run(*arguments, "--force-plan")
    assert result.exit_code == 0, result.stderr
    assert "FF01" in result.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["'plan.json'"]),
        ("", ["'plan.json' does not contain a plan"]),
        ("{}", ["'plan.json' does not contain a plan", "'format'"]),
        ('{"cache_interval": 3}', ["'plan.json' does not contain a plan", "'format'"]),
    ],
    ids=["absent", "empty", "other JSON", "settings"],
)
def test_a_file_that_is_not_a_plan_is_refused(run, content, words):
    if content is not None:
        Path("plan.json").write_text(content, encoding="utf-8")
    refused(run("generate", PROMPT, "--plan", "plan.json"), *words)
