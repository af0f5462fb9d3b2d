import pytest
import torch

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache
from tests.engine.dummy_unet import DummyUNet, Pipeline
from tests.engine.slots import kept_slots
from tests.engine.tiny_pipeline import generate, tiny_pipeline, tiny_unet
from tests.releases import COUNTS, before_diffusers


@pytest.fixture
def dummy():
    pipe = Pipeline(DummyUNet())
    return pipe, apply_deepcache(pipe, DeepCacheConfig(cache_interval=3, forecast="none"))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("step", [0, 1, 3])
def test_after_an_error_inside_the_unet_the_next_run_is_clean(error, step):
    pipe = tiny_pipeline()
    clean = tiny_pipeline()
    apply_deepcache(clean, DeepCacheConfig(3))
    expected = generate(clean)
    engine = apply_deepcache(pipe, DeepCacheConfig(3))
    calls = []

    def fail(module, args):
        calls.append(module)
        if len(calls) == step + 1:
            raise error

    registered = list(pipe.unet.named_modules())
    handle = pipe.unet.up_blocks[-1].register_forward_pre_hook(fail)
    with pytest.raises(error):
        generate(pipe, seed=1)
    handle.remove()
    assert list(pipe.unet.named_modules()) == registered
    assert torch.equal(generate(pipe), expected)
    assert engine.stats.pattern == "F..F.."


def test_disable_reverts_an_interrupted_shallow_step():
    pipe = tiny_pipeline()
    plain = generate(pipe)
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(2)
    helper.enable()

    def interrupt(module, args):
        if pipe.unet.__dict__.get("mid_block") is not None:
            raise KeyboardInterrupt

    handle = pipe.unet.conv_in.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(pipe)
    handle.remove()
    helper.disable()
    assert torch.equal(generate(pipe), plain)


def test_an_error_outside_the_unet_leaves_no_state():
    pipe = tiny_pipeline()
    engine = apply_deepcache(pipe, DeepCacheConfig(3))
    expected = generate(pipe)

    def fail(pipe, step, timestep, tensors):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        generate(pipe, seed=1, callback_on_step_end=fail)
    assert torch.equal(generate(pipe), expected)
    assert engine.stats.pattern == "F..F.."


@before_diffusers("0.35", "a pipeline does not reset its components at its end")
def test_an_interrupted_pipeline_leaves_no_state():
    pipe = tiny_pipeline()
    engine = apply_deepcache(pipe, DeepCacheConfig(3))
    expected = generate(pipe)

    def interrupt(pipe, step, timestep, tensors):
        pipe._interrupt = step == 1
        return tensors

    generate(pipe, seed=1, callback_on_step_end=interrupt)
    assert not kept_slots(engine)
    assert torch.equal(generate(pipe), expected)


def test_the_end_of_a_pipeline_run_frees_the_memory():
    pipe = tiny_pipeline()
    engine = apply_deepcache(pipe, DeepCacheConfig(3))

    def look(pipe, step, timestep, tensors):
        if step < 5:
            assert len(kept_slots(engine)) == 1
        return tensors

    generate(pipe, callback_on_step_end=look)
    assert not kept_slots(engine)


@pytest.mark.parametrize(
    "change",
    [
        lambda sample: torch.cat([sample, sample]),
        lambda sample: torch.nn.functional.interpolate(sample, scale_factor=2.0),
        lambda sample: sample.double(),
    ],
    ids=["batch", "size", "dtype"],
)
def test_a_step_that_the_stored_feature_does_not_fit_is_full(change):
    pipe = tiny_pipeline()
    engine = apply_deepcache(pipe, DeepCacheConfig(4))
    pipe.scheduler.set_timesteps(6)
    sample, prompt = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 8)
    for step, t in enumerate(pipe.scheduler.timesteps):
        if step == 2:
            sample = change(sample)
            prompt = prompt.expand(sample.shape[0], -1, -1).to(sample.dtype)
            pipe.unet.to(sample.dtype)
        with torch.no_grad():
            pipe.unet(sample, t, encoder_hidden_states=prompt)
    assert engine.stats.pattern == "F.F.F."


def test_two_interleaved_pipelines_are_independent():
    first, second = Pipeline(DummyUNet()), Pipeline(DummyUNet())
    apply_deepcache(first, DeepCacheConfig(2))
    apply_deepcache(second, DeepCacheConfig(2))
    assert (first.call(1, 0), second.call(2, 0)) == (33, 56)
    assert (first.call(3, 1), second.call(3, 1)) == (32 + 3, 54 + 3)


def test_every_call_of_a_step_has_its_own_feature(dummy):
    pipe, engine = dummy
    assert (pipe.call(1, 0), pipe.call(2, 0)) == (33, 56)
    # Only now it is known that there are two at every step.
    assert (pipe.call(1, 1), pipe.call(2, 1)) == (43, 66)
    assert (pipe.call(3, 2), pipe.call(3, 2)) == (42 + 3, 64 + 3)
    assert engine.stats.pattern == "FF."
    assert engine.stats.reasons == ((1, "not known yet which call of the step before it continues"),)
    assert engine.stats.bytes_kept == 8


def test_a_list_of_timesteps_run_again_starts_full(dummy):
    pipe, engine = dummy
    for _ in range(2):
        assert [pipe.call(1, step) for step in range(7)] == [33, 33, 33, 63, 63, 63, 93]
        assert engine.stats.pattern == "F..F..F"


@pytest.mark.parametrize(
    "kind",
    [int, float, lambda t: t.clone(), lambda t: t.expand(4), lambda t: t[None]],
    ids=["int", "float", "copy", "expanded", "1-d"],
)
@pytest.mark.parametrize("keyword", [False, True])
def test_a_timestep_of_any_kind_and_by_keyword(kind, keyword):
    unet = tiny_unet()
    pipe = Pipeline(unet, timesteps=(900, 700, 500, 300))
    engine = apply_deepcache(pipe, DeepCacheConfig(2))
    for t in pipe.scheduler.timesteps:
        sample, prompt = torch.zeros(4, 4, 8, 8), torch.zeros(4, 3, 8)
        with torch.no_grad():
            if keyword:
                unet(sample=sample, timestep=kind(t), encoder_hidden_states=prompt)
            else:
                unet(sample, kind(t), prompt)
    assert engine.stats.pattern == "F.F."


def test_a_call_without_a_timestep_raises(dummy):
    pipe, _ = dummy
    with pytest.raises(TypeError, match="without its argument 'when'"):
        pipe.unet(torch.zeros(1))
    assert pipe.call(1, 0) == 33


@COUNTS
def test_stats_report_that_the_cost_cannot_be_counted():
    class Stubborn(DummyUNet):
        def forward(self, noisy, when):
            if noisy.is_meta:
                raise NotImplementedError("no meta here")
            return super().forward(noisy, when)

    pipe = Pipeline(Stubborn())
    engine = apply_deepcache(pipe, DeepCacheConfig(2))
    pipe.call(1, 0)
    assert engine.stats.mac_share is None
    assert str(engine.stats).endswith("not counted (NotImplementedError: no meta here)")


def test_every_other_entry_of_a_longer_list_counts_as_one_step():
    pipe = Pipeline(DummyUNet())
    pipe.scheduler.timesteps = torch.arange(20)[3::2]
    engine = apply_deepcache(pipe, DeepCacheConfig(3))
    for step in range(7):
        pipe.call(1, step)
    assert engine.stats.pattern == "F..F..F"
