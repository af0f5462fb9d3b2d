"""Integrations on the same U-Net: ControlNet, adapters, FreeU and others.

With the same inputs, a shallow step must be bit-identical to the full step before it, at every branch: the layers that
run have the same inputs, and everything deeper is in the stored feature.
"""

from __future__ import annotations

import copy
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel, UNet2DModel

from benchmarks.harness.tiny_unets import TINY_UNETS, TOKENS, WIDTH
from DeepCache import DeepCacheSDHelper
from DeepCache.engine.layouts import skip_branches
from tests.releases import HALF, UNWRITTEN, before_diffusers

# 12 branches: four down blocks of two layers each, with downsamplers except the last.
BRANCHES = range(12)
SKIP_CHANNELS = [8, 8, 8, 8, 16, 16, 16, 16, 16, 16, 16, 16]
SKIP_SIZES = [8, 8, 8, 4, 4, 4, 2, 2, 2, 1, 1, 1]
# T2I-Adapter has one residual per down block, added before the downsampler if there is cross-attention.
ADAPTER_CHANNELS, ADAPTER_SIZES = [8, 16, 16, 16], [8, 4, 2, 1]
BATCH = 2


@cache
def _seeded(kind):
    return TINY_UNETS[kind].seeded()


@pytest.fixture
def unet():
    return copy.deepcopy(_seeded("stable-diffusion"))


def _normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SAMPLE = _normal(0, BATCH, 4, 8, 8)
PROMPT = _normal(1, BATCH, TOKENS, WIDTH)


class Run:
    """Calls of one run with equal timesteps; the first is a full step, the others are shallow."""

    def __init__(self, unet, branch, calls=2):
        self.timesteps = torch.full((calls,), 500)
        self.pipe = SimpleNamespace(unet=unet, scheduler=SimpleNamespace(timesteps=self.timesteps))
        self.helper = DeepCacheSDHelper(self.pipe)
        self.helper.set_params(cache_interval=calls, cache_branch_id=branch)
        self.helper.enable()
        self.step = 0

    @torch.no_grad()
    def __call__(self, sample=SAMPLE, **kwargs):
        output = self.pipe.unet(sample, self.timesteps[self.step], **kwargs).sample
        self.step += 1
        return output.clone()


def _shallow_equals_full(unet, branch, make_kwargs, calls=2, sample=SAMPLE):
    """Whether every shallow step is bit-identical to the full step, without running the mid block."""
    with torch.no_grad():
        alone = unet(sample, 500, **make_kwargs()).sample
    ran = []
    handle = unet.mid_block.register_forward_hook(lambda *_: ran.append("mid"))
    run = Run(unet, branch, calls)
    full, *shallow = [run(sample, **make_kwargs()) for _ in range(calls)]
    handle.remove()
    run.helper.disable()
    assert torch.equal(full, alone)
    assert len(ran) == 1
    return all(torch.equal(output, full) for output in shallow)


def _prompt():
    return {"encoder_hidden_states": PROMPT.clone()}


def _controlnet(changed=None, mid_changed=False):
    """Residuals of a ControlNet, one per skip branch and one for the mid block."""
    residuals = [
        _normal(50 + number + (100 if number == changed else 0), BATCH, channels, size, size)
        for number, (channels, size) in enumerate(zip(SKIP_CHANNELS, SKIP_SIZES, strict=True))
    ]
    mid = _normal(99 if mid_changed else 49, BATCH, 16, 1, 1)
    return _prompt() | {"down_block_additional_residuals": residuals, "mid_block_additional_residual": mid}


def _adapter(changed=None):
    """Residuals of a T2I-Adapter; the U-Net empties the list."""
    return [
        _normal(70 + number + (100 if number == changed else 0), BATCH, channels, size, size)
        for number, (channels, size) in enumerate(zip(ADAPTER_CHANNELS, ADAPTER_SIZES, strict=True))
    ]


@pytest.mark.parametrize("branch", BRANCHES)
def test_nothing_else(unet, branch):
    assert _shallow_equals_full(unet, branch, _prompt)


@pytest.mark.integration("ControlNet")
class TestControlNet:
    @pytest.mark.parametrize("branch", BRANCHES)
    def test_shallow_equals_full(self, unet, branch):
        assert _shallow_equals_full(unet, branch, _controlnet)

    @pytest.mark.parametrize("branch", BRANCHES)
    def test_a_shallow_step_uses_only_the_new_residuals_of_its_skips(self, unet, branch):
        """The residual of a deeper skip is in the stored feature."""
        for changed in BRANCHES:
            run = Run(unet, branch)
            full = run(**_controlnet())
            assert torch.equal(run(**_controlnet(changed)), full) == (changed > branch)

    @pytest.mark.parametrize("branch", BRANCHES)
    def test_the_residual_of_the_mid_block_is_in_the_stored_feature(self, unet, branch):
        run = Run(unet, branch)
        full = run(**_controlnet())
        # At the deepest branch the stored feature is what the mid block returns, and the U-Net adds to it afterwards.
        assert torch.equal(run(**_controlnet(mid_changed=True)), full) == (branch != BRANCHES[-1])

    def test_the_residuals_of_the_caller_are_not_changed(self, unet):
        run, kwargs = Run(unet, 4), _controlnet()
        before = copy.deepcopy(kwargs)
        run(**kwargs)
        run(**kwargs)
        assert torch.equal(kwargs["mid_block_additional_residual"], before["mid_block_additional_residual"])
        assert all(map(torch.equal, *(each["down_block_additional_residuals"] for each in (kwargs, before))))

    @pytest.mark.parametrize("branch", [0, 2, 5, 8])
    @pytest.mark.parametrize(
        "guess_mode", [False, pytest.param(True, marks=pytest.mark.integration("ControlNet", "guess mode"))]
    )
    def test_with_a_real_controlnet(self, unet, branch, guess_mode):
        controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8)).eval()
        zeros = torch.nn.ModuleList([*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block])
        for parameter in zeros.parameters():
            parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
        condition = _normal(8, BATCH, 3, 16, 16)

        def kwargs():
            with torch.no_grad():
                down, mid = controlnet(SAMPLE, 500, PROMPT, condition, guess_mode=guess_mode, return_dict=False)
            return _prompt() | {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}

        assert _shallow_equals_full(unet, branch, kwargs)


@pytest.mark.integration("T2I-Adapter")
class TestT2IAdapter:
    @pytest.mark.filterwarnings("ignore:.*down_block_additional_residuals.*:FutureWarning")
    @pytest.mark.parametrize("branch", BRANCHES)
    @pytest.mark.parametrize(
        ("others", "name"),
        [
            pytest.param(_prompt, "down_intrablock_additional_residuals", id="alone"),
            pytest.param(_prompt, "down_block_additional_residuals", id="under their former name"),
            pytest.param(
                _controlnet,
                "down_intrablock_additional_residuals",
                id="with ControlNet",
                marks=pytest.mark.integration("ControlNet + T2I-Adapter"),
            ),
        ],
    )
    def test_shallow_equals_full(self, unet, branch, others, name):
        assert _shallow_equals_full(unet, branch, lambda: others() | {name: _adapter()})

    @pytest.mark.parametrize("branch", BRANCHES)
    def test_a_shallow_step_uses_the_new_residuals_of_whole_blocks(self, unet, branch):
        # A block with cross-attention (the first two) adds its residual after its second layer and so before its
        # downsampler, the last block after its last layer: branches 2, 5 and 8 are the first that carry it.
        carries = [2, 5, 8]
        for changed in range(3):
            run = Run(unet, branch)
            full = run(**_prompt(), down_intrablock_additional_residuals=_adapter())
            shallow = run(**_prompt(), down_intrablock_additional_residuals=_adapter(changed))
            assert torch.equal(shallow, full) == (branch < carries[changed])

    @pytest.mark.parametrize("branch", range(9))
    def test_sdxl_with_a_fourth_residual_for_the_mid_block(self, branch):
        """The first down block has no cross-attention and adds its residual after the downsampler."""
        inputs = TINY_UNETS["sdxl"].make_inputs(8, 3)
        sample = _normal(3, BATCH, 4, 8, 8)

        def kwargs():
            adapter = [
                _normal(number, BATCH, channels, size, size)
                for number, (channels, size) in enumerate([(8, 4), (16, 4), (16, 2), (16, 2)])
            ]
            return inputs.kwargs | {"down_intrablock_additional_residuals": adapter}

        assert _shallow_equals_full(copy.deepcopy(_seeded("sdxl")), branch, kwargs, sample=sample)


@pytest.mark.integration("FreeU")
class TestFreeU:
    @pytest.mark.parametrize("branch", BRANCHES)
    def test_three_shallow_steps_equal_the_full_one(self, unet, branch):
        """FreeU scales hidden states in place: the stored feature must not be scaled again at every step."""
        plain = _plain(unet)
        unet.enable_freeu(s1=0.6, s2=0.4, b1=1.4, b2=1.6)
        assert not torch.equal(_plain(unet), plain)
        assert _shallow_equals_full(unet, branch, _prompt, calls=4)

    @pytest.mark.parametrize("branch", [3, 8])
    def test_switched_off_between_two_runs(self, unet, branch):
        unet.enable_freeu(s1=0.6, s2=0.4, b1=1.4, b2=1.6)
        assert _shallow_equals_full(unet, branch, _prompt)
        unet.disable_freeu()
        assert _shallow_equals_full(unet, branch, _prompt)


def _plain(unet):
    with torch.no_grad():
        return unet(SAMPLE, 500, **_prompt()).sample


@before_diffusers("0.28", "it has other arguments")
@pytest.mark.integration("IP-Adapter")
@pytest.mark.parametrize("branch", BRANCHES)
def test_ip_adapter(unet, branch):
    unet._load_ip_adapter_weights([_ip_adapter_weights(unet)])
    image_embeds = _normal(5, BATCH, 1, 4)

    def kwargs():
        return _prompt() | {"added_cond_kwargs": {"image_embeds": [image_embeds]}}

    def other():
        return _prompt() | {"added_cond_kwargs": {"image_embeds": [image_embeds + 1]}}

    assert _shallow_equals_full(unet, branch, kwargs)
    with torch.no_grad():
        assert not torch.equal(unet(SAMPLE, 500, **kwargs()).sample, unet(SAMPLE, 500, **other()).sample)


def _ip_adapter_weights(unet):
    """The weights of an IP-Adapter that converts image embeddings of four numbers to four tokens."""
    weights, key = {}, 1
    for name in unet.attn_processors:
        if name.endswith("attn1.processor") or "motion_module" in name:
            continue
        width = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
        for part in ("k", "v"):
            weights[f"{key}.to_{part}_ip.weight"] = _normal(key, width, WIDTH)
        key += 2
    projection = {
        "proj.weight": _normal(20, 4 * WIDTH, 4),
        "proj.bias": torch.zeros(4 * WIDTH),
        "norm.weight": torch.ones(WIDTH),
        "norm.bias": torch.zeros(WIDTH),
    }
    return {"image_proj": projection, "ip_adapter": weights}


@pytest.mark.integration("GLIGEN")
@pytest.mark.parametrize("branch", range(6))
def test_gligen(branch):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        attention_type="gated",
    ).eval()
    for name, parameter in unet.named_parameters():
        if "alpha" in name:
            torch.nn.init.constant_(parameter, 0.5)
    objects = {
        "boxes": torch.rand(BATCH, 2, 4, generator=torch.Generator().manual_seed(0)),
        "positive_embeddings": _normal(6, BATCH, 2, WIDTH),
        "masks": torch.ones(BATCH, 2),
    }
    assert _shallow_equals_full(unet, branch, lambda: _prompt() | {"cross_attention_kwargs": {"gligen": dict(objects)}})


@pytest.mark.integration("Class labels")
@pytest.mark.parametrize("branch", range(6))
@pytest.mark.parametrize("class_embed_type", [None, "timestep"])
def test_class_labels(branch, class_embed_type):
    torch.manual_seed(0)
    unet = UNet2DModel(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        in_channels=4,
        out_channels=4,
        class_embed_type=class_embed_type,
        num_class_embeds=None if class_embed_type else 10,
    ).eval()
    labels = torch.tensor([3, 7])
    assert _shallow_equals_full(unet, branch, lambda: {"class_labels": labels})
    run = Run(unet, branch)
    full = run(class_labels=labels)
    assert not torch.equal(run(class_labels=labels.flip(0)), full)


@UNWRITTEN
@pytest.mark.integration("Attention slicing")
@pytest.mark.parametrize("branch", BRANCHES)
def test_attention_slicing(unet, branch):
    unet.set_attention_slice("max")
    assert _shallow_equals_full(unet, branch, _prompt)


@UNWRITTEN
@pytest.mark.integration("Attention slicing", "enabled during a run")
def test_attention_slicing_switched_on_between_two_steps(unet):
    run = Run(unet, 2)
    full = run(**_prompt())
    unet.set_attention_slice("max")
    torch.testing.assert_close(run(**_prompt()), full)


@pytest.mark.integration("Autocast")
@pytest.mark.parametrize("branch", BRANCHES)
def test_autocast(unet, branch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert _shallow_equals_full(unet, branch, _prompt)


@pytest.mark.parametrize("branch", [0, 4, 8])
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float16, marks=pytest.mark.integration("fp16")),
        pytest.param(torch.bfloat16, marks=pytest.mark.integration("bf16")),
    ],
)
@HALF
def test_half_precision(unet, branch, dtype):
    unet.to(dtype)
    sample, prompt = SAMPLE.to(dtype), PROMPT.to(dtype)
    assert _shallow_equals_full(unet, branch, lambda: {"encoder_hidden_states": prompt}, sample=sample)


@pytest.mark.integration("channels_last")
@pytest.mark.integration("Fused QKV projections")
@pytest.mark.parametrize("branch", [0, 4, 8])
def test_channels_last_and_fused_projections(unet, branch):
    unet.to(memory_format=torch.channels_last)
    unet.fuse_qkv_projections()
    assert _shallow_equals_full(unet, branch, _prompt)


def test_the_branches_match_the_tables_above(unet):
    assert len(skip_branches(unet)) == len(BRANCHES) == len(SKIP_CHANNELS)
