"""docs/troubleshooting.md quotes the messages of the package, and its index is complete."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import EulerDiscreteScheduler, FluxPipeline

from benchmarks.tables import HERE, README
from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache, remove_deepcache
from DeepCache.models import load_pipeline, random_pipeline
from DeepCache.plan import Plan

PAGE = (README.parent / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
PLAN = HERE / "plans" / "ddim-25.json"
QUOTED = {
    line.split(": ", 1)[1]
    for block in re.findall(r"^```text\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if re.match(r"\w+Error: ", line)
}


@pytest.fixture(scope="module")
def pipe():
    found = load_pipeline("shapes", device="cpu")
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(autouse=True)
def put_back(pipe):
    scheduler = pipe.scheduler
    yield
    remove_deepcache(pipe)
    pipe.scheduler = scheduler


def planned(pipe, guidance=7.5):
    plan = replace(Plan.from_file(PLAN), guidance=(guidance, guidance))
    return apply_deepcache(pipe, DeepCacheConfig(plan=plan))


def without_a_unet(pipe, folder):
    names = list(inspect.signature(FluxPipeline.__init__).parameters)[1:]
    apply_deepcache(FluxPipeline(**dict.fromkeys(names)))


def of_transformers(pipe, folder):
    (folder / "owner" / "name").mkdir(parents=True)
    index = {"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3Transformer2DModel"]}
    (folder / "owner" / "name" / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    load_pipeline("owner/name")


def wrapped(pipe, folder):
    apply_deepcache(SimpleNamespace(unet=torch.nn.DataParallel(pipe.unet), scheduler=pipe.scheduler))


def too_deep(pipe, folder):
    DeepCacheSDHelper(pipe).set_params(cache_branch_id=12)


def unguided(pipe, folder):
    apply_deepcache(pipe, DeepCacheConfig(guidance_reuse=True))
    pipe("a red circle", num_inference_steps=2, guidance_scale=1.0)


def other_scheduler(pipe, folder):
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    planned(pipe)


def other_model(pipe, folder):
    planned(random_pipeline("sd15-tiny", device="cpu"))


def other_steps(pipe, folder):
    planned(pipe)
    pipe("a red circle", num_inference_steps=20)


def other_guidance(pipe, folder):
    planned(pipe, guidance=2)
    pipe("a red circle", num_inference_steps=50, guidance_scale=7.5)


def compiled_already(pipe, folder):
    compiled = SimpleNamespace(unet=torch.compile(pipe.unet, backend="eager"), scheduler=pipe.scheduler)
    apply_deepcache(compiled, DeepCacheConfig(compile="default"))


def unknown_key(pipe, folder):
    DeepCacheConfig.from_json('{"interval": 3}')


def no_plan(pipe, folder):
    (folder / "p.json").write_text("{}", encoding="utf-8")
    DeepCacheSDHelper(pipe).set_params(plan="p.json")


def counting_editor(pipe, folder):
    class MutualSelfAttentionControl:
        num_att_layers = 32

    layer, editor = pipe.unet.mid_block, MutualSelfAttentionControl()
    original = layer.forward
    layer.forward = lambda *args, **kwargs: (editor, original(*args, **kwargs))[1]
    try:
        apply_deepcache(pipe, DeepCacheConfig(3))
        pipe("a red circle", num_inference_steps=2)
    finally:
        del layer.forward


WRONG = (
    without_a_unet,
    of_transformers,
    wrapped,
    too_deep,
    unguided,
    other_scheduler,
    other_model,
    other_steps,
    other_guidance,
    compiled_already,
    unknown_key,
    no_plan,
    counting_editor,
)
# Messages of the reference package, of a case in tests/compatibility, and of a command.
ELSEWHERE = ("cannot import name", "DeepCacheSDHelper.set_params() got", "cannot cut a UNet2DModel", "got 40")


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_quoted_errors_are_raised(wrong, pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((TypeError, ValueError)) as caught:
        wrong(pipe, tmp_path)
    message = str(caught.value)
    assert any(message == line or ("…" in line and message.startswith(line.split("…")[0])) for line in QUOTED), message


def test_all_quoted_errors_are_tested():
    others = {line for line in QUOTED if not any(part in line for part in ELSEWHERE)}
    assert len(others) == len(WRONG)


def test_every_symptom_is_in_the_index():
    index, _, rest = PAGE.partition("\n## ")
    linked = re.findall(r"\]\(#([^)]+)\)", index)
    headings = re.findall(r"^### (.+)$", rest, flags=re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert linked == [*anchors, "reporting-a-bug"]
