"""The job for a CUDA card, as far as a CPU can show it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from DeepCache.bench import profiled_steps
from DeepCache.bench.result_file import read_result
from tests.bench.small_models import remember_costs

REFERENCE = Path(__file__).resolve().parents[2] / "build" / "reference"


def test_every_cell_of_the_published_table_is_measured_eager_compiled_and_captured():
    wanted = {(side, batch) for side in (512, 768, 1024) for batch in (1, 4, 8)}
    for mode in ("eager", "regional", "compiled", "captured"):
        cells = {
            (width, batch)
            for job in gpu.jobs(REFERENCE)
            for width, _ in job.settings.sizes
            for batch in job.settings.batches
            if job.settings.model == "sd21"
            and job.settings.modes == (mode,)
            and "pipeline" in job.settings.scopes
            and {"I=3 B=0", "I=5 B=0", "I=5 B=1"} <= {variant.name for variant in job.settings.variants}
            and job.settings.steps == 50
            and job.settings.dtypes == ("float16",)
        }
        assert cells == wanted


def test_every_model_meets_the_reference_package_eager_and_compiled_as_far_as_that_can_be():
    met = {
        (job.settings.model, mode)
        for job in gpu.jobs(REFERENCE)
        for mode in job.settings.modes
        if job.settings.reference
    }
    models, modes = ("sd21", "sd15", "sdxl", "svd"), ("eager", "regional", "compiled")
    assert met == {(model, mode) for model in models for mode in modes}


def test_each_job_has_a_file_of_its_own():
    names = [job.name for job in gpu.jobs(REFERENCE)]
    assert len(set(names)) == len(names)


def test_without_a_card_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device; --dry-run"):
        gpu.main()


def test_a_dry_run_leaves_out_what_takes_a_card():
    dry = [gpu.tiny(job) for job in gpu.jobs(REFERENCE)]
    assert {mode for job in dry if job for mode in job.settings.modes} == {"eager", "regional", "compiled"}
    assert dry.count(None) == 8


def test_dry_run_completes_a_job_on_the_cpu_and_resumes(monkeypatch, tmp_path):
    options = ["--dry-run", "--profile", "--jobs", "sd15-eager-unet", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu", *options])
    # One sample of each kind of step will do, and costs that are counted once.
    monkeypatch.setattr(profiled_steps, "_SAMPLES", 1)
    remember_costs(monkeypatch)
    gpu.main()
    (path,) = tmp_path.glob("*.json")
    result = read_result(path)
    assert [(cell["width"], cell["batch"], cell["status"]) for cell in result["cells"]] == [
        (64, 1, "done"),
        (64, 4, "done"),
    ]
    methods = [row["method"] for row in result["cells"][0]["rows"]]
    assert methods.count("DeepCache") == 5
    assert methods.count("reference package") == 3
    assert not any(row["error"] for cell in result["cells"] for row in cell["rows"])
    (profile,) = tmp_path.glob("*/profile.json")
    assert {each["trace"] for each in json.loads(profile.read_text(encoding="utf-8"))["profiles"]} == {
        trace.name for trace in profile.parent.glob("*.json.gz")
    }
    before = path.read_text(encoding="utf-8")
    gpu.main()
    assert path.read_text(encoding="utf-8") == before
    assert json.loads(before)["settings"]["model"] == "sd15-tiny"
