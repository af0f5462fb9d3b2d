"""Subclasses of the helper with their own `is_skip_step`, compared with the reference package."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from benchmarks.harness.reference_package import reference_helper_class
from DeepCache import DeepCacheSDHelper, ExplicitSchedule
from tests.engine.tiny_pipeline import generate, tiny_pipeline, tiny_unet

STEPS = 8


def first_steps_full(base):
    class Late(base):
        """Nothing is cached in the first steps."""

        def is_skip_step(self, block_i, layer_i, blocktype="down"):
            rule = super().is_skip_step(block_i, layer_i, blocktype)
            return rule and self.cur_timestep >= 4

    return Late


def by_params(base):
    class Windowed(base):
        """Written out, as research code has it."""

        def is_skip_step(self, block_i, layer_i, blocktype="down"):
            if self.start_timestep is None:
                self.first = self.cur_timestep
            if self.cur_timestep in (0, 3, 7):
                return False
            if block_i > self.params["cache_block_id"] or blocktype == "mid":
                return True
            if block_i < self.params["cache_block_id"]:
                return False
            cut = self.params["cache_layer_id"]
            return layer_i >= cut if blocktype == "down" else layer_i > cut

    return Windowed


RULES = [(first_steps_full, 2, "FFFFF.F."), (by_params, 3, "F..F...F")]


def denoise(pipe, first=0):
    """Skips the first timesteps, as `strength` does."""
    scheduler, unet = pipe.scheduler, pipe.unet
    scheduler.set_timesteps(STEPS)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    prompt = torch.ones(1, 3, 8)
    with torch.no_grad():
        for t in scheduler.timesteps[first:]:
            latents = scheduler.step(unet(latents, t, prompt).sample, t, latents).prev_sample
    return latents


@pytest.mark.parametrize("branch", range(6))
@pytest.mark.parametrize(("rule", "interval", "pattern"), RULES)
def test_image_equals_that_of_the_same_subclass_of_the_reference(rule, interval, pattern, branch):
    images = []
    for base in (reference_helper_class(), DeepCacheSDHelper):
        pipe = tiny_pipeline()
        helper = rule(base)(pipe)
        helper.set_params(cache_interval=interval, cache_branch_id=branch)
        helper.enable()
        images.append(denoise(pipe))
    assert helper.stats.pattern == pattern
    assert torch.equal(*images)


@pytest.mark.parametrize(("rule", "interval", "pattern"), [(first_steps_full, 2, "FFF.F."), (by_params, 3, "FF...F")])
def test_timesteps_are_counted_from_the_start_of_the_list(rule, interval, pattern):
    pipe = tiny_pipeline()
    helper = rule(DeepCacheSDHelper)(pipe)
    helper.set_params(cache_interval=interval)
    helper.enable()
    denoise(pipe, first=2)
    assert helper.stats.pattern == pattern


def test_rule_sees_settings_changed_while_enabled():
    pipe = tiny_pipeline()
    helper = first_steps_full(DeepCacheSDHelper)(pipe)
    helper.set_params(cache_interval=3)
    helper.enable()
    denoise(pipe)
    assert helper.stats.pattern == "FFFF..F."
    helper.set_params(cache_interval=4)
    denoise(pipe)
    assert helper.stats.pattern == "FFFFF..."


def test_rule_assigned_to_a_helper_or_the_class(monkeypatch):
    pipe = tiny_pipeline()
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=2)
    helper.enable()
    denoise(pipe)
    assert helper.stats.pattern == "F.F.F.F."
    helper.is_skip_step = lambda block, layer, blocktype="down": False
    denoise(pipe)
    assert helper.stats.pattern == "F" * STEPS
    helper.disable()
    rule = DeepCacheSDHelper.is_skip_step
    late = lambda self, *layer: self.cur_timestep > 4 and rule(self, *layer)  # noqa: E731
    monkeypatch.setattr(DeepCacheSDHelper, "is_skip_step", late)
    with DeepCacheSDHelper(pipe) as another:
        another.set_params(cache_interval=4)
        denoise(pipe)
        assert another.stats.pattern == "FFFFF..."


def test_rule_that_matches_no_step_is_refused_before_the_first_call():
    class Upwards(DeepCacheSDHelper):
        def is_skip_step(self, block_i, layer_i, blocktype="down"):
            return blocktype == "mid"

    pipe = tiny_pipeline()
    message = r"Upwards.is_skip_step\(\) skips mid 0 block\[0\] at step 0, but a shallow step at branch 0 skips down 0"
    with Upwards(pipe), pytest.raises(ValueError, match=message):
        denoise(pipe)


@pytest.mark.parametrize("other", ["schedule", "skip_mode"])
def test_rule_with_another_schedule_is_refused(other):
    helper = by_params(DeepCacheSDHelper)(tiny_pipeline())
    value = {"schedule": ExplicitSchedule((0, 2), branch=0), "skip_mode": "adaptive"}[other]
    with pytest.raises(ValueError, match=rf"Windowed.is_skip_step\(\) cannot be combined with {other}"):
        helper.set_params(**{other: value})


def test_rule_for_several_denoisers_is_refused():
    pipe = SimpleNamespace(components={"decoder": tiny_unet(), "super_res": tiny_unet()})
    with pytest.raises(TypeError, match=r"is_skip_step\(\) requires one U-Net"):
        by_params(DeepCacheSDHelper)(pipe).enable()


def test_rule_is_copied_with_its_pipeline():
    pipe = tiny_pipeline()
    helper = by_params(DeepCacheSDHelper)(pipe)
    helper.set_params(cache_interval=3)
    helper.enable()
    expected = denoise(pipe)
    assert torch.equal(denoise(copy.deepcopy(pipe)), expected)


def test_names_of_the_reference():
    pipe = tiny_pipeline()
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=3, cache_branch_id=4)
    assert (helper.cur_timestep, helper.start_timestep) == (0, None)
    helper.wrap_modules()
    seen = []
    pipe.unet.register_forward_hook(lambda *call: seen.append((helper.start_timestep, helper.cur_timestep)))
    denoise(pipe, first=3)
    assert seen == [(3, step) for step in range(3, STEPS)]
    assert helper.is_enter_position(1, 1)
    assert not helper.is_enter_position(1, 0)
    assert helper.is_skip_step(1, 1)
    helper.reset_states()
    assert (helper.cur_timestep, helper.start_timestep) == (0, None)
    helper.unwrap_modules()
    denoise(pipe)
    assert helper.stats.pattern == "F..F."
    with pytest.raises(AttributeError, match="has no cached_output"):
        helper.cached_output  # noqa: B018
    for name in ("wrap_unet_forward", "wrap_block_forward"):
        with pytest.raises(NotImplementedError, match="does not replace forward"):
            getattr(helper, name)()


def test_skipped_layers_are_those_of_the_reference():
    ours, theirs = DeepCacheSDHelper(tiny_pipeline()), reference_helper_class()(tiny_pipeline())
    layers = [(block, layer, path) for block in range(2) for layer in range(3) for path in ("down", "mid", "up")]
    for helper in (ours, theirs):
        helper.set_params(cache_interval=3, cache_branch_id=1)
        helper.enable()
    seen = {}

    def ask(helper):
        seen.setdefault(helper, []).append([helper.is_skip_step(*layer) for layer in layers])

    for helper in (ours, theirs):
        helper.pipe.unet.register_forward_hook(lambda *call, helper=helper: ask(helper))
        denoise(helper.pipe)
    assert seen[ours] == seen[theirs]


def test_methods_that_enable_and_disable_call():
    calls = []

    class Noting(DeepCacheSDHelper):
        def wrap_modules(self):
            calls.append("wrap")
            super().wrap_modules()

        def unwrap_modules(self):
            calls.append("unwrap")
            super().unwrap_modules()

        def reset_states(self):
            calls.append("reset")
            super().reset_states()

    pipe = tiny_pipeline()
    helper = Noting(pipe)
    helper.enable()
    assert calls == ["reset", "wrap"]
    helper.set_params(cache_interval=4)
    denoise(pipe)
    assert helper.stats.pattern == "F...F..."
    helper.disable()
    assert calls == ["reset", "wrap", "unwrap", "reset"]


def test_rule_works_with_a_pipeline_of_diffusers():
    pipe = tiny_pipeline()
    helper = by_params(DeepCacheSDHelper)(pipe)
    helper.set_params(cache_interval=3)
    with helper:
        generate(pipe, steps=STEPS)
        assert helper.stats.pattern == "F..F...F"
