"""Multiply-accumulates are counted once per structure and shapes of a call."""

from __future__ import annotations

import copy
import functools
import gc
import threading
import weakref
from collections import namedtuple

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, IPAdapterAttnProcessor2_0
from torch import nn

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.engine import cost
from DeepCache.engine.cost import count_costs, on_meta
from DeepCache.engine.cost_key import call_key, structure_key
from tests.engine.test_cost import CHANNELS, FULL, SHALLOW, Toy
from tests.engine.tiny_pipeline import generate, tiny_pipeline, tiny_unet
from tests.releases import COUNTS

pytestmark = COUNTS

CALL = ((torch.zeros(1, 2), 500), {})


@pytest.fixture
def passes(monkeypatch):
    """The counts of a denoiser on the meta device; the cache is empty at first."""
    monkeypatch.setattr(cost, "_COUNTED", type(cost._COUNTED)())
    found = []
    count = cost._count
    monkeypatch.setattr(cost, "_count", lambda *call: found.append(count(*call)) or found[-1])
    return found


def settings(**changed):
    values = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**values | changed)


def test_runs_of_pipelines_of_one_structure_are_counted_once(passes):
    shares = []
    for weights in range(2):
        pipe = tiny_pipeline(tiny_unet(weights))
        engine = apply_deepcache(pipe, DeepCacheConfig(3))
        for seed in range(2):
            generate(pipe, seed=seed)
            shares += [engine.stats.mac_share, engine.stats.mac_share]
    assert len(passes) == 2
    assert len(set(shares)) == 1


def test_the_type_of_the_weights_does_not_matter(passes):
    costs = [count_costs(unet, *CALL) for unet in (Toy(), Toy().to(torch.bfloat16), Toy().requires_grad_(False))]
    assert len(passes) == 1 + len(SHALLOW)
    assert costs[0] == costs[1] == costs[2]


def test_each_branch_is_counted_on_request(passes):
    unet = Toy()
    for numbers, counted in (((2,), 2), ((2,), 2), ((4, 2), 3), ((), 3), ((0, 1), 5)):
        costs = count_costs(unet, *CALL, numbers)
        assert costs.full == FULL
        assert costs.shallow == {number: SHALLOW[number] for number in numbers}
        assert costs.channels == {number: CHANNELS[number] for number in numbers}
        assert len(passes) == counted
    assert count_costs(unet, *CALL).shallow == SHALLOW
    assert len(passes) == 1 + len(SHALLOW)


def test_the_result_can_be_changed(passes):
    unet = Toy()
    count_costs(unet, *CALL).shallow.clear()
    assert count_costs(unet, *CALL).shallow == SHALLOW


def test_the_number_of_cached_counts_is_bounded(passes, monkeypatch):
    monkeypatch.setattr(cost, "_MOST_COUNTED", 2)
    unet = Toy()
    for rows in (1, 2, 3, 2):
        count_costs(unet, (torch.zeros(rows, 2), 0), {}, ())
    assert len(cost._COUNTED) == 2
    assert len(passes) == 3
    # The least recently used one is counted again.
    count_costs(unet, (torch.zeros(1, 2), 0), {}, ())
    assert len(passes) == 4
    count_costs(unet, (torch.zeros(2, 2), 0), {}, ())
    assert len(passes) == 4


def test_a_failed_count_is_not_kept(passes):
    unet = Toy()
    with pytest.raises(RuntimeError):
        count_costs(unet, (torch.zeros(1, 7), 0), {})
    assert not cost._COUNTED
    assert count_costs(unet, *CALL).full == FULL


def test_threads_that_request_the_same_count_share_it(passes):
    unet, found, start = Toy(), [], threading.Barrier(4)

    def ask():
        start.wait()
        found.append(count_costs(unet, *CALL, (1,)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(passes) == 2
    assert [costs.shallow for costs in found] == [{1: SHALLOW[1]}] * 4


def test_no_denoiser_is_kept_alive(passes):
    class OfANotebook(Toy):
        pass

    unet = OfANotebook()
    unet.mid_block.act = functools.partial(unet.conv_in)
    unet.mid_block.function = lambda x, unet=unet: x
    count_costs(unet, *CALL)
    gone = [weakref.ref(each) for each in (unet, unet.mid_block.weight, unet.mid_block.function, OfANotebook)]
    del unet, OfANotebook
    gc.collect()
    assert [ref() for ref in gone] == [None] * 4


def _replace(unet, name, **attributes):
    module = unet.get_submodule(name)
    for attribute, value in attributes.items():
        setattr(module, attribute, value)


def _with_class(unet, forward):
    module = unet.mid_block
    module.__class__ = type(type(module).__name__, (type(module),), {"forward": forward})


def _stored_in_slots(unet):
    class Settings:
        __slots__ = ("ratio",)

    unet.settings = Settings()
    unet.settings.ratio = 0.5


CHANGES = {
    "stride": lambda unet: _replace(unet, "conv_in", stride=(2, 2)),
    "dilation": lambda unet: _replace(unet, "conv_in", dilation=(2, 2)),
    "heads": lambda unet: _replace(unet, "down_blocks.0.attentions.0.transformer_blocks.0.attn1", heads=4),
    "groups of a norm": lambda unet: _replace(unet, "conv_norm_out", num_groups=2),
    "setting of NumPy": lambda unet: _replace(unet, "mid_block", ratio=torch.zeros(3).numpy()),
    "setting in slots": _stored_in_slots,
    "settings in a dictionary": lambda unet: setattr(unet, "_tome_info", {"args": {"ratio": 0.5}}),
    "processors": lambda unet: unet.set_attn_processor(AttnProcessor()),
    "one processor of an IP-Adapter": lambda unet: (
        unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.set_processor(IPAdapterAttnProcessor2_0(8, 8))
    ),
    "fused projections": lambda unet: unet.fuse_qkv_projections(),
    "chunked feed-forward": lambda unet: (
        unet.down_blocks[0].attentions[0].transformer_blocks[0].set_chunk_feed_forward(1, 1)
    ),
    "another activation": lambda unet: setattr(unet, "conv_act", nn.SiLU(inplace=True)),
    "a function": lambda unet: setattr(unet, "conv_act", nn.GELU()),
    "a class of the same name": lambda unet: _with_class(unet, type(unet.mid_block).forward),
    "a layer less": lambda unet: unet.mid_block.resnets.__delitem__(1),
    "a layer that is shared": lambda unet: unet.mid_block.resnets.__setitem__(1, unet.mid_block.resnets[0]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_structure_changes_the_key(change):
    unet, other = settings(), settings()
    before = structure_key(unet)
    assert structure_key(other) == before
    change(other)
    assert structure_key(other) != before
    assert structure_key(unet) == before
    # The key is reproducible.
    assert structure_key(other) == structure_key(copy.deepcopy(other))


@pytest.mark.parametrize(
    "changed",
    [{"attention_head_dim": 4}, {"norm_num_groups": 2}, {"act_fn": "gelu"}, {"downsample_padding": 0}],
    ids=str,
)
def test_settings_that_change_no_weight_change_the_key(changed):
    unet, other = settings(), settings(**changed)
    assert [weight.shape for weight in other.parameters()] == [weight.shape for weight in unet.parameters()]
    assert structure_key(other) != structure_key(unet)


def test_a_lora_changes_the_key_and_the_count():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    unet = tiny_unet()
    call = ((torch.zeros(2, 4, 8, 8), 500), {"encoder_hidden_states": torch.zeros(2, 3, 8)})
    keys, costs = [structure_key(unet)], [count_costs(unet, *call)]
    unet.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q", "to_v"]))
    for change in (lambda: None, unet.disable_adapters, unet.enable_adapters):
        change()
        keys.append(structure_key(unet))
        costs.append(count_costs(unet, *call))
    assert len(set(keys)) == 3
    assert keys[3] == keys[1]
    assert costs[1].full > costs[0].full
    assert (costs[2], costs[3]) == (costs[0], costs[1])


def test_two_strides_do_not_share_a_count():
    call = ((torch.zeros(1, 4, 16, 16), 500), {"encoder_hidden_states": torch.zeros(1, 3, 8)})
    unet, other = settings(), settings()
    CHANGES["stride"](other)
    assert count_costs(unet, *call).full > 2 * count_costs(other, *call).full


ARGUMENTS = {
    "batch": ((torch.zeros(2, 4, 8, 8), 500), {"encoder_hidden_states": torch.zeros(2, 3, 8)}),
    "length of the prompt": ((torch.zeros(1, 4, 8, 8), 500), {"encoder_hidden_states": torch.zeros(1, 4, 8)}),
    "a mask": (
        (torch.zeros(1, 4, 8, 8), 500),
        {"encoder_hidden_states": torch.zeros(1, 3, 8), "encoder_attention_mask": torch.zeros(1, 3)},
    ),
    "an option": ((torch.zeros(1, 4, 8, 8), 500), {"encoder_hidden_states": torch.zeros(1, 3, 8), "return_dict": 0}),
    "integers": ((torch.zeros(1, 4, 8, 8).int(), 500), {"encoder_hidden_states": torch.zeros(1, 3, 8)}),
    "nested": (
        (torch.zeros(1, 4, 8, 8), 500),
        {"encoder_hidden_states": torch.zeros(1, 3, 8), "added_cond_kwargs": {"image": [torch.zeros(1, 2)]}},
    ),
}


def test_the_key_of_a_call_depends_on_its_shapes_and_options():
    plain = ((torch.zeros(1, 4, 8, 8), 500), {"encoder_hidden_states": torch.zeros(1, 3, 8)})
    again = ((torch.ones(1, 4, 8, 8, dtype=torch.float16), 500), {"encoder_hidden_states": torch.ones(1, 3, 8)})
    assert call_key(*plain) == call_key(*again) == call_key(*map(on_meta, plain))
    assert len({call_key(*plain), *(call_key(*call) for call in ARGUMENTS.values())}) == 1 + len(ARGUMENTS)


def test_a_named_tuple_among_the_arguments():
    pair = namedtuple("pair", ("one", "other"))(torch.zeros(2), 3)
    meta = on_meta(pair)
    assert (meta.one.shape, meta.one.device.type, meta.other) == ((2,), "meta", 3)


def test_calls_with_prompts_of_two_lengths_are_counted_separately():
    """Two slots of one step, the second with a longer prompt."""
    pipe = tiny_pipeline()
    engine = apply_deepcache(pipe, DeepCacheConfig(2, cache_branch_id=1))
    pipe.scheduler.set_timesteps(2)
    prompts = [torch.zeros(1, length, 8) for length in (3, 40)]
    with torch.no_grad():
        for timestep in pipe.scheduler.timesteps:
            for prompt in prompts:
                pipe.unet(torch.zeros(1, 4, 8, 8), timestep, prompt)
    costs = [count_costs(pipe.unet, (torch.zeros(1, 4, 8, 8), 0, prompt), {}, (1,)) for prompt in prompts]
    assert costs[0] != costs[1]
    spent = sum(each.full + each.shallow[1] for each in costs)
    assert engine.stats.mac_share == spent / (2 * sum(each.full for each in costs))


class TestReadingDuringARun:
    """`stats` can be read anywhere in a run without affecting later values."""

    def _expected(self, pattern):
        inputs = {"encoder_hidden_states": torch.zeros(2, 3, 8)}
        share = count_costs(tiny_unet(), (torch.zeros(2, 4, 8, 8), 500), inputs, (1,)).share(1)
        return sum(1 if sign == "F" else share for sign in pattern) / len(pattern)

    @pytest.mark.parametrize("module", ["", "conv_in", "up_blocks.1", "mid_block"])
    @pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
    def test_in_a_hook(self, module, before):
        pipe = tiny_pipeline()
        engine = apply_deepcache(pipe, DeepCacheConfig(3, cache_branch_id=1, forecast="none"))
        clean = generate(pipe)
        found = []

        def read(*_):
            found.append(engine.stats)

        layer = pipe.unet.get_submodule(module)
        (layer.register_forward_pre_hook if before else layer.register_forward_hook)(read)
        assert torch.equal(generate(pipe), clean)
        assert {stats.uncounted for stats in found} <= {""}
        for stats in found:
            if stats.pattern:
                assert stats.mac_share == pytest.approx(self._expected(stats.pattern), rel=1e-12)
        assert engine.stats.pattern == "F..F.."
        assert engine.stats.mac_share == pytest.approx(self._expected("F..F.."), rel=1e-12)

    def test_in_a_callback(self):
        pipe = tiny_pipeline()
        engine = apply_deepcache(pipe, DeepCacheConfig(3, cache_branch_id=1))
        found = []

        def read(pipe, step, timestep, kwargs):
            found.append(engine.stats)
            return {}

        generate(pipe, callback_on_step_end=read)
        assert [stats.pattern for stats in found] == ["F..F.."[: step + 1] for step in range(6)]
        for stats in (*found, engine.stats):
            assert stats.mac_share == pytest.approx(self._expected(stats.pattern), rel=1e-12)

    def test_a_count_that_fails_during_a_run_does_not_affect_later_ones(self, monkeypatch):
        pipe = tiny_pipeline()
        engine = apply_deepcache(pipe, DeepCacheConfig(3, cache_branch_id=1))
        from DeepCache.engine import stats

        def fail(*_):
            raise RuntimeError("not now")

        with monkeypatch.context() as patched:
            patched.setattr(stats, "count_costs", fail)
            generate(pipe)
            assert engine.stats.uncounted == "RuntimeError: not now"
        assert engine.stats.uncounted == ""
        assert engine.stats.mac_share == pytest.approx(self._expected("F..F.."), rel=1e-12)


def test_a_call_with_a_gradient_counts_as_a_full_one():
    pipe = tiny_pipeline()
    engine = apply_deepcache(pipe, DeepCacheConfig(3, cache_branch_id=1))
    pipe.scheduler.set_timesteps(3)
    prompt = torch.zeros(1, 3, 8)
    for number, timestep in enumerate(pipe.scheduler.timesteps):
        with torch.no_grad():
            pipe.unet(torch.zeros(1, 4, 8, 8), timestep, prompt)
        if number == 1:
            pipe.unet(torch.zeros(1, 4, 8, 8, requires_grad=True), timestep, prompt)
    stats = engine.stats
    share = count_costs(tiny_unet(), (torch.zeros(1, 4, 8, 8), 0, prompt), {}, (1,)).share(1)
    assert (stats.pattern, stats.full_steps, stats.shallow_steps) == ("F..", 1, 2)
    assert stats.reasons == ((1, "a gradient is required"),)
    assert stats.mac_share == pytest.approx((2 + 2 * share) / 4, rel=1e-12)
