"""Fingerprints of U-Nets and settings of schedulers, and how they differ."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel

from DeepCache.engine.fingerprint import (
    fingerprint,
    guidance_scale,
    other_guidance,
    other_model,
    other_scheduler,
    refuse,
    scheduler_settings,
)
from DeepCache.plan import Plan
from DeepCache.schedule import Step, StepSchedule
from tests.engine.tiny_pipeline import tiny_unet
from tests.releases import COMPILES, before_diffusers

peft = pytest.importorskip("peft")


def plan_for(unet=None, scheduler=None):
    unet = tiny_unet() if unet is None else unet
    made = Plan(StepSchedule((Step(True),)), fingerprint(unet), scheduler_settings(scheduler or DDIMScheduler()))
    # As read from a file.
    return Plan.from_dict(json.loads(json.dumps(made.to_dict())))


def with_lora(unet, targets=("to_k", "to_q", "to_v", "to_out.0", "conv1")):
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=list(targets), init_lora_weights=False)
    unet.add_adapter(config, "style")
    return unet


def test_the_same_unet_made_twice_is_the_same():
    assert fingerprint(tiny_unet()) == fingerprint(tiny_unet())
    assert other_model(plan_for(), tiny_unet()) == ""


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("tuned_in", [torch.float32, torch.float16, torch.bfloat16])
def test_it_is_the_same_in_every_dtype(dtype, tuned_in):
    plan = plan_for(tiny_unet().to(tuned_in))
    found = fingerprint(tiny_unet().to(dtype))
    assert (found["unet"], found["structure"]) == (plan.model["unet"], plan.model["structure"])
    assert found["weights"] == pytest.approx(plan.model["weights"], rel=2**-7, abs=1e-6)
    assert other_model(plan, tiny_unet().to(dtype)) == ""


def test_it_is_the_same_with_a_lora_of_peft():
    plain = fingerprint(tiny_unet())
    unet = with_lora(tiny_unet())
    assert any("lora_" in name for name, _ in unet.named_parameters())
    assert fingerprint(unet) == plain
    unet.set_adapters(["style"], [0.5])
    assert fingerprint(unet) == plain
    assert other_model(plan_for(with_lora(tiny_unet(), ("to_k",))), unet) == ""
    unet.delete_adapters("style")
    assert fingerprint(unet) == plain


def test_a_fused_lora_is_not_another_model():
    unet = with_lora(tiny_unet())
    unet.fuse_lora(lora_scale=4.0)
    for fused in (unet, unet.unload_lora() or unet):
        assert fingerprint(fused)["weights"] != fingerprint(tiny_unet())["weights"]
        assert other_model(plan_for(), fused) == ""
    other = with_lora(tiny_unet(seed=1))
    other.fuse_lora()
    assert other_model(plan_for(), other) == "this UNet2DConditionModel has other weights"


def test_it_is_the_same_in_another_memory_format_and_without_gradients():
    plain = fingerprint(tiny_unet())
    assert fingerprint(tiny_unet().to(memory_format=torch.channels_last)) == plain
    assert fingerprint(tiny_unet().requires_grad_(False)) == plain


@COMPILES
def test_it_is_the_same_when_compiled():
    unet = tiny_unet()
    unet.compile(backend="eager")
    assert other_model(plan_for(), unet) == ""


def test_other_weights_are_detected():
    assert fingerprint(tiny_unet(seed=1))["weights"] != fingerprint(tiny_unet())["weights"]
    assert fingerprint(tiny_unet(seed=1))["structure"] == fingerprint(tiny_unet())["structure"]
    assert other_model(plan_for(), tiny_unet(seed=1)) == "this UNet2DConditionModel has other weights"


def test_fine_tuned_weights_are_detected_in_half_precision():
    unet = tiny_unet()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(2)
        for weight in unet.parameters():
            weight += 0.1 * weight.abs().mean() * torch.randn(weight.shape, generator=generator)
    for dtype in (torch.float32, torch.bfloat16):
        assert other_model(plan_for(), unet.to(dtype)) == "this UNet2DConditionModel has other weights"


def test_other_layers_are_detected():
    unet = tiny_unet()
    unet.down_blocks[0].resnets[0].conv1 = torch.nn.Conv2d(8, 8, 1)
    assert other_model(plan_for(), unet) == "this UNet2DConditionModel has other layers"


def test_another_kind_of_unet_is_detected():
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    assert other_model(plan_for(), unet) == "the U-Net is a UNet2DModel and not a UNet2DConditionModel"


def test_weights_that_cannot_be_read_are_not_compared():
    unreachable = tiny_unet(seed=1).to("meta")
    assert fingerprint(unreachable)["weights"] == []
    assert other_model(plan_for(), unreachable) == ""
    assert other_model(plan_for(unreachable), tiny_unet()) == ""


@before_diffusers("0.33", "it casts no layers")
def test_weights_of_eight_bits_are_not_compared():
    unet = tiny_unet()
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert fingerprint(unet)["weights"] == []
    assert other_model(plan_for(), unet) == ""


@before_diffusers("0.35", "it offloads no groups to a disk")
def test_weights_on_disk_are_not_compared(tmp_path):
    unet = tiny_unet()
    unet.enable_group_offload(
        torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1, offload_to_disk_path=str(tmp_path)
    )
    assert fingerprint(unet)["weights"] == []
    assert other_model(plan_for(), unet) == ""


def test_a_plan_without_a_model_or_scheduler_fits_none():
    plan = Plan(StepSchedule((Step(True),)), {}, {})
    assert other_model(plan, tiny_unet()) == "the U-Net is a UNet2DConditionModel and not a None"
    assert other_scheduler(plan, DDIMScheduler()) == "the scheduler is a DDIMScheduler and not a None"
    other = Plan(plan.schedule, fingerprint(tiny_unet()) | {"weights": [1.0]}, {})
    assert other_model(other, tiny_unet()) == "this UNet2DConditionModel has other weights"


def test_few_weights_are_read_and_json_can_represent_them():
    found = fingerprint(tiny_unet())
    assert len(found["weights"]) == 64
    assert json.loads(json.dumps(found)) == found
    assert len(fingerprint(torch.nn.Linear(2, 2))["weights"]) == 2
    assert fingerprint(torch.nn.ReLU())["weights"] == []


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (DDIMScheduler(), ""),
        (DDPMScheduler(), "the scheduler is a DDPMScheduler and not a DDIMScheduler"),
        (
            DDIMScheduler(timestep_spacing="trailing"),
            "timestep_spacing of the DDIMScheduler is 'trailing' and not 'leading'",
        ),
        (DDIMScheduler(steps_offset=1), "steps_offset of the DDIMScheduler is 1 and not 0"),
        (None, "the scheduler is a NoneType and not a DDIMScheduler"),
    ],
    ids=["same", "class", "spacing", "offset", "none"],
)
def test_another_scheduler_is_detected(scheduler, reason):
    assert other_scheduler(plan_for(), scheduler) == reason


def test_the_state_of_a_scheduler_does_not_matter():
    used = DDIMScheduler()
    used.set_timesteps(7)
    used.step(torch.zeros(1), used.timesteps[0], torch.zeros(1))
    assert other_scheduler(plan_for(), used) == ""


def test_a_scheduler_from_a_file_is_the_same(tmp_path):
    DDIMScheduler().save_pretrained(tmp_path)
    loaded = DDIMScheduler.from_pretrained(tmp_path)
    assert "_diffusers_version" in loaded.config
    assert scheduler_settings(loaded) == scheduler_settings(DDIMScheduler())


def test_a_setting_of_only_one_side_is_detected():
    plan = plan_for()
    plan.scheduler["config"]["speed"] = 2
    assert other_scheduler(plan, DDIMScheduler()) == "speed of the DDIMScheduler is None and not 2"


@pytest.mark.parametrize(
    ("scale", "reason"),
    [
        (3.6, ""),
        (3.59, "the guidance scale is 3.59 and not from 4 to 8"),
        (8.8, ""),
        (8.81, "the guidance scale is 8.81 and not from 4 to 8"),
        (None, ""),
    ],
)
def test_a_guidance_scale_may_be_a_tenth_outside_the_range(scale, reason):
    assert other_guidance(Plan(StepSchedule((Step(True),)), {}, {}, guidance=(4, 8)), scale) == reason


def test_nothing_differs_from_an_unknown_guidance():
    assert other_guidance(Plan(StepSchedule((Step(True),)), {}, {}), 7.5) == ""


@pytest.mark.parametrize(
    ("pipe", "scale"),
    [
        ({}, None),
        ({"guidance_scale": None}, None),
        ({"guidance_scale": 7}, 7.0),
        ({"guidance_scale": 7.5, "do_classifier_free_guidance": True}, 7.5),
        ({"guidance_scale": 7.5, "do_classifier_free_guidance": False}, 1.0),
        # One per frame, as in video pipelines.
        ({"guidance_scale": torch.linspace(1, 3, 4)}, None),
    ],
)
def test_the_guidance_scale_of_a_run_is_that_of_the_pipeline(pipe, scale):
    assert guidance_scale(SimpleNamespace(**pipe)) == scale


def test_without_a_reason_nothing_is_refused():
    refuse("")
    with pytest.raises(ValueError, match=r"the plan was tuned for something else: rain; .*force_plan=True"):
        refuse("rain")


def test_a_scheduler_with_infinity_in_its_settings_is_written_as_standard_json(tmp_path):
    scheduler = DPMSolverMultistepScheduler()
    assert scheduler.config.lambda_min_clipped == float("-inf")
    path = tmp_path / "plan.json"
    plan_for(scheduler=scheduler).to_file(path)

    def refuse_constant(name):
        raise AssertionError(f"{name} is not JSON")

    json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_constant)
    assert other_scheduler(Plan.from_file(path), DPMSolverMultistepScheduler()) == ""
