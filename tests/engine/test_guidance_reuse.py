"""Guidance reuse: the half with the prompt runs, and the other one is forecast."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPAGPipeline
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache
from DeepCache.engine.cost import count_costs
from DeepCache.engine.guidance import conditional_half, join_halves, why_not_two_halves, with_tensor
from DeepCache.schedule import ExplicitSchedule, Step, StepSchedule
from tests.engine.dummy_unet import DummyUNet, Pipeline
from tests.engine.no_transfers import NoTransfers
from tests.engine.slots import kept_slots
from tests.engine.tiny_pipeline import generate, tiny_pipeline, tiny_unet
from tests.releases import COUNTS

REUSE = DeepCacheConfig(3, forecast="none", guidance_reuse=True)


def observe_batches(module):
    """The batch size of every call of a module."""
    batches = []

    def note(module, args):
        if not args[0].is_meta:
            batches.append(len(args[0]))

    module.register_forward_pre_hook(note)
    return batches


def predictions(config, batch=1, guidance_scale=7.5, steps=6):
    """The outputs of the U-Net in a pipeline whose latents are replaced after every step."""
    pipe = tiny_pipeline()
    apply_deepcache(pipe, config)
    found = []
    pipe.unet.register_forward_hook(lambda module, args, output: found.append(output[0]))
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(steps, batch, 4, 8, 8, generator=generator)

    def replace(pipe, step, timestep, tensors):
        return {"latents": latents[step]}

    generate(pipe, steps, batch=batch, guidance_scale=guidance_scale, callback_on_step_end=replace)
    return found


class TestPipeline:
    @pytest.mark.parametrize("images", [1, 2])
    def test_shallow_steps_run_half_of_the_batch(self, images):
        pipe = tiny_pipeline()
        engine = apply_deepcache(pipe, REUSE)
        first, deep = observe_batches(pipe.unet.conv_in), observe_batches(pipe.unet.mid_block)
        outputs = []
        pipe.unet.register_forward_hook(lambda module, args, output: outputs.append(output[0].shape))
        assert torch.isfinite(generate(pipe, batch=images)).all()
        assert first == [size * images for size in (2, 1, 1, 2, 1, 1)]
        assert deep == [2 * images] * 2
        assert outputs == [(2 * images, 4, 8, 8)] * 6
        stats = engine.stats
        assert (stats.pattern, stats.halved_steps) == ("F..F..", 4)
        assert "2 full and 4 shallow steps (4 with guidance reuse), " in str(stats)

    @pytest.mark.parametrize("forecast", ["none", "linear"])
    @pytest.mark.parametrize("branch", [0, 2, 5])
    @pytest.mark.parametrize("images", [1, 2])
    def test_the_half_with_the_prompt_equals_that_of_a_whole_batch(self, images, branch, forecast):
        whole = predictions(DeepCacheConfig(2, branch, forecast=forecast), images)
        halved = predictions(DeepCacheConfig(2, branch, forecast=forecast, guidance_reuse=True), images)
        for step, (expected, found) in enumerate(zip(whole, halved, strict=True)):
            torch.testing.assert_close(found[images:], expected[images:])
            if step % 2 == 0:
                assert torch.equal(found, expected)

    @pytest.mark.parametrize("forecast", ["none", "linear"])
    def test_the_other_half_is_the_first_plus_the_forecast_difference(self, forecast):
        found = predictions(DeepCacheConfig(3, forecast=forecast, guidance_reuse=True))
        differences = [unconditional - conditional for unconditional, conditional in found]
        for step in (1, 2):
            torch.testing.assert_close(differences[step], differences[0])
        slope = (differences[3] - differences[0]) / 3 if forecast == "linear" else 0
        for step in (4, 5):
            torch.testing.assert_close(differences[step], differences[3] + (step - 3) * slope)

    def test_the_guidance_scale_does_not_change_the_output_of_the_unet(self):
        for weak, strong in zip(
            predictions(REUSE, guidance_scale=2.0), predictions(REUSE, guidance_scale=20.0), strict=True
        ):
            assert torch.equal(weak, strong)

    @COUNTS
    def test_at_interval_one_nothing_is_halved_or_refused(self):
        pipe = tiny_pipeline()
        plain, unguided = generate(pipe), generate(pipe, guidance_scale=1.0)
        engine = apply_deepcache(pipe, DeepCacheConfig(1, guidance_reuse=True))
        assert torch.equal(generate(pipe), plain)
        assert torch.equal(generate(pipe, guidance_scale=1.0), unguided)
        assert (engine.stats.halved_steps, engine.stats.mac_share) == (0, 1)

    def test_a_full_step_with_guidance_reuse_runs_the_whole_unet_on_half_of_the_batch(self):
        each = (Step(True), Step(True, guidance_reuse=True), Step(False), Step(False, guidance_reuse=True))
        pipe = tiny_pipeline()
        engine = apply_deepcache(pipe, DeepCacheConfig(schedule=StepSchedule(each)))
        first, deep = observe_batches(pipe.unet.conv_in), observe_batches(pipe.unet.mid_block)
        generate(pipe, steps=4)
        assert (first, deep) == ([2, 1, 2, 1], [2, 1])
        assert (engine.stats.pattern, engine.stats.halved_steps) == ("FF..", 2)

    @COUNTS
    def test_guidance_reuse_needs_no_shallow_step(self):
        pipe = tiny_pipeline()
        each = (Step(True), *[Step(True, guidance_reuse=True)] * 3)
        engine = apply_deepcache(pipe, DeepCacheConfig(schedule=StepSchedule(each)))
        batches = observe_batches(pipe.unet.conv_in)
        generate(pipe, steps=4)
        assert batches == [2, 1, 1, 1]
        stats = engine.stats
        assert (stats.pattern, stats.halved_steps) == ("FFFF", 3)
        assert stats.mac_share == pytest.approx((1 + 3 / 2) / 4)
        # Only the difference.
        assert stats.bytes_kept == 4 * 8 * 8 * 4

    def test_memory_is_the_deep_feature_and_the_difference_for_each_order(self):
        for forecast, tensors in (("none", 1), ("linear", 2)):
            pipe = tiny_pipeline()
            engine = apply_deepcache(pipe, DeepCacheConfig(3, forecast=forecast, guidance_reuse=True))
            generate(pipe)
            # Eight channels of 8x8 for both halves; four for the difference of the two.
            assert engine.stats.bytes_kept == tensors * (2 * 8 + 4) * 8 * 8 * 4
            assert not kept_slots(engine)


@COUNTS
class TestCost:
    def call(self, batch):
        return (torch.zeros(batch, 4, 8, 8), torch.tensor(5)), {"encoder_hidden_states": torch.zeros(batch, 3, 8)}

    def test_half_a_batch_costs_half(self):
        unet = tiny_unet()
        whole, half = (count_costs(unet, *self.call(batch)) for batch in (2, 1))
        assert whole.full == 2 * half.full
        assert whole.shallow == {branch: 2 * cost for branch, cost in half.shallow.items()}

    @pytest.mark.parametrize("branch", [0, 3])
    def test_a_halved_step_counts_half(self, branch):
        pipe = tiny_pipeline()
        engine = apply_deepcache(pipe, DeepCacheConfig(3, branch, guidance_reuse=True))
        generate(pipe)
        costs = count_costs(pipe.unet, *self.call(2))
        half = count_costs(pipe.unet, *self.call(1))
        spent = 2 * costs.full + 4 * half.shallow[branch]
        assert engine.stats.mac_share == pytest.approx(spent / (6 * costs.full))


class GuidedDummy(DummyUNet):
    """Returns 23 noisy + timestep · prompt per row; the deep feature at branch 0 is 22 noisy + timestep · prompt."""

    def forward(self, noisy, when, prompt):
        return super().forward(noisy, when * prompt)


class TestByHand:
    def run(self, config, timesteps=(10, 20, 30, 40, 50, 60), noisy=lambda step: 1.0, unet=GuidedDummy):
        """Rows without and with the prompt, which are 1 and 3."""
        pipe = Pipeline(unet(), timesteps)
        engine = apply_deepcache(pipe, config)
        found = []
        for step, timestep in enumerate(pipe.scheduler.timesteps):
            output = pipe.unet(torch.full((2,), noisy(step)), timestep, torch.tensor([1.0, 3.0]))
            assert isinstance(output, tuple)
            found.append(tuple(output[0].tolist()))
        return found, engine

    def test_reused_unchanged(self):
        found, engine = self.run(REUSE, noisy=lambda step: 1.0 + step)
        assert found == [
            (23 + 10, 23 + 30),
            # The half with the prompt uses its noisy sample; the other one is 2 · 10 less.
            (24 + 30 - 20, 24 + 30),
            (25 + 30 - 20, 25 + 30),
            (4 * 23 + 40, 4 * 23 + 120),
            (4 * 22 + 5 + 120 - 80, 4 * 22 + 5 + 120),
            (4 * 22 + 6 + 120 - 80, 4 * 22 + 6 + 120),
        ]
        assert engine.stats.halved_steps == 4

    @pytest.mark.parametrize(
        ("forecast", "at", "timesteps"),
        [
            ("linear", (0, 3), (10, 20, 30, 40, 50, 60)),
            ("linear", (0, 1, 4), (10, 20, 30, 40, 50, 60)),
            ("quadratic", (0, 1, 3), (0, 1, 4, 9, 16, 25)),
        ],
    )
    def test_a_forecast_of_the_right_order_is_exact(self, forecast, at, timesteps):
        config = DeepCacheConfig(schedule=ExplicitSchedule(at), forecast=forecast, guidance_reuse=True)
        found, engine = self.run(config, timesteps, noisy=lambda step: 2.0 + step)
        enough = at[2 if forecast == "quadratic" else 1]
        expected = [(23 * (2 + step) + t, 23 * (2 + step) + 3 * t) for step, t in enumerate(timesteps)]
        assert found[enough:] == expected[enough:]
        assert engine.stats.halved_steps == 6 - len(at)

    def test_the_forecast_is_that_of_the_step(self):
        each = (Step(True), Step(True), Step(False, 0, "none", True), Step(False, 0, "linear", True))
        found, _ = self.run(DeepCacheConfig(schedule=StepSchedule(each)), (10, 20, 30, 40))
        assert found[2:] == [(23 + 60 - 40, 23 + 60), (23 + 40, 23 + 120)]

    def test_the_half_that_did_not_run_on_a_full_step_is_forecast_for_later_steps(self):
        for forecast in ("none", "linear"):
            each = (Step(True), Step(True), Step(True, 0, forecast, True), Step(False))
            found, _ = self.run(DeepCacheConfig(schedule=StepSchedule(each)), (10, 20, 30, 40))
            without = {"none": 20, "linear": 30}[forecast]
            difference = {"none": -40, "linear": -60}[forecast]
            assert found[2] == (23 + 90 + difference, 23 + 90)
            # Both halves run; the deep feature of the one without the prompt is the forecast one.
            assert found[3] == (23 + without, 23 + 90)

    def test_shallow_steps_of_the_whole_batch_renew_the_difference(self):
        class ShallowPrompt(DummyUNet):
            """Adds timestep · prompt after all layers."""

            def forward(self, noisy, when, prompt):
                return (super().forward(noisy, when)[0] + when * prompt,)

        each = (Step(True), Step(False), Step(False, guidance_reuse=True))
        found, _ = self.run(DeepCacheConfig(schedule=StepSchedule(each)), (10, 20, 30), unet=ShallowPrompt)
        assert found == [(33 + 10, 33 + 30), (33 + 20, 33 + 60), (33 + 90 - 40, 33 + 90)]

    def test_a_deeper_shallow_step_renews_both_halves_of_the_deep_feature_above_it(self):
        each = (Step(True), Step(False, 2, guidance_reuse=True), Step(False, 0))
        found, _ = self.run(DeepCacheConfig(schedule=StepSchedule(each)), (10, 20, 30), noisy=lambda step: 1.0 + step)
        assert found[1] == (16 + 30 + 14 - 20, 16 + 30 + 14)
        # The half that ran was renewed at branch 0, the other one was not.
        assert found[2] == (22 + 10 + 3, 16 + 30 + 12 + 3)

    def test_a_slot_whose_batch_is_not_guided_runs_whole(self):
        """Self-attention guidance calls the U-Net once more at each step, only without the prompt."""
        pipe = Pipeline(GuidedDummy())
        engine = apply_deepcache(pipe, REUSE, slot_key=lambda args, kwargs: len(args[0]))
        batches = observe_batches(pipe.unet.up_blocks[1].layers[1])
        for timestep in pipe.scheduler.timesteps[:5]:
            pipe.unet(torch.ones(2), timestep, torch.tensor([1.0, 3.0]))
            assert pipe.unet(torch.ones(1), timestep, torch.ones(1))[0].shape == (1,)
        assert batches == [2, 1, 1, 1, 1, 1, 2, 1, 1, 1]
        assert engine.stats.pattern == "F..F."

    def test_each_guided_call_of_a_step_has_its_own_difference(self):
        pipe = Pipeline(GuidedDummy())
        apply_deepcache(pipe, REUSE, slot_key=lambda args, kwargs: float(args[2][0]))
        for timestep in pipe.scheduler.timesteps[:3]:
            for noisy, prompts in ((1.0, [1.0, 3.0]), (2.0, [5.0, 2.0])):
                output = pipe.unet(torch.full((2,), noisy), timestep, torch.tensor(prompts))[0]
                assert output.tolist() == [23 * noisy + 10 * prompt for prompt in prompts]


@pytest.mark.parametrize("return_dict", [True, False])
@torch.no_grad()
def test_the_output_has_the_requested_type(return_dict):
    unet = tiny_unet()
    pipe = Pipeline(unet, (900, 700, 500))
    apply_deepcache(pipe, DeepCacheConfig(3, guidance_reuse=True))
    sample, prompt = torch.randn(1, 4, 8, 8).expand(2, -1, -1, -1), torch.randn(2, 3, 8)
    for timestep in pipe.scheduler.timesteps:
        output = unet(sample, timestep, encoder_hidden_states=prompt, return_dict=return_dict)
        assert type(output) is (UNet2DConditionOutput if return_dict else tuple)
        assert output[0].shape == (2, 4, 8, 8)
        if return_dict:
            assert output.sample is output["sample"] is output[0]


class TestRefused:
    """At the first step, before any layer runs and without leaving state."""

    def refused(self, pipe, reason, **call):
        helper = DeepCacheSDHelper(pipe)
        helper.set_params(3, guidance_reuse=True)
        helper.enable()
        ran = observe_batches(pipe.unet.conv_in)
        with pytest.raises(ValueError, match=f"^guidance_reuse runs half of a guided batch, and .*{reason}.*turn it"):
            generate(pipe, **call)
        assert ran == []
        helper.set_params(3)
        assert torch.isfinite(generate(pipe, **call)).all()
        assert helper.stats.pattern == "F..F.."

    @pytest.mark.parametrize("scale", [1.0, 0.0])
    def test_without_guidance(self, scale):
        self.refused(tiny_pipeline(), "classifier-free guidance is disabled", guidance_scale=scale)

    def test_with_perturbed_attention_guidance(self):
        self.refused(self.perturbed(), "perturbed-attention guidance")

    def test_a_pipeline_with_a_perturbation_scale_of_zero_works(self):
        pipe = self.perturbed()
        engine = apply_deepcache(pipe, REUSE)
        generate(pipe, pag_scale=0.0)
        assert engine.stats.halved_steps == 4

    def perturbed(self):
        components = tiny_pipeline().components
        pipe = StableDiffusionPAGPipeline(**components, requires_safety_checker=False, pag_applied_layers="mid")
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @pytest.mark.parametrize(
        ("sample", "reason"),
        [
            (torch.ones(1), "the batch of the U-Net has 1 samples, which is not two halves"),
            (torch.ones(3), "the batch of the U-Net has 3 samples, which is not two halves"),
            (torch.arange(2.0), "the two halves of the U-Net's batch are not the same latents"),
            (torch.tensor([1.0, 1.0, 2.0, 2.0]), "the two halves of the U-Net's batch are not the same latents"),
        ],
        ids=["one", "three", "two images", "another order"],
    )
    def test_a_batch_that_is_not_two_halves(self, sample, reason):
        pipe = Pipeline(GuidedDummy())
        engine = apply_deepcache(pipe, REUSE)
        ran = observe_batches(pipe.unet.down_blocks[0])
        with pytest.raises(ValueError, match=f"^guidance_reuse .*{reason}"):
            pipe.unet(sample, pipe.scheduler.timesteps[0], torch.ones(len(sample)))
        assert ran == []
        pipe.unet(torch.ones(2), pipe.scheduler.timesteps[0], torch.ones(2))
        assert engine.stats.pattern == "F"

    @torch.no_grad()
    def test_a_unet_call_for_either_half(self):
        pipe = Pipeline(tiny_unet(), (900, 700, 500))
        apply_deepcache(pipe, REUSE)

        def denoise():
            for timestep in pipe.scheduler.timesteps:
                for prompt in torch.randn(2, 1, 3, 8):
                    pipe.unet(torch.zeros(1, 4, 8, 8), timestep, prompt)

        with pytest.raises(ValueError, match=r"guidance_reuse .* 1 samples, which is not two halves"):
            denoise()

    def test_where_the_pipeline_reads_attention_maps(self):
        pipe = tiny_pipeline()
        for module in pipe.unet.modules():
            if hasattr(module, "processor"):
                module.processor.maps = []
        self.refused(pipe, "reads the attention maps of whole batches")


class TestGuidanceThatChangesDuringARun:
    @COUNTS
    def test_after_guidance_is_disabled_the_run_continues_without(self):
        pipe = tiny_pipeline()
        engine = apply_deepcache(pipe, REUSE)
        batches = observe_batches(pipe.unet.conv_in)

        def cut_off(pipe, step, timestep, tensors):
            if step == 1:
                pipe._guidance_scale = 0.0
                tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[1]
            return tensors

        image = generate(
            pipe,
            callback_on_step_end=cut_off,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        )
        assert torch.isfinite(image).all()
        assert batches == [2, 1, 1, 1, 1, 1]
        stats = engine.stats
        # The stored deep feature is of another batch, so step 2 is full too; only step 1 ran half of a batch.
        assert (stats.pattern, stats.halved_steps) == ("F.FF..", 1)
        costs, half = (count_costs(pipe.unet, *TestCost().call(batch)) for batch in (2, 1))
        spent = costs.full + half.shallow[0] + 2 * half.full + 2 * half.shallow[0]
        assert stats.mac_share == pytest.approx(spent / (2 * costs.full + 4 * half.full))

    def test_after_guidance_is_enabled_again_a_full_step_precedes_halved_ones(self):
        pipe = Pipeline(GuidedDummy())
        engine = apply_deepcache(pipe, DeepCacheConfig(schedule=ExplicitSchedule((0,)), guidance_reuse=True))
        batches = observe_batches(pipe.unet.up_blocks[1].layers[1])
        found = []
        for step, rows in enumerate((2, 2, 1, 1, 2, 2, 2)):
            noisy, prompt = torch.ones(rows), torch.tensor([1.0, 3.0])[-rows:]
            found.append(pipe.unet(noisy, pipe.scheduler.timesteps[step], prompt)[0].tolist())
        assert batches == [2, 1, 1, 1, 2, 1, 1]
        assert found == [[33, 53], [33, 53], [113], [113], *[[73, 173]] * 3]
        assert engine.stats.pattern == "F.F.F.."


@pytest.mark.parametrize("forecast", ["none", "quadratic"])
def test_nothing_is_read_from_the_device_after_the_first_step(forecast, monkeypatch):
    pipe = Pipeline(GuidedDummy())
    engine = apply_deepcache(pipe, DeepCacheConfig(2, forecast=forecast, guidance_reuse=True))
    noisy, prompt = torch.ones(2), torch.tensor([1.0, 3.0])
    pipe.unet(noisy, pipe.scheduler.timesteps[0], prompt)
    with NoTransfers(monkeypatch):
        for timestep in pipe.scheduler.timesteps[1:]:
            pipe.unet(noisy, timestep, prompt)
    monkeypatch.undo()
    assert engine.stats.pattern == "F.F.F.F"
    assert engine.stats.halved_steps == 3


def test_a_gradient_through_the_prompt_is_that_of_the_whole_unet():
    pipe = Pipeline(GuidedDummy())
    engine = apply_deepcache(pipe, REUSE)
    for timestep in pipe.scheduler.timesteps[:3]:
        prompt = torch.tensor([1.0, 3.0], requires_grad=True)
        pipe.unet(torch.ones(2), timestep, prompt)[0].sum().backward()
        assert prompt.grad.tolist() == [float(timestep)] * 2
    assert not kept_slots(engine)


class TestConditionalHalf:
    def test_every_tensor_with_the_batch_first_is_cut(self):
        rows = torch.arange(4)
        frames = torch.arange(8)[:, None].expand(8, 3)
        video = torch.zeros(4, 3, 2, 1, 1)
        args = (rows, torch.tensor(7), 5, None, torch.tensor([9]))
        kwargs = {
            "text": frames,
            "residuals": (rows * 2, torch.zeros(1, 4)),
            "added": {"time_ids": rows, "images": [rows[:, None], "a name"], "scale": 0.5},
            "mask": torch.ones(3),
            "tokens": torch.ones(16, 2),
            "return_dict": False,
        }
        half, named = conditional_half(args, kwargs, video)
        assert half[0].tolist() == [2, 3]
        assert half[1:4] == args[1:4]
        assert half[4] is args[4]
        assert named["text"][:, 0].tolist() == [4, 5, 6, 7]
        assert type(named["residuals"]) is tuple
        assert named["residuals"][0].tolist() == [4, 6]
        assert named["residuals"][1] is kwargs["residuals"][1]
        assert named["added"]["time_ids"].tolist() == [2, 3]
        assert named["added"]["images"][0].tolist() == [[2], [3]]
        assert named["added"]["images"][1] == "a name"
        assert named["added"]["scale"] == 0.5
        assert named["mask"] is kwargs["mask"]
        assert named["tokens"] is kwargs["tokens"]
        assert named["return_dict"] is False

    def test_the_arguments_are_not_changed(self):
        inner = [torch.arange(4)]
        kwargs = {"inner": {"list": inner}}
        conditional_half((), kwargs, torch.zeros(4, 3))
        assert kwargs["inner"]["list"] is inner
        assert inner[0].tolist() == [0, 1, 2, 3]


def test_the_joined_prediction_has_the_type_of_the_output():
    conditional = torch.tensor([5.0])
    whole = join_halves(conditional, torch.tensor([-2.0]))
    assert whole.tolist() == [3, 5]
    assert with_tensor(conditional, whole) is whole
    assert with_tensor((conditional, "more"), whole) == (whole, "more")
    output = UNet2DConditionOutput(sample=conditional)
    changed = with_tensor(output, whole)
    assert type(changed) is UNet2DConditionOutput
    assert changed.sample is changed["sample"] is changed[0] is whole
    assert output.sample is output[0] is conditional


@pytest.mark.parametrize("axis", [1, 2])
def test_only_the_latents_must_be_equal_in_both_halves(axis):
    """The initial image of Stable Video Diffusion is zero in one half."""
    unet = SimpleNamespace(config=SimpleNamespace(in_channels=8, out_channels=4))
    shape = [2, 5, 5, 6, 6]
    shape[axis] = 8
    sample = torch.zeros(shape)
    sample.narrow(axis, 4, 4)[1] = 1
    assert why_not_two_halves(None, unet, sample) == ""
    sample.narrow(axis, 3, 1)[1] = 1
    assert "not the same latents" in why_not_two_halves(None, unet, sample)


def test_a_video_with_as_many_frames_as_input_channels():
    """In Stable Video Diffusion the frames come before the channels."""
    unet = SimpleNamespace(config=SimpleNamespace(in_channels=8, out_channels=4))
    sample = torch.zeros(2, 8, 8, 6, 6)
    sample[1, :, 4:] = 1
    assert why_not_two_halves(None, unet, sample) == ""


class TestArgumentsOfProcessors:
    def test_masks_of_two_ip_adapters_stay_whole(self):
        masks = torch.zeros(2, 1, 8, 8)
        kwargs = {"cross_attention_kwargs": {"ip_adapter_masks": masks, "gligen": {"boxes": torch.zeros(2, 3, 4)}}}
        _, halved = conditional_half((), kwargs, torch.zeros(2, 4, 8, 8))
        assert halved["cross_attention_kwargs"]["ip_adapter_masks"] is masks
        assert halved["cross_attention_kwargs"]["gligen"]["boxes"].shape == (1, 3, 4)

    @torch.no_grad()
    def test_a_table_with_as_many_rows_as_the_batch_is_refused(self):
        pipe = Pipeline(tiny_unet(), (900, 700, 500))
        apply_deepcache(pipe, REUSE)
        sample, prompt = torch.zeros(2, 4, 8, 8), torch.randn(2, 3, 8)
        with pytest.raises(
            ValueError, match=r"guidance_reuse .*'regions' of its cross_attention_kwargs has as many rows"
        ):
            pipe.unet(sample, 900, prompt, cross_attention_kwargs={"regions": {"boxes": torch.zeros(2, 4)}})

    @torch.no_grad()
    def test_a_table_with_other_rows_is_passed_on(self):
        pipe = Pipeline(tiny_unet(), (900, 700, 500))
        engine = apply_deepcache(pipe, REUSE)
        tables = []

        class Reads:
            def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, regions=None):
                tables.append(regions)
                return AttnProcessor()(attn, hidden_states, encoder_hidden_states, attention_mask)

        pipe.unet.set_attn_processor(Reads())
        sample, prompt, regions = torch.zeros(2, 4, 8, 8), torch.randn(2, 3, 8), torch.zeros(3, 4)
        for timestep in pipe.scheduler.timesteps:
            pipe.unet(sample, timestep, prompt, cross_attention_kwargs={"regions": regions})
        assert tables
        assert all(each is regions for each in tables)
        assert engine.stats.halved_steps == 2


def test_the_guidance_of_the_running_pipeline_counts():
    """Two pipelines with one U-Net: only one of them guides."""
    first = tiny_pipeline()
    apply_deepcache(first, DeepCacheConfig(2, guidance_reuse=True))
    second = tiny_pipeline(first.unet)
    with pytest.raises(ValueError, match="classifier-free guidance is disabled"):
        generate(second, guidance_scale=1.0)
    generate(first, guidance_scale=7.5)
    with pytest.raises(ValueError, match="classifier-free guidance is disabled"):
        generate(second, guidance_scale=1.0)
    found = generate(second, guidance_scale=7.5)
    assert torch.equal(found, generate(first, guidance_scale=7.5))
