"""Who runs in a benchmark: each generates what it should, side by side with the others, and leaves no trace."""

from __future__ import annotations

import gc
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from benchmarks.harness.reference_package import FOLDER, reference_helper_class
from DeepCache import DeepCacheConfig
from DeepCache.bench.benchmark_case import BASELINE, DEEPCACHE, FEWER_STEPS, REFERENCE, BenchmarkCase, bytes_of
from DeepCache.bench.variants import parse_variant
from DeepCache.bench.workload import PipelineCall
from DeepCache.engine import stats
from DeepCache.engine.attach import apply_deepcache
from tests.bench.small_models import unconditional_pipeline
from tests.tune.small_pipeline import small_pipeline

CALL = PipelineCall(batch=2, size=(16, 16), steps=5, guidance=3.0, seed=3)
REUSE = parse_variant("I=2")
LINEAR = parse_variant("I=3 linear guidance-reuse")

pytestmark = pytest.mark.usefixtures("remembered_costs")


def latents_of(pipe, run):
    """The latents that are decoded, which all cases of a pipeline have in common."""
    generated = []
    handle = pipe.vae.decoder.register_forward_pre_hook(lambda _, args: generated.append(args[0].clone()))
    run()
    handle.remove()
    (latents,) = generated
    return latents


def alone(steps=CALL.steps, config=None, reference=None):
    """What a separate pipeline generates, with DeepCache or the reference package as their users put them on."""
    pipe = small_pipeline()
    if config is not None:
        apply_deepcache(pipe, config)
    if reference is not None:
        helper = reference_helper_class()(pipe=pipe)
        helper.set_params(cache_interval=reference.cache_interval, cache_branch_id=reference.cache_branch_id)
        helper.enable()
    generator = torch.Generator().manual_seed(CALL.seed)
    prompts = CALL.arguments(pipe)["prompt"]
    size = dict(zip(("width", "height"), CALL.size, strict=True))
    return latents_of(
        pipe, lambda: pipe(prompts, num_inference_steps=steps, guidance_scale=3.0, generator=generator, **size)
    )


@pytest.fixture
def field():
    """A pipeline and all cases on it."""
    pipe = small_pipeline()
    baseline = BenchmarkCase(pipe, BASELINE, CALL)
    runners = {
        "baseline": baseline,
        "reuse": BenchmarkCase(pipe, DEEPCACHE, CALL, REUSE),
        "linear": BenchmarkCase(pipe, DEEPCACHE, CALL, LINEAR),
        "reference": BenchmarkCase(pipe, REFERENCE, CALL, REUSE, reference=FOLDER),
        "fewer": BenchmarkCase(pipe, FEWER_STEPS, replace(CALL, steps=3), unets_like=baseline),
    }
    return SimpleNamespace(pipe=pipe, **runners, all=runners)


def test_each_case_generates_the_same_as_alone_in_any_order(field):
    expected = {
        "baseline": alone(),
        "reuse": alone(config=REUSE.config),
        "linear": alone(config=LINEAR.config),
        "reference": alone(reference=REUSE.config),
        "fewer": alone(steps=3),
    }
    for order in (list(expected), ["linear", "reference", "fewer", "reuse", "baseline", "linear", "reference"]):
        for name in order:
            one = field.all[name]
            assert torch.equal(latents_of(field.pipe, one.run), expected[name]), name
            one.release()
    # And without a word to them in between.
    for name in ("reuse", "baseline", "reference", "reuse"):
        assert torch.equal(latents_of(field.pipe, field.all[name].run), expected[name]), name
    assert torch.equal(expected["reference"], expected["reuse"])
    for name in ("reuse", "linear", "fewer"):
        assert not torch.equal(expected[name], expected["baseline"])


def test_cases_share_the_weights_of_the_pipeline(field):
    own = dict(chain(field.pipe.unet.named_parameters(), field.pipe.unet.named_buffers()))
    for one in field.all.values():
        unet = one.pipe.unet
        assert unet is not field.pipe.unet
        assert type(unet) is type(field.pipe.unet)
        theirs = dict(chain(unet.named_parameters(), unet.named_buffers()))
        assert theirs.keys() == own.keys()
        assert all(theirs[name] is own[name] for name in own)
        assert {module for module in unet.modules() if module in set(field.pipe.unet.modules())} == set()
    unets = [one.pipe.unet for one in field.all.values()]
    assert len({id(unet) for unet in unets}) == len(unets) - 1
    assert field.fewer.pipe.unet is field.baseline.pipe.unet


def test_tied_weights_stay_tied():
    pipe = unconditional_pipeline()
    first, second = pipe.unet.down_blocks[0].resnets[0], pipe.unet.up_blocks[1].resnets[1]
    second.norm2 = first.norm2
    one = BenchmarkCase(pipe, BASELINE, PipelineCall(1, (16, 16), 2))
    unet = one.pipe.unet
    assert unet.up_blocks[1].resnets[1].norm2 is unet.down_blocks[0].resnets[0].norm2


def test_the_pipeline_is_left_unchanged(field):
    pipe = small_pipeline()
    generator = torch.Generator()
    before = latents_of(pipe, lambda: pipe("a", num_inference_steps=4, generator=generator.manual_seed(1)))
    attributes, kind, unet, components = set(vars(pipe)), type(pipe), pipe.unet, dict(pipe.components)
    of_unet = {name: set(vars(module)) for name, module in unet.named_modules()}
    runners = [
        BenchmarkCase(pipe, BASELINE, CALL),
        BenchmarkCase(pipe, DEEPCACHE, CALL, LINEAR),
        BenchmarkCase(pipe, DEEPCACHE, CALL, REUSE, unet_only=True),
        BenchmarkCase(pipe, REFERENCE, CALL, REUSE, reference=FOLDER),
    ]
    for one in runners:
        one.run()
        one.release()
    assert type(pipe) is kind
    assert set(vars(pipe)) == attributes
    assert pipe.unet is unet
    assert all(pipe.components[name] is component for name, component in components.items())
    for name, module in unet.named_modules():
        assert set(vars(module)) == of_unet[name]
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    after = latents_of(pipe, lambda: pipe("a", num_inference_steps=4, generator=generator.manual_seed(1)))
    assert torch.equal(after, before)


def test_a_case_does_not_use_the_deepcache_of_the_pipeline(field):
    assert field.linear.stats is None
    field.linear.run()
    assert field.linear.stats.pattern == "F..F."
    for one in (field.baseline, field.reference, field.fewer):
        assert one.stats is None
    engine = apply_deepcache(field.pipe, DeepCacheConfig(4))
    field.linear.run()
    assert engine.stats.pattern == ""


def test_statistics_are_counted_once(field, monkeypatch):
    counted = []
    count_costs = stats.count_costs
    monkeypatch.setattr(stats, "count_costs", lambda *args: counted.append(1) or count_costs(*args))
    for _ in range(3):
        field.linear.run()
        assert field.linear.release() == field.linear.stats.bytes_kept
    assert counted == [1]
    engine = apply_deepcache(field.pipe, LINEAR.config)
    CALL(field.pipe)
    assert field.linear.stats == engine.stats


def bytes_alive():
    gc.collect()
    tensors = [found for found in gc.get_objects() if type(found) is torch.Tensor]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def test_nothing_is_kept_after_a_release():
    pipe = small_pipeline()
    ours = BenchmarkCase(pipe, DEEPCACHE, CALL, REUSE, unet_only=True)
    theirs = BenchmarkCase(pipe, REFERENCE, CALL, REUSE, reference=FOLDER, unet_only=True)
    for one in (ours, theirs):
        one.run()
        one.release()
    empty = bytes_alive()
    theirs.run()
    # Both keep the layers of two prompts, with guidance.
    kept = bytes_alive() - empty
    released = theirs.release()
    assert bytes_alive() == empty
    assert released >= kept > 0
    ours.run()
    # One deep feature: 16 channels of 8×8, for two prompts with guidance, of four bytes.
    assert ours.release() == 8 * 16 * 16 * 4 * 4
    assert bytes_alive() == empty


def test_cases_without_caching_keep_no_bytes(field):
    for one in (field.baseline, field.fewer):
        one.run()
        assert one.release() == 0
    assert BenchmarkCase(field.pipe, DEEPCACHE, CALL, REUSE).release() == 0


def test_the_reference_package_keeps_every_output_of_every_layer(field):
    field.reference.run()
    outputs = field.reference._helper.cached_output
    tensors = {}

    def collect(value):
        if isinstance(value, torch.Tensor):
            tensors[id(value)] = value.numel() * value.element_size()
        else:
            for item in value:
                collect(item)

    for output in outputs.values():
        collect(output)
    assert len(tensors) > 10
    assert field.reference.release() == sum(tensors.values())
    assert not outputs


def test_bytes_are_those_of_distinct_tensors_at_any_depth():
    shared, half = torch.zeros(4), torch.zeros(3, dtype=torch.float16)
    outputs = [shared, (shared, [half, None]), UNet2DConditionOutput(sample=torch.zeros(2, 2)), "text"]
    assert bytes_of(outputs) == 16 + 6 + 16
    assert bytes_of(iter([])) == 0


def test_a_reference_package_that_cannot_be_enabled_raises_in_a_run():
    pipe = small_pipeline()
    pipe.unet.mid_block = None
    one = BenchmarkCase(pipe, REFERENCE, CALL, REUSE, reference=FOLDER)
    for _ in range(2):
        with pytest.raises(AttributeError, match="forward"):
            one.run()
        assert one.release() == 0
    BenchmarkCase(pipe, DEEPCACHE, CALL, REUSE).run()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_a_compiled_case_generates_the_same_images():
    pipe = unconditional_pipeline()
    call = PipelineCall(1, (16, 16), 3)
    torch.compiler.reset()
    for method, variant in ((BASELINE, None), (DEEPCACHE, REUSE)):
        images = []
        for mode in ("eager", "compiled"):
            one = BenchmarkCase(pipe, method, call, variant, mode=mode)
            outputs = []
            one.pipe.numpy_to_pil = staticmethod(lambda array, kept=outputs: kept.append(torch.from_numpy(array)))
            for _ in range(2):
                one.run()
            assert len(outputs) == 2
            torch.testing.assert_close(outputs[0], outputs[1])
            images.append(outputs[1])
        torch.testing.assert_close(*images, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()
