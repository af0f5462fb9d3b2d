"""An ablation that was stopped, anywhere, goes on, loses nothing, and ends as one that was never stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from DeepCache import DeepCacheConfig
from DeepCache.bench import ablation, ablation_group
from DeepCache.bench.ablation import AblationSettings, grid, run_ablation
from DeepCache.bench.result_file import write_result
from DeepCache.bench.variants import Variant
from DeepCache.schedule import Step
from tests.bench.small_models import plan_for
from tests.tune.small_pipeline import PROMPTS, small_pipeline

SETTINGS = AblationSettings(
    PROMPTS[:2], grid((2, 3), forecasts=("none",)), "some model", steps=(4, 3), guidances=(3.0,), samples=1
)
# In each of two groups: the images to compare with, two settings, and fewer steps of one number or two.
WRITES = (1 + 2 + 1) + (1 + 2 + 2)


@pytest.fixture(autouse=True)
def _small(model, monkeypatch):
    model(small_pipeline)
    for name in ("why_not_lpips", "why_not_clip"):
        monkeypatch.setattr(ablation, name, lambda *_: "it is not here")


def on_disk(output):
    return json.loads(output.read_text(encoding="utf-8")) if output.exists() else None


def without_seconds(result):
    groups = []
    for group in result["groups"]:
        cells = [cell | {"seconds": 0} for cell in group["cells"]]
        groups.append(group | {"cells": cells, "reference": group["reference"] | {"seconds": 0}})
    return result | {"groups": groups, "date": "", "command": ""}


def images(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


class Stages(list):
    """What is reported of the work; Ctrl-C comes when one thing is reported."""

    def __init__(self, stop_at=None):
        self.stop_at = stop_at

    def __call__(self, now):
        self.append(now.stage)
        if len(self) == self.stop_at:
            raise KeyboardInterrupt

    @property
    def generated(self):
        """What was generated, in order."""
        return [stage for stage in dict.fromkeys(self) if not stage.startswith("loading")]


@pytest.fixture(scope="module")
def finished():
    """The same for all tests; made by the first."""
    return {}


@pytest.fixture
def whole(finished, tmp_path_factory):
    """The result of a run that was never stopped, its images, and what it told."""
    if not finished:
        output = tmp_path_factory.mktemp("whole") / "ablation.json"
        stages = Stages()
        result = run_ablation(SETTINGS, output, "cpu", stages)
        assert [len(group["cells"]) for group in result["groups"]] == [3, 4]
        finished.update(result=without_seconds(result), images=images(output.parent), stages=stages)
    return finished


def check_finished(output, whole, before, stages):
    """All is there and nothing is left over; what was there before is as it was, and was not generated again."""
    after = on_disk(output)
    assert without_seconds(after) == whole["result"]
    assert images(output.parent) == whole["images"]
    assert sorted(path.name for path in output.parent.iterdir()) == ["ablation-samples", "ablation.json"]
    for old, new in zip(before["groups"] if before else [], after["groups"], strict=bool(before)):
        name = f"{old['scheduler']}, {old['steps']} steps, guidance {old['guidance']:g}"
        for old_cell, new_cell in zip(old["cells"], new["cells"], strict=False):
            # The very seconds too.
            of_all = {"front": 0, "dominated_by": 0, "over_reuse": 0}
            assert new_cell | of_all == old_cell | of_all
            assert f"{name}: {old_cell['label']}" not in stages.generated
        if old["reference"] is not None:
            assert new["reference"] == old["reference"]
            assert f"{name}: without caching" not in stages.generated


@pytest.mark.parametrize(
    ("write", "when"), [(1, "before"), (2, "before"), *((write, "after") for write in range(1, WRITES + 1))]
)
def test_a_crash_around_any_write_loses_nothing(write, when, whole, tmp_path, monkeypatch):
    output = tmp_path / "ablation.json"
    written = count(1)

    def crash(path, result):
        last = next(written) == write
        if not last or when == "after":
            write_result(path, result)
        if last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ablation_group, "write_result", crash)
        with pytest.raises(KeyboardInterrupt):
            run_ablation(SETTINGS, output, "cpu")
    before = on_disk(output)
    stages = Stages()
    run_ablation(SETTINGS, output, "cpu", stages)
    check_finished(output, whole, before, stages)
    written_before = write if when == "after" else write - 1
    assert len(stages.generated) == WRITES - written_before


def labels(result):
    """What is in a file, in the order in which it came."""
    return [cell["label"] for group in (result["groups"] if result else ()) for cell in group["cells"]]


def test_ctrl_c_at_any_progress_report_loses_nothing(whole, tmp_path):
    # In one go: it is stopped at each progress report of a run, and resumes from there.
    output = tmp_path / "ablation.json"
    before, told = None, []
    for stop_at in count(2):
        stages = Stages(stop_at)
        try:
            run_ablation(SETTINGS, output, "cpu", stages)
        except KeyboardInterrupt:
            now = on_disk(output)
            for old, new in zip(before["groups"] if before else [], now["groups"] if now else [], strict=False):
                assert [cell["label"] for cell in old["cells"]] == [cell["label"] for cell in new["cells"]][
                    : len(old["cells"])
                ]
            before = now
            told.append(len(stages))
            continue
        check_finished(output, whole, before, stages)
        break
    assert len(told) > 5


def reference_file(output):
    (found,) = output.with_name("ablation-unfinished").glob("*.safetensors")
    return found


def stopped_after(output, label, monkeypatch):
    """Stops a run when a setting of the first group is written."""

    def crash(path, result):
        write_result(path, result)
        if result["groups"][0]["cells"] and result["groups"][0]["cells"][-1]["label"] == label:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ablation_group, "write_result", crash)
        with pytest.raises(KeyboardInterrupt):
            run_ablation(SETTINGS, output, "cpu")


def test_reference_images_are_kept_in_a_file_and_regenerated_if_it_is_lost(whole, tmp_path, monkeypatch):
    output = tmp_path / "ablation.json"
    stopped_after(output, "I=2 B=0", monkeypatch)
    path = reference_file(output)
    pipe = small_pipeline()
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    plain = pipe(
        list(PROMPTS[:2]), num_inference_steps=4, guidance_scale=3.0, generator=generators, output_type="pt"
    ).images
    assert torch.equal(load_file(path)["images"], plain)
    kept = path.read_bytes()
    path.unlink()
    stopped_after(output, "I=3 B=0", monkeypatch)
    assert reference_file(output).read_bytes() == kept
    path.unlink()
    stages = Stages()
    run_ablation(SETTINGS, output, "cpu", stages)
    assert stages.generated[:2] == [
        "model, 4 steps, guidance 3: without caching",
        "model, 4 steps, guidance 3: 2 steps",
    ]
    assert without_seconds(on_disk(output)) == whole["result"]
    assert not path.parent.exists()


def test_a_half_written_image_file_is_not_used(whole, tmp_path, monkeypatch):
    output = tmp_path / "ablation.json"

    def crash(tensors, path):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ablation_group, "save_file", crash)
        with pytest.raises(KeyboardInterrupt):
            run_ablation(SETTINGS, output, "cpu")
    assert on_disk(output) is None
    stages = Stages()
    run_ablation(SETTINGS, output, "cpu", stages)
    check_finished(output, whole, None, stages)


def test_images_of_another_run_are_not_used(whole, tmp_path, monkeypatch):
    output = tmp_path / "ablation.json"
    stopped_after(output, "I=2 B=0", monkeypatch)
    # As a message says, for other settings.
    output.unlink()
    other = replace(SETTINGS, seeds=(50,))
    result = run_ablation(other, output, "cpu")
    (tmp_path / "new").mkdir()
    assert without_seconds(result) == without_seconds(run_ablation(other, tmp_path / "new" / "ablation.json", "cpu"))


def test_other_files_in_the_image_folder_are_kept(tmp_path, monkeypatch, whole):
    output = tmp_path / "ablation.json"
    stopped_after(output, "I=2 B=0", monkeypatch)
    notes = tmp_path / "ablation-unfinished" / "notes.txt"
    notes.write_text("mine")
    run_ablation(SETTINGS, output, "cpu")
    assert without_seconds(on_disk(output)) == whole["result"]
    assert [path.name for path in notes.parent.iterdir()] == ["notes.txt"]


def test_a_finished_ablation_is_not_generated_again(whole, tmp_path):
    output = tmp_path / "ablation.json"
    run_ablation(SETTINGS, output, "cpu")
    before = output.read_bytes()
    stages = Stages()
    run_ablation(SETTINGS, output, "cpu", stages)
    assert stages.generated == []
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"prompts": PROMPTS[1:3]}, "settings.prompts is"),
        ({"variants": grid((2,), forecasts=("none",))}, "settings.labels is"),
        ({"steps": (4,)}, r"settings.steps is \[4, 3\] there and \[4\] now"),
        ({"guidances": (3.0, 4.0)}, r"settings.guidances is \[3.0\] there and \[3.0, 4.0\] now"),
        ({"seeds": (1,)}, "seed is 0 there and 1 now"),
        ({"samples": 2}, "settings.samples is 1 there and 2 now"),
        ({"schedulers": ("ddim",)}, r'settings.schedulers is \["model"\] there and \["ddim"\] now'),
    ],
)
def test_other_settings_do_not_resume_the_file(changed, words, tmp_path, monkeypatch):
    output = tmp_path / "ablation.json"
    stopped_after(output, "I=2 B=0", monkeypatch)
    before = output.read_bytes()
    stages = Stages()
    with pytest.raises(ValueError, match=words):
        run_ablation(replace(SETTINGS, **changed), output, "cpu", stages)
    assert stages.generated == []
    assert output.read_bytes() == before


def test_a_retuned_plan_of_the_same_name_does_not_resume_the_file(tmp_path):
    output = tmp_path / "ablation.json"
    pipe = small_pipeline()
    plans = [plan_for(pipe, (Step(True), *[Step(False, branch)] * 3), steps=4) for branch in (0, 1)]
    first, second = (
        replace(SETTINGS, variants=(Variant("plan a", DeepCacheConfig(plan=plan)),), steps=(4,)) for plan in plans
    )
    run_ablation(first, output, "cpu")
    run_ablation(first, output, "cpu")
    stages = Stages()
    with pytest.raises(ValueError, match="'plan a' had other settings there; delete it, or give another --output"):
        run_ablation(second, output, "cpu", stages)
    assert stages.generated == []
