"""Offloading and DeepCache on one U-Net, in any order: the same output, and no leftover state."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module, remove_hook_from_module

from DeepCache import DeepCacheSDHelper
from tests.engine.tiny_pipeline import generate, tiny_pipeline
from tests.releases import OFFLOADS_ALL

pytestmark = pytest.mark.usefixtures("nothing_is_counted")

INTERVAL, BRANCH = 3, 1


def _align(unet):
    add_hook_to_module(unet, AlignDevicesHook(execution_device="cpu", io_same_device=True))


def _model_offload(unet):
    cpu_offload_with_hook(unet, execution_device="cpu")


def _sequential_offload(unet):
    cpu_offload(unet, execution_device=torch.device("cpu"))


def _two_hooks(unet):
    add_hook_to_module(unet, ModelHook())
    add_hook_to_module(unet, AlignDevicesHook(execution_device="cpu"), append=True)


def _group_offload(unet):
    unet.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")


OFFLOADS = [
    _align,
    pytest.param(_model_offload, marks=pytest.mark.integration("Model offload")),
    pytest.param(_sequential_offload, marks=(OFFLOADS_ALL, pytest.mark.integration("Sequential offload"))),
    _two_hooks,
]


def _remove(unet):
    remove_hook_from_module(unet, recurse=True)


@pytest.fixture(scope="module")
def expected():
    """The output with only DeepCache."""
    pipe = tiny_pipeline()
    with _helper(pipe):
        return generate(pipe)


@pytest.fixture(scope="module")
def plain():
    """The output with neither."""
    return generate(tiny_pipeline())


def _helper(pipe):
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=INTERVAL, cache_branch_id=BRANCH)
    return helper


def _attributes(unet):
    """The attributes of every module: their names, and the hooks and children."""
    return {
        path: {
            name: dict(value) if name == "_modules" or "_hooks" in name else type(value)
            for name, value in module.__dict__.items()
        }
        for path, module in unet.named_modules()
    }


@pytest.mark.parametrize("offload", OFFLOADS)
def test_offload_before_the_helper(offload, expected, plain, witness):
    pipe = tiny_pipeline()
    offload(pipe.unet)
    before = _attributes(pipe.unet)
    helper = _helper(pipe)
    helper.enable()
    for _ in range(2):
        assert torch.equal(generate(pipe), expected)
        assert helper.stats.pattern == "F..F.."
    helper.disable()
    assert _attributes(pipe.unet) == before
    assert torch.equal(generate(pipe), plain)


@pytest.mark.parametrize("offload", OFFLOADS)
def test_offload_while_enabled_and_kept_after_disable(offload, expected, plain):
    pipe = tiny_pipeline()
    helper = _helper(pipe)
    helper.enable()
    offload(pipe.unet)
    for _ in range(2):
        assert torch.equal(generate(pipe), expected)
        assert helper.stats.pattern == "F..F.."
    helper.disable()
    assert torch.equal(generate(pipe), plain)

    other = tiny_pipeline()
    offload(other.unet)
    assert {path: set(names) for path, names in _attributes(pipe.unet).items()} == {
        path: set(names) for path, names in _attributes(other.unet).items()
    }


@pytest.mark.parametrize("offload", OFFLOADS)
def test_offload_removed_and_added_between_runs(offload, expected, plain):
    pipe = tiny_pipeline()
    weights = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    offload(pipe.unet)
    helper = _helper(pipe)
    helper.enable()
    assert torch.equal(generate(pipe), expected)
    _remove(pipe.unet)
    assert torch.equal(generate(pipe), expected)
    offload(pipe.unet)
    assert torch.equal(generate(pipe), expected)
    _remove(pipe.unet)
    helper.disable()
    assert torch.equal(generate(pipe), plain)
    after = pipe.unet.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())


def test_offload_removed_in_the_middle_of_a_run(expected, witness):
    """Some pipelines hook and unhook the U-Net for every part of an image."""

    def toggle(pipe, step, timestep, kwargs):
        (_remove if step % 2 == 0 else _align)(pipe.unet)
        return kwargs

    pipe = tiny_pipeline()
    _align(pipe.unet)
    seen = witness(pipe.unet)
    with _helper(pipe):
        assert torch.equal(generate(pipe, callback_on_step_end=toggle), expected)
    assert seen.take() == "F..F.."


@OFFLOADS_ALL
@pytest.mark.integration("Model offload")
@pytest.mark.integration("Sequential offload")
def test_disable_between_two_kinds_of_offload(expected, plain):
    pipe = tiny_pipeline()
    helper = _helper(pipe)
    _model_offload(pipe.unet)
    helper.enable()
    _remove(pipe.unet)
    _sequential_offload(pipe.unet)
    assert torch.equal(generate(pipe), expected)
    helper.disable()
    assert torch.equal(generate(pipe), plain)
    helper.enable()
    assert torch.equal(generate(pipe), expected)


def test_one_offloaded_layer(expected):
    """The layer that makes the deep feature has a hook of accelerate, added before ours or after."""
    for early in (True, False):
        pipe = tiny_pipeline()
        layer = pipe.unet.up_blocks[-1].resnets[0]
        helper = _helper(pipe)
        if early:
            _align(layer)
        helper.enable()
        if not early:
            _align(layer)
        assert torch.equal(generate(pipe), expected)


@pytest.mark.integration("Group offload")
@pytest.mark.skipif(
    # There, diffusers requests an accelerator from torch.
    torch.__version__ < "2.7" and not torch.cuda.is_available(),
    reason="torch 2.6 without an accelerator",
)
def test_group_offloading_of_diffusers(expected, plain):
    for early in (True, False):
        pipe = tiny_pipeline()
        helper = _helper(pipe)
        if early:
            _group_offload(pipe.unet)
        helper.enable()
        if not early:
            _group_offload(pipe.unet)
        assert torch.equal(generate(pipe), expected)
        assert torch.equal(generate(pipe), expected)
        helper.disable()
        assert torch.equal(generate(pipe), plain)
