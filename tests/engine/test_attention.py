"""Pipelines that read the attention of layers that a shallow step does not run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.engine.cost import count_costs
from tests.engine.slots import kept_slots
from tests.engine.tiny_pipeline import tiny_unet
from tests.releases import COUNTS, UNWRITTEN

pytestmark = UNWRITTEN

PROMPT = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(1))


class Store:
    """Stores an attention map per layer and step, by its place in the U-Net."""

    def __init__(self):
        self.maps = {"down": [], "mid": [], "up": []}


class StoringProcessor(AttnProcessor):
    def __init__(self, store, place):
        super().__init__()
        self.store = store
        self.place = place

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, sharpness=1.0, **kwargs):
        output = super().__call__(attn, hidden_states, encoder_hidden_states, **kwargs)
        self.store.maps[self.place].append(sharpness * output)
        return output


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def unet(store):
    unet = tiny_unet()
    unet.set_attn_processor({name: StoringProcessor(store, name.split("_")[0]) for name in unet.attn_processors})
    return unet


def _run(unet, kwargs=({}, {}), branch=0, sample_seeds=(0, 0)):
    timesteps = torch.full((2,), 500)
    pipe = SimpleNamespace(unet=unet, scheduler=SimpleNamespace(timesteps=timesteps))
    engine = apply_deepcache(pipe, DeepCacheConfig(2, branch))
    with torch.no_grad():
        outputs = [
            unet(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)), t, PROMPT, **call).sample
            for t, call, seed in zip(timesteps, kwargs, sample_seeds, strict=True)
        ]
    assert engine.stats.pattern == "F."
    return engine.stats, outputs


@pytest.mark.parametrize("branch", range(6))
def test_a_shallow_step_writes_the_same_as_the_full_one(unet, store, branch):
    _, (full, shallow) = _run(unet, branch=branch)
    assert torch.equal(shallow, full)
    for place, maps in store.maps.items():
        assert maps, place
        first, second = maps[: len(maps) // 2], maps[len(maps) // 2 :]
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), place


def test_deep_layers_repeat_their_inputs_and_shallow_ones_use_the_new(unet, store):
    _run(unet, sample_seeds=(0, 1))
    self_then, cross_then, self_now, cross_now = store.maps["mid"]
    assert torch.equal(self_now, self_then)
    assert torch.equal(cross_now, cross_then)
    # The last layer of the up path is the only one that runs at branch 0.
    layers = len(store.maps["up"]) // 2
    same = [torch.equal(store.maps["up"][index], store.maps["up"][index + layers]) for index in range(layers)]
    assert not same[-1]
    assert same[0]


def test_the_keyword_arguments_are_those_of_the_call(unet, store):
    _run(unet, kwargs=({"cross_attention_kwargs": {"sharpness": 1.0}}, {"cross_attention_kwargs": {"sharpness": 2.0}}))
    _, cross_then, _, cross_now = store.maps["mid"]
    assert torch.equal(cross_now, 2 * cross_then)


@pytest.fixture
def unwritten_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(
    torch.__version__ < "2.7" and not torch.cuda.is_available(), reason="torch 2.6 without an accelerator"
)
@pytest.mark.usefixtures("unwritten_memory_is_nan")
def test_layers_of_an_offloaded_group_are_loaded_for_it(unet, store, tmp_path):
    unet.enable_group_offload(
        torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1, offload_to_disk_path=str(tmp_path)
    )
    assert unet.down_blocks[0].resnets[0].conv1.weight.isnan().all()
    _, (full, shallow) = _run(unet)
    assert torch.equal(shallow, full)
    assert all(maps for maps in store.maps.values())
    for maps in store.maps.values():
        first, second = maps[: len(maps) // 2], maps[len(maps) // 2 :]
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert unet.down_blocks[0].resnets[0].conv1.weight.isnan().all()


@COUNTS
def test_stored_inputs_are_counted(unet):
    listening, _ = _run(unet)
    plain, _ = _run(tiny_unet())
    assert listening.bytes_kept > plain.bytes_kept
    assert plain.mac_share < 1
    assert listening.mac_share is None
    assert "attention layers" in listening.uncounted


@torch.no_grad()
def test_stored_inputs_have_no_autograd_history(unet):
    timesteps = torch.arange(2, 0, -1)
    pipe = SimpleNamespace(unet=unet, scheduler=SimpleNamespace(timesteps=timesteps))
    engine = apply_deepcache(pipe, DeepCacheConfig(2))
    unet(torch.zeros(1, 4, 8, 8), timesteps[0], PROMPT)
    (stored,) = kept_slots(engine)
    kept = [value for _, args, kwargs in stored.attention._calls for value in (*args, *kwargs.values())]
    tensors = [value for value in kept if isinstance(value, torch.Tensor)]
    assert tensors
    assert not any(tensor.requires_grad for tensor in tensors)


@COUNTS
def test_counting_the_cost_writes_nothing_into_the_store(unet, store):
    count_costs(unet, (torch.zeros(1, 4, 8, 8), 500, PROMPT), {})
    assert not any(store.maps.values())


_calls = []


class CountingProcessor(AttnProcessor):
    """Holds an object, but writes nothing."""

    def __init__(self):
        super().__init__()
        self.settings = {"scale": [1.0]}

    def __call__(self, attn, hidden_states, *args, **kwargs):
        if not hidden_states.is_meta:
            _calls.append(attn)
        return super().__call__(attn, hidden_states, *args, **kwargs)


@COUNTS
def test_layers_that_write_nothing_do_not_run_again():
    unet = tiny_unet()
    unet.set_attn_processor({name: CountingProcessor() for name in unet.attn_processors})
    _calls.clear()
    stats, _ = _run(unet)
    layers = len(unet.attn_processors)
    # All layers in the full step; in the shallow one the self- and cross-attention of the one layer that runs.
    assert len(_calls) == layers + 2
    assert not any(module._forward_pre_hooks for module in unet.modules() if module is not unet)
    assert stats.mac_share is not None


def test_an_error_on_a_full_step_leaves_no_hook(unet):
    timesteps = torch.arange(2, 0, -1)
    apply_deepcache(SimpleNamespace(unet=unet, scheduler=SimpleNamespace(timesteps=timesteps)), DeepCacheConfig(2))
    with pytest.raises(RuntimeError):
        unet(torch.zeros(1, 9, 8, 8), timesteps[0], PROMPT)
    assert not any(module._forward_pre_hooks for module in unet.modules() if module is not unet)


@pytest.mark.parametrize("bound", [True, False])
@torch.no_grad()
def test_an_editor_that_counts_layers_is_refused_and_an_unbound_name_is_not(unet, bound):
    class Editor:
        num_att_layers = 4

    layer = next(module for module in unet.modules() if hasattr(module, "processor"))
    original = layer.forward

    def forward(*args, **kwargs):
        return original(*args, **kwargs) if not args else (editor, original(*args, **kwargs))[1]

    if bound:
        editor = Editor()
    layer.forward = forward
    pipe = SimpleNamespace(unet=unet, scheduler=SimpleNamespace(timesteps=torch.tensor([3, 2, 1])))
    apply_deepcache(pipe, DeepCacheConfig(2))
    with pytest.raises(ValueError if bound else NameError, match="a Editor counts the calls" if bound else "editor"):
        unet(torch.zeros(1, 4, 8, 8), pipe.scheduler.timesteps[0], PROMPT)
