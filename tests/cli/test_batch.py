"""`deepcache batch`, from the command line to the files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet
import pytest

from DeepCache.batch.folder import BatchFolder
from tests.cli.helpers import DEEPCACHE
from tests.cli.helpers import complain_at_the_end as complain
from tests.models.small_adapters import save_embedding, save_lora
from tests.models.small_vaes import save_kl, save_tiny

QUICK = ("--steps", 3)


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\na blue star\na green ring\n", encoding="utf-8")
    return "prompts.txt"


def images(folder="out"):
    return {path.name: path.read_bytes() for path in Path(folder).glob("pictures/*/*.png")}


def manifest(folder="out"):
    return pyarrow.parquet.read_table(Path(folder) / "manifest.parquet").to_pylist()


def test_every_row_becomes_an_image(run, prompts):
    result = run("batch", prompts, "--output", "out", *QUICK)
    assert result.exit_code == 0, result.stderr
    assert "3 of 3 images are in out; this run took 0:0" in result.stdout
    assert len(result.stdout.splitlines()) == 1
    assert [row["prompt"] for row in manifest()] == ["a red circle", "a blue star", "a green ring"]
    assert len(images()) == 3
    assert {row["path"] for row in manifest()} == {f"pictures/{name[:2]}/{name}" for name in images()}
    stages = [line.split(" …")[0] for line in result.stderr.splitlines()]
    assert stages[:4] == ["reading the prompts", "checking existing images", "loading the model", "generating"]
    assert "writing the manifest: 3 of 3" in stages[-1]


def test_the_same_command_again_generates_nothing(run, prompts):
    run("batch", prompts, "-o", "out", *QUICK)
    before = images()
    result = run("batch", prompts, "-o", "out", *QUICK)
    assert result.exit_code == 0
    assert "3 of 3 images" in result.stdout
    assert "loading the model" not in result.stderr
    assert images() == before


def test_options_reach_the_images(run, prompts):
    result = run(
        *("batch", prompts, "-o", "out", "--negative", "a star", "--seed", 5, "--steps", 4, "--guidance", 2.5),
        *("--size", "72x64", "--scheduler", "ddpm", "--dtype", "bfloat16", "--device", "cpu", "-i", 2, "-b", 1),
        *("--skip-mode", "non-uniform", "-f", "none", "--batch", 3, "--threads", 1),
    )
    assert result.exit_code == 0, result.stderr
    for row in manifest():
        assert (row["negative_prompt"], row["width"], row["height"], row["batch"]) == ("a star", 72, 64, 3)
        settings = json.loads(row["settings"])
        assert (settings["steps"], settings["guidance"], settings["seed"]) == (4, 2.5, 5)
        assert (settings["scheduler"]["class"], settings["dtype"]) == ("DDPMScheduler", "bfloat16")
        deepcache = settings["deepcache"]
        assert (deepcache["cache_interval"], deepcache["cache_branch_id"]) == (2, 1)
        assert (deepcache["skip_mode"], deepcache["forecast"]) == ("non-uniform", "none")


def test_failed_rows_give_status_1_and_are_retried_with_the_option(run):
    Path("rows.jsonl").write_text('{"prompt": "a ring"}\n{"prompt": ""}\n{"prompt": "x", "size": 65}\n')
    result = run("batch", "rows.jsonl", "-o", "out", *QUICK)
    assert result.exit_code == 1, result.stderr
    assert "1 of 3 images are in out" in result.stdout
    assert "2 rows failed; see the errors in manifest.parquet. --retry-errors retries them" in result.stdout
    assert [bool(row["error"]) for row in manifest()] == [False, True, True]
    result = run("batch", "rows.jsonl", "-o", "out", *QUICK)
    assert result.exit_code == 1
    assert "loading the model" not in result.stderr
    result = run("batch", "rows.jsonl", "-o", "out", "--retry-errors", *QUICK)
    assert result.exit_code == 1
    assert "loading the model" in result.stderr
    assert len(images()) == 1


def test_other_settings_are_refused(run, prompts):
    run("batch", prompts, "-o", "out", *QUICK)
    before = images(), manifest()
    complain(run("batch", prompts, "-o", "out", "--steps", 4), "'out'", "steps was 3 and is 4 now", "another folder")
    complain(run("batch", prompts, "-o", "out", *QUICK, "-i", 5), "cache_interval was 3 and is 5 now")
    complain(run("batch", prompts, "-o", "out", *QUICK, "--scheduler", "ddpm"), "DDIMScheduler", "DDPMScheduler")
    assert (images(), manifest()) == before


def test_another_vae_is_refused(run, prompts, tmp_path):
    save_tiny(tmp_path / "tiny")
    save_kl(tmp_path / "other")
    assert run("batch", prompts, "-o", "out", *QUICK, "--vae", "tiny").exit_code == 0
    before = images()
    assert json.loads((tmp_path / "out" / "job.json").read_text(encoding="utf-8"))["asked"]["vae"] == "tiny"
    complain(run("batch", prompts, "-o", "out", *QUICK), "'out'", "vae was 'tiny' and is None now")
    complain(run("batch", prompts, "-o", "out", *QUICK, "--vae", "other"), "vae was 'tiny' and is 'other' now")
    # Another spelling of the same path.
    assert run("batch", prompts, "-o", "out", *QUICK, "--vae", "./tiny").exit_code == 0
    assert images() == before
    run("batch", prompts, "-o", "own", *QUICK)
    assert images("own").keys() == before.keys()
    assert images("own") != before
    complain(run("batch", prompts, "-o", "own", *QUICK, "--vae", "tiny"), "vae was None and is 'tiny' now")


def test_another_lora_or_embedding_is_refused(run, prompts, tmp_path):
    first, second = (save_lora(tmp_path / f"lora{seed}", seed) for seed in (0, 1))
    save_embedding(tmp_path / "red.safetensors")
    options = ("batch", prompts, *QUICK, "--lora", f"{first}:0.5", "--embedding", "red.safetensors")
    assert run(*options, "-o", "out").exit_code == 0
    before = images()
    asked = json.loads((tmp_path / "out" / "job.json").read_text(encoding="utf-8"))["asked"]
    assert (asked["loras"], asked["embeddings"]) == ([[str(first), 0.5]], ["red.safetensors"])
    # A job without them resumes without them, and they are not in job.json.
    assert run("batch", prompts, *QUICK, "-o", "plain").exit_code == 0
    job = json.loads((tmp_path / "plain" / "job.json").read_text(encoding="utf-8"))
    assert not {"loras", "embeddings", "vae_tiling"} & {*job["settings"], *job["asked"], *job["loaded"]}
    assert run("batch", prompts, *QUICK, "-o", "plain").exit_code == 0
    assert images("plain").keys() == before.keys()
    assert images("plain") != before
    complain(run("batch", prompts, "-o", "out", *QUICK), "'out'", "loras was", "embeddings was", "and is None now")
    complain(run("batch", prompts, "-o", "plain", *QUICK, "--lora", first), "loras was None and is")
    complain(run(*options[:-3], second, *options[-2:], "-o", "out"), "requested: loras was [['")
    assert run(*options, "-o", "out").exit_code == 0
    assert images() == before


@pytest.mark.parametrize(
    ("options", "forecast"), [((), "limited"), (("--guidance", 7.5, "--scheduler", "dpm++"), "response")]
)
def test_a_preset_depends_on_the_guidance_scale_and_the_scheduler(run, prompts, options, forecast):
    result = run("batch", prompts, "-o", "out", *QUICK, *options, "--preset", "balanced")
    assert result.exit_code == 0, result.stderr
    words = ("--interval", "3", "--between", "skipped", "--forecast", forecast)
    assert f"Preset balanced: {' '.join(words)}" in result.stderr
    # The same settings without the preset resume.
    assert run("batch", prompts, "-o", "out", *QUICK, *options, *words).exit_code == 0
    if options:
        complain(run("batch", prompts, "-o", "out", *QUICK, "--preset", "balanced"), "forecast was 'response'")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--workers", 2), ["--workers", "--engine ray"]),
        (("--most-workers", 2), ["--most-workers", "--engine ray"]),
        (("--gpus-per-worker", 1), ["--gpus-per-worker", "--engine ray"]),
        (("--ray-address", "auto"), ["--ray-address", "--engine ray"]),
        (("--engine", "spark"), ["--engine must be local or ray, got 'spark'"]),
        (("--engine", "ray", "--workers", 0), ["workers must be >= 1", "0"]),
        (("--engine", "ray", "--workers", 2, "--most-workers", 1), ["most_workers must be >= workers (2)", "1"]),
        (("--batch", 0), ["batch must be >= 1", "0"]),
        (("--threads", 0), ["threads must be >= 1", "0"]),
        (("--steps", 0), ["steps", "0"]),
        (("--seed", -1), ["seed", "-1"]),
        (("--size", "big"), ["'big'", "512x768"]),
        (("--guidance", "nan"), ["guidance", "nan"]),
        (("--interval", 0), ["cache_interval", "0"]),
        (("--compile", "fast"), ["'fast'"]),
        (("--force-plan",), ["--force-plan", "--plan"]),
        (("--plan", "nowhere.json"), ["nowhere.json"]),
        (("--nonsense",), ["--nonsense"]),
        (("--preset", "best"), ["preset must be one of faithful, balanced, fast, got 'best'"]),
        (("--preset", "fast", "--interval", 4), ["--preset cannot be combined with --interval"]),
        (("--lora", ":0.5"), ["a LoRA must be PATH or PATH:SCALE, got ':0.5'"]),
        (("--offload", "disk"), ["offload must be one of model, sequential, group, got 'disk'"]),
    ],
)
def test_invalid_options_are_refused_and_create_no_folder(run, prompts, arguments, words):
    complain(run("batch", prompts, "-o", "out", *arguments), *words)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "shaps"), ["'shaps'"]),
        (("--scheduler", "eulr"), ["'eulr'", "euler"]),
        (("--size", "65"), ["multiple of 8"]),
        (("--dtype", "int8"), ["'int8'"]),
        (("--branch", 99), ["cache_branch_id", "99"]),
        (("--vae", "nowhere"), ["no VAE folder 'nowhere'"]),
        (("--lora", "./nowhere"), ["there is no LoRA './nowhere'. Check the path"]),
        (("--embedding", "./nowhere"), ["there is no embedding './nowhere'. Check the path"]),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused_and_generate_nothing(run, prompts, arguments, words):
    complain(run("batch", prompts, "-o", "out", *QUICK, *arguments), *words)
    assert not images()
    # The folder can still be used with other settings.
    assert run("batch", prompts, "-o", "out", *QUICK).exit_code == 0


def test_missing_prompts_are_refused_and_create_no_folder(run):
    complain(run("batch", "nowhere.txt", "-o", "out"), "'nowhere.txt'")
    Path("empty.txt").write_text("# nothing\n")
    complain(run("batch", "empty.txt", "-o", "out"), "'empty.txt'", "contains no prompt")
    complain(run("batch", ".", "-o", "out"), "cannot read")
    assert not Path("out").exists()


def test_an_output_that_is_not_a_folder_is_refused(run, prompts):
    complain(run("batch", prompts, "-o", prompts), "cannot create the folder 'prompts.txt'")
    complain(run("batch", prompts, "-o", "nowhere://x"), "nowhere")
    complain(run("batch", prompts), "--output")


def test_a_full_disk_is_reported_in_one_line(run, prompts, monkeypatch):
    write = BatchFolder.write

    def full(self, name, data):
        if name.startswith("pictures"):
            raise OSError(f"cannot write {name!r}: No space left on device")
        write(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(BatchFolder, "write", full)
        complain(run("batch", prompts, "-o", "out", *QUICK), "No space left on device")
    assert run("batch", prompts, "-o", "out", *QUICK).exit_code == 0
    assert len(images()) == 3


def test_a_failed_worker_is_reported_in_one_line(run, prompts, monkeypatch):
    from DeepCache.batch.worker import PipelineWorker

    def broken(*_):
        raise RuntimeError("8 consecutive rows failed")

    monkeypatch.setattr(PipelineWorker, "generate", broken)
    complain(run("batch", prompts, "-o", "out", *QUICK), "8 consecutive rows failed")


def test_the_second_ctrl_c_stops_at_once_and_keeps_finished_images(run, prompts, monkeypatch):
    from DeepCache.batch.worker import PipelineWorker

    generate = PipelineWorker.generate

    def interrupted(self, rows):
        if rows[0].prompt == "a blue star":
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return generate(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(PipelineWorker, "generate", interrupted)
        result = run("batch", prompts, "-o", "out", *QUICK)
    assert result.exit_code == 130
    assert "Stopped. Finished images are kept" in result.stderr
    assert len(images()) == len(manifest()) == 1
    assert run("batch", prompts, "-o", "out", *QUICK).exit_code == 0
    assert len(images()) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_current_batch(run, prompts, monkeypatch, number):
    from DeepCache.batch.worker import PipelineWorker

    generate = PipelineWorker.generate

    def interrupted(self, rows):
        if rows[0].prompt == "a blue star":
            signal.raise_signal(number)
        return generate(self, rows)

    before = signal.getsignal(number)
    monkeypatch.setattr(PipelineWorker, "generate", interrupted)
    result = run("batch", prompts, "-o", "out", *QUICK)
    assert result.exit_code == 130
    assert signal.getsignal(number) == before
    assert "Stopping after the current batches" in result.stderr
    assert "2 of 3 images" in result.stdout
    assert "1 rows are left; the same command resumes" in result.stdout
    assert len(images()) == len(manifest()) == 2


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_stops_and_the_same_command_resumes(run, tmp_path):
    rows = "".join(f"a red circle number {number}\n" for number in range(500))
    Path("prompts.txt").write_text(rows)
    process = subprocess.Popen(
        [*DEEPCACHE, "batch", "prompts.txt", "--output", "out", "--steps", "1"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while process.poll() is None and not list(tmp_path.glob("out/pictures/*/*.png")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "rows are left; the same command resumes" in stdout
    kept = images()
    assert len(manifest()) == len(kept) > 0
    # The rest would take long.
    Path("prompts.txt").write_text("".join(rows.splitlines(keepends=True)[: len(kept) + 2]))
    result = run("batch", "prompts.txt", "--output", "out", "--steps", 1)
    assert result.exit_code == 0, result.stderr
    assert len(images()) == len(manifest()) == len(kept) + 2
    assert kept.items() <= images().items()


@pytest.mark.ray
def test_ray_generates_the_same_images_and_prints_nothing(run, prompts, tmp_path):
    lora = str(save_lora(tmp_path / "lora"))
    assert run("batch", prompts, "-o", "out", *QUICK, "--lora", lora).exit_code == 0
    arguments = ["batch", prompts, "-o", "ray", "--steps", "3", "--engine", "ray", "--workers", "2", "--lora", lora]
    # By default, its processes have a lower priority than the tests that run at the same time.
    nice = os.environ | {"RAY_worker_niceness": "0"}
    done = subprocess.run([*DEEPCACHE, *arguments], cwd=tmp_path, env=nice, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert images("ray") == images("out")
    assert len(done.stdout.splitlines()) == 1
    assert "ray::" not in done.stderr
    assert "Traceback" not in done.stderr
