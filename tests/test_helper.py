"""The interface of the reference package, and the cases that it gets wrong."""

import copy
import inspect

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache, remove_deepcache
from DeepCache.config import PRESETS
from DeepCache.schedule import BranchSchedule, UniformSchedule
from tests.engine.dummy_unet import DummyUNet, Pipeline
from tests.engine.tiny_pipeline import generate, tiny_pipeline, tiny_unet
from tests.releases import COUNTS


@pytest.fixture
def pipe():
    return tiny_pipeline()


def cached(pipe, interval=3, branch=0, **call):
    """The latents of a helper without earlier runs."""
    fresh = tiny_pipeline(copy.deepcopy(pipe.unet))
    with DeepCacheSDHelper(fresh) as helper:
        helper.set_params(interval, branch)
        return generate(fresh, **call)


def test_the_documented_steps(pipe):
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(
        cache_interval=3,
        cache_branch_id=0,
    )
    helper.enable()
    generate(pipe)
    assert helper.stats.pattern == "F..F.."
    assert (helper.stats.full_steps, helper.stats.shallow_steps) == (2, 4)
    helper.disable()


def test_interval_one_and_disable_are_bit_identical(pipe):
    plain = generate(pipe)
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=1)
    helper.enable()
    assert torch.equal(generate(pipe), plain)
    assert helper.stats.bytes_kept == 0
    helper.set_params(cache_interval=3)
    assert not torch.equal(generate(pipe), plain)
    helper.disable()
    assert torch.equal(generate(pipe), plain)


def test_disable_restores_the_pipeline(pipe):
    def everything():
        return (
            type(pipe),
            set(pipe.__dict__),
            {m: {k: str(v) for k, v in m.__dict__.items()} for m in pipe.unet.modules()},
        )

    generate(pipe)
    before = everything()
    helper = DeepCacheSDHelper(pipe)
    helper.enable()
    generate(pipe)
    helper.disable()
    assert everything() == before


def test_context_manager(pipe):
    plain = generate(pipe)
    with DeepCacheSDHelper(pipe) as helper:
        helper.set_params(cache_interval=2)
        generate(pipe)
    assert helper.stats.pattern == "F.F.F."
    assert torch.equal(generate(pipe), plain)


def test_context_manager_disables_after_an_exception(pipe):
    plain = generate(pipe)
    with pytest.raises(ZeroDivisionError), DeepCacheSDHelper(pipe):
        _ = 1 / 0
    assert torch.equal(generate(pipe), plain)


def test_set_params_while_enabled_takes_effect_at_the_next_run(pipe):
    with DeepCacheSDHelper(pipe) as helper:
        for interval, branch, pattern in ((2, 0, "F.F.F."), (3, 3, "F..F.."), (1, 0, "FFFFFF"), (4, 1, "F...F.")):
            helper.set_params(interval, branch)
            assert torch.equal(generate(pipe), cached(pipe, interval, branch))
            assert helper.stats.pattern == pattern


def test_enable_and_disable_are_idempotent(pipe):
    plain = generate(pipe)
    helper = DeepCacheSDHelper(pipe)
    helper.disable()
    helper.set_params(3)
    helper.enable()
    helper.enable()
    assert torch.equal(generate(pipe), cached(pipe))
    helper.disable()
    helper.disable()
    assert torch.equal(generate(pipe), plain)
    helper.enable()
    assert torch.equal(generate(pipe), cached(pipe))


def test_enable_on_another_pipeline(pipe):
    other = tiny_pipeline(tiny_unet(seed=1))
    plain = generate(pipe)
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(3)
    helper.enable()
    helper.enable(pipe=other)
    assert torch.equal(generate(other), cached(other))
    assert torch.equal(generate(pipe), plain)
    late = DeepCacheSDHelper()
    late.set_params(3)
    late.enable(pipe)
    assert torch.equal(generate(pipe), cached(pipe))


@pytest.mark.parametrize("second", [{"steps": 4}, {"batch": 2}, {"size": 128}, {"guidance_scale": 1.0}, {"seed": 9}])
def test_second_run_with_other_settings_starts_full(pipe, second):
    with DeepCacheSDHelper(pipe) as helper:
        generate(pipe)
        assert torch.equal(generate(pipe, **second), cached(pipe, **second))
        assert helper.stats.pattern.startswith("F..")


@pytest.mark.parametrize("strength", [0.9, 0.5, 0.2])
def test_image_to_image_with_another_strength_starts_full_each_time(pipe, strength):
    pipe = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)

    def regenerate(strength):
        generator = torch.Generator().manual_seed(0)
        image, prompt = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 3, 8, generator=generator)
        return pipe(
            prompt_embeds=prompt,
            negative_prompt_embeds=prompt,
            image=image,
            strength=strength,
            num_inference_steps=10,
            generator=generator,
            output_type="latent",
        ).images

    with DeepCacheSDHelper(pipe):
        alone = regenerate(strength)
    with DeepCacheSDHelper(pipe) as helper:
        regenerate(0.7)
        assert torch.equal(regenerate(strength), alone)
        assert helper.stats.pattern == "F..F..F..F"[: round(10 * strength)]


@pytest.mark.integration("U-Net swapped while DeepCache is enabled")
def test_swapped_unet_is_followed(pipe):
    first, second = pipe.unet, tiny_unet(seed=1)
    with DeepCacheSDHelper(pipe) as helper:
        generate(pipe)
        pipe.unet = second
        assert torch.equal(generate(pipe), cached(pipe))
        assert helper.stats.pattern == "F..F.."
        assert not first._forward_hooks
    assert not second._forward_hooks


@pytest.mark.integration("U-Net swapped while DeepCache is enabled", "a U-Net that cannot be cut raises an error")
def test_swapped_unet_that_cannot_be_cut_is_refused():
    pipe = Pipeline(DummyUNet())
    with DeepCacheSDHelper(pipe) as helper:
        helper.set_params(2, 3)
        with pytest.raises(ValueError, match=r"cache_branch_id must be between 0 and 2 .*got 3"):
            pipe.unet = DummyUNet(mid_block=False)


def test_latest_engine_replaces_the_previous_one(pipe):
    first = DeepCacheSDHelper(pipe)
    first.set_params(2)
    first.enable()
    generate(pipe)
    second = DeepCacheSDHelper(pipe)
    second.set_params(3)
    second.enable()
    assert torch.equal(generate(pipe), cached(pipe))
    first.disable()
    assert torch.equal(generate(pipe), cached(pipe))
    assert (first.stats.pattern, second.stats.pattern) == ("F.F.F.", "F..F..")
    engine = apply_deepcache(pipe, DeepCacheConfig(4))
    generate(pipe)
    assert engine.stats.pattern == "F...F."
    remove_deepcache(pipe)
    remove_deepcache(pipe)
    assert not pipe.unet._forward_hooks


def test_apply_deepcache_is_the_same_engine(pipe):
    apply_deepcache(pipe, DeepCacheConfig(cache_interval=3, cache_branch_id=1, forecast="none"))
    assert torch.equal(generate(pipe), cached(pipe, 3, 1))
    remove_deepcache(pipe)


def test_defaults_of_helper_and_config_differ_in_the_forecast(pipe):
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=2)
    with helper:
        reused = generate(pipe)
    apply_deepcache(pipe, DeepCacheConfig(2, forecast="none"))
    assert torch.equal(generate(pipe), reused)
    apply_deepcache(pipe, DeepCacheConfig(2))
    forecast = generate(pipe)
    assert not torch.equal(forecast, reused)
    apply_deepcache(pipe, DeepCacheConfig(2, forecast="limited"))
    assert torch.equal(generate(pipe), forecast)
    remove_deepcache(pipe)


def test_helper_without_settings_reuses(pipe):
    with DeepCacheSDHelper(pipe):
        found = generate(pipe)
    apply_deepcache(pipe, DeepCacheConfig(forecast="none"))
    assert torch.equal(generate(pipe), found)
    remove_deepcache(pipe)


def test_params_have_the_keys_of_the_reference_package(pipe):
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=5, cache_branch_id=4)
    assert helper.params == {"cache_interval": 5, "cache_layer_id": 1, "cache_block_id": 1, "skip_mode": "uniform"}
    unbound = DeepCacheSDHelper()
    unbound.set_params(cache_interval=5, cache_branch_id=7)
    assert unbound.params == {"cache_interval": 5, "cache_layer_id": 1, "cache_block_id": 2, "skip_mode": "uniform"}


def test_function_dict_has_forward_methods(pipe):
    helper = DeepCacheSDHelper(pipe)
    assert helper.function_dict == {}
    helper.enable()
    entries = helper.function_dict
    assert entries["unet_forward"] == pipe.unet.forward
    assert entries["up", "resnet", 0, 0] == pipe.unet.up_blocks[-1].resnets[-1].forward
    assert all(callable(function) for function in entries.values())
    helper.disable()
    assert helper.function_dict == {}


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        ({"cache_interval": 3, "skip_mode": "non-uniform", "forecast": "none"}, "F.F..."),
        ({"cache_interval": 2, "forecast": "linear"}, "F.F.F."),
        ({"cache_interval": 3, "forecast": "quadratic", "guidance_reuse": True}, "F..F.."),
        ({"schedule": BranchSchedule(UniformSchedule(3), after=(0, 2)), "forecast": "none"}, "F02F02"),
        ({"cache_interval": 3, "between": "skipped", "forecast": "response"}, "F--F--"),
        ({"cache_interval": 3, "between": "alternating", "forecast": "limited"}, "F.-F.-"),
        ({"cache_interval": 4, "skip_mode": "adaptive", "threshold": 1e9, "forecast": "none"}, "FFF..F"),
    ],
)
def test_every_setting_of_the_configuration_is_a_parameter(pipe, values, pattern):
    with DeepCacheSDHelper(pipe) as helper:
        helper.set_params(**values)
        found = generate(pipe)
        assert helper.stats.pattern == pattern
    apply_deepcache(pipe, DeepCacheConfig(**values))
    assert torch.equal(generate(pipe), found)
    remove_deepcache(pipe)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("guidance_scale", [2, 7.5, None])
def test_preset_sets_all_settings(pipe, name, guidance_scale):
    expected = DeepCacheConfig.preset(name, guidance_scale, type(pipe.scheduler).__name__)
    with DeepCacheSDHelper(pipe) as helper:
        helper.set_params(cache_interval=4, cache_branch_id=2)
        helper.set_params(preset=name, guidance_scale=guidance_scale)
        assert helper._engine.config == expected
        found = generate(pipe)
        # The next call sets everything again.
        helper.set_params(cache_interval=3)
        assert helper._engine.config == DeepCacheConfig(3, forecast="none")
    apply_deepcache(pipe, expected)
    assert torch.equal(generate(pipe), found)
    remove_deepcache(pipe)


def test_signature_of_set_params():
    parameters = list(inspect.signature(DeepCacheSDHelper.set_params).parameters.values())[1:]
    assert [(each.name, each.default) for each in parameters[:3]] == [
        ("cache_interval", 1),
        ("cache_branch_id", 0),
        ("skip_mode", "uniform"),
    ]
    assert [each.name for each in parameters if each.kind is each.KEYWORD_ONLY] == ["preset", "guidance_scale"]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"cache_interval": 0}, ValueError, "cache_interval must be 1 or more, got 0"),
        ({"cache_branch_id": -1}, ValueError, "cache_branch_id must be 0 or more, got -1"),
        ({"cache_branch_id": 6}, ValueError, "cache_branch_id must be between 0 and 5 .*UNet2DConditionModel, got 6"),
        (
            {"skip_mode": "jump"},
            ValueError,
            "skip_mode must be one of 'uniform', 'non-uniform', 'adaptive', got 'jump'",
        ),
        (
            {"forecast": "cubic"},
            ValueError,
            "forecast must be one of 'none', 'linear', 'quadratic', 'limited', 'response', got",
        ),
        (
            {"schedule": BranchSchedule(UniformSchedule(3), after=(0, 6))},
            ValueError,
            "must be between 0 and 5 .*UNet2DConditionModel, got 6",
        ),
        ({"preset": "best"}, ValueError, "preset must be one of faithful, balanced, fast, got 'best'"),
        (
            {"preset": "fast", "cache_interval": 3, "forecast": "linear"},
            ValueError,
            "preset='fast' cannot be combined with cache_interval, forecast",
        ),
        (
            {"guidance_scale": 7.5},
            ValueError,
            "guidance_scale requires a preset, got 7.5 without one. Add preset",
        ),
        ({"preset": "fast", "guidance_scale": "7.5"}, TypeError, "guidance_scale must be a number, got '7.5'"),
    ],
)
def test_invalid_settings_are_refused_and_change_nothing(pipe, values, error, message):
    with DeepCacheSDHelper(pipe) as helper:
        helper.set_params(3)
        with pytest.raises(error, match=message):
            helper.set_params(**values)
        assert torch.equal(generate(pipe), cached(pipe))


def test_branch_too_deep_is_refused_at_enable(pipe):
    helper = DeepCacheSDHelper()
    helper.set_params(3, 6)
    with pytest.raises(ValueError, match=r"between 0 and 5 .*got 6"):
        helper.enable(pipe)
    assert not pipe.unet._forward_hooks


def test_pipeline_without_a_unet_is_refused():
    class Transformer:
        transformer = torch.nn.Linear(1, 1)
        scheduler = None

    with pytest.raises(TypeError, match=r"long skips\); Transformer has none"):
        DeepCacheSDHelper(Transformer()).enable()
    with pytest.raises(TypeError, match="DeepCache needs a denoiser"):
        apply_deepcache(Transformer())
    with pytest.raises(ValueError, match="no pipeline to enable"):
        DeepCacheSDHelper().enable()


@COUNTS
def test_stats_before_and_after_a_run():
    helper = DeepCacheSDHelper()
    assert str(helper.stats) == "no trajectory yet"
    pipe = tiny_pipeline()
    helper.set_params(3)
    helper.enable(pipe)
    assert str(helper.stats) == "no trajectory yet"
    generate(pipe)
    stats = helper.stats
    # The deep feature of branch 0: 8 channels of 8x8, conditional and unconditional, in float32.
    assert stats.bytes_kept == 2 * 8 * 8 * 8 * 4
    assert 0 < stats.mac_share < 1
    assert str(stats) == (
        f"F..F..\n2 full and 4 shallow steps, 0.00 MiB kept, multiply-accumulates of the U-Net: {stats.mac_share:.1%}"
    )


@pytest.mark.integration("save_pretrained")
def test_save_pretrained_while_enabled_saves_the_plain_pipeline(pipe, tmp_path):
    plain = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    with DeepCacheSDHelper(pipe):
        generate(pipe)
        pipe.save_pretrained(tmp_path)
    index = (tmp_path / "model_index.json").read_text()
    assert '"StableDiffusionPipeline"' in index
    saved = type(pipe.unet).from_pretrained(tmp_path / "unet").state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in plain.items())


@pytest.mark.integration("deepcopy")
def test_deep_copy_of_an_enabled_pipeline_is_independent(pipe):
    with DeepCacheSDHelper(pipe) as helper:
        twin = copy.deepcopy(pipe)
        assert torch.equal(generate(twin), cached(pipe))
        assert helper.stats.pattern == ""
        remove_deepcache(twin)
        assert type(twin) is type(tiny_pipeline())
        assert not twin.unet._forward_hooks
        assert torch.equal(generate(pipe), cached(pipe))


def test_enable_uses_the_assigned_pipeline():
    first, second = Pipeline(DummyUNet()), Pipeline(DummyUNet())
    helper = DeepCacheSDHelper(first)
    helper.set_params(cache_interval=2)
    helper.enable()
    helper.pipe = second
    helper.set_params(cache_interval=3)
    helper.enable()
    assert [second.call(1, step) for step in range(3)] == [33, 33, 33]
    assert helper.stats.pattern == "F.."
    assert [first.call(1, step) for step in range(2)] == [33, 43]
    helper.disable()
    assert [second.call(1, step) for step in range(2)] == [33, 43]


@pytest.mark.parametrize(
    "name",
    ["is_enter_position", "wrap_unet_forward", "wrap_block_forward", "cached_output", "cur_timestep", "start_timestep"],
)
def test_overrides_without_effect_are_refused(name, monkeypatch):
    message = rf"overrides {name}, which has no effect in DeepCache. .*ExplicitSchedule"
    with pytest.raises(TypeError, match=f"Mine {message}"):
        type("Mine", (DeepCacheSDHelper,), {name: lambda self: None})
    helper = DeepCacheSDHelper(Pipeline(DummyUNet()))
    with pytest.raises(TypeError, match=message):
        setattr(helper, name, lambda: None)
    monkeypatch.setattr(DeepCacheSDHelper, name, lambda self: None)
    with pytest.raises(TypeError, match=message):
        DeepCacheSDHelper(Pipeline(DummyUNet())).enable()


def test_subclass_may_override_set_params():
    class Mine(DeepCacheSDHelper):
        def set_params(self, **params):
            super().set_params(**params | {"cache_interval": 2})

    pipe = Pipeline(DummyUNet())
    with Mine(pipe) as helper:
        helper.set_params(cache_branch_id=1)
        pipe.call(1, 0), pipe.call(1, 1)
        assert helper.stats.pattern == "F."


def test_settings_without_a_pipeline_apply_at_the_next_enable():
    pipe = Pipeline(DummyUNet())
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=3)
    helper.enable()
    helper.disable()
    helper.pipe = None
    helper.set_params(cache_interval=2)
    helper.pipe = pipe
    helper.enable()
    for step in range(4):
        pipe.call(1, step)
    assert helper.stats.pattern == "F.F."
