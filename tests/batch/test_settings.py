"""What all rows of a batch have in common."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from DeepCache import DeepCacheConfig
from DeepCache.batch import BatchRow, BatchSettings
from DeepCache.models import Lora
from DeepCache.plan import Plan
from DeepCache.schedule import Step, StepSchedule


def test_row_goes_before_the_settings():
    settings = BatchSettings(negative_prompt="n", size=(64, 64), seed=3, steps=6, guidance=2.5, model="m", vae="v")
    row = BatchRow("0", prompt="x", negative_prompt="own", seed=7, size=(128, 64))
    job = settings.of_row(row)
    assert (job.negative_prompt, job.seed, job.size) == ("own", 7, (128, 64))
    plain = BatchRow("0", prompt="x")
    job = settings.of_row(plain)
    assert (job.negative_prompt, job.seed, job.size) == ("n", plain.seed_for(3), (64, 64))
    assert (job.prompts, job.steps, job.guidance, job.model, job.vae) == (("x",), 6, 2.5, "m", "v")


def test_a_plan_for_another_guidance_scale_is_refused_unless_it_is_forced():
    plan = Plan(StepSchedule((Step(True), Step(False))), {}, {}, guidance=(5, 7.5))
    BatchSettings(steps=2, guidance=8.0, cache=DeepCacheConfig(plan=plan))
    BatchSettings(steps=2, guidance=2.0, cache=DeepCacheConfig(plan=plan, force_plan=True))
    with pytest.raises(ValueError, match=r"the guidance scale is 2 and not from 5 to 7\.5"):
        BatchSettings(steps=2, guidance=2.0, cache=DeepCacheConfig(plan=plan))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"guidance": float("nan")}, "guidance must be >= 0, got nan"),
    ],
)
def test_settings_out_of_range_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        BatchSettings(**values)


def test_everything_that_a_picture_depends_on_can_be_written_down():
    settings = BatchSettings("m", "n", 6, 2.5, (64, 72), 3, "ddim", "float16", DeepCacheConfig(5), "v")
    assert json.loads(json.dumps(settings.to_dict())) == {
        "negative_prompt": "n",
        "steps": 6,
        "size": "64x72",
        "seed": 3,
        "deepcache": DeepCacheConfig(5).to_dict(),
    }
    asked = {"model": "m", "vae": "v", "guidance": 2.5, "scheduler": "ddim", "dtype": "float16"}
    assert settings.asked() == asked
    more = replace(settings, loras=(Lora("a", 0.5), Lora("b")), embeddings=("e",), vae_tiling=True)
    assert more.to_dict() == settings.to_dict() | {"vae_tiling": True}
    assert json.loads(json.dumps(more.asked())) == asked | {"loras": [["a", 0.5], ["b", 1.0]], "embeddings": ["e"]}
    assert more.of_row(BatchRow("0", prompt="x")).loras == more.loras
