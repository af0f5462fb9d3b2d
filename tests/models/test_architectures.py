from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from inspect import signature

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from PIL import Image
from torch import nn

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.engine.cost import count_costs
from DeepCache.engine.layouts import skip_branches
from DeepCache.models import ARCHITECTURES, MODELS, random_pipeline, recommended_guidance
from DeepCache.models.architectures import Component

FULL = [name for name in ARCHITECTURES if not name.endswith("-tiny")]
TINY = [f"{name}-tiny" for name in FULL]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CLIP_L, BIG_G, KL = 123_060_480, 694_659_840, 83_653_863
SVD = {"unet": 1_524_623_082, "image_encoder": 632_076_800, "vae": 97_742_847}
PARAMETERS = {
    "sd15": {"unet": 859_520_964, "text_encoder": CLIP_L, "vae": KL},
    "sd21": {"unet": 865_910_724, "text_encoder": 340_387_840, "vae": KL},
    "sdxl": {"unet": 2_567_463_684, "text_encoder": CLIP_L, "text_encoder_2": BIG_G, "vae": KL},
    "sdxl-refiner": {"unet": 2_259_526_660, "text_encoder_2": BIG_G, "vae": KL},
    "ssd-1b": {"unet": 1_331_334_404, "text_encoder": CLIP_L, "text_encoder_2": BIG_G, "vae": KL},
    "segmind-vega": {"unet": 745_225_604, "text_encoder": CLIP_L, "text_encoder_2": BIG_G, "vae": KL},
    "svd": SVD,
    "svd-xt": SVD,
}


@cache
def without_memory(name):
    return random_pipeline(name, device="meta")


def networks(pipe):
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def generate(pipe, size=(64, 64), **call):
    """The images of a pipeline call, as an array."""
    pipe.set_progress_bar_config(disable=True)
    width, height = size
    values = {
        "prompt": "a red circle",
        "image": Image.effect_noise(size, 64).convert("RGB"),
        "width": width,
        "height": height,
        "num_frames": 2,
        "num_inference_steps": 4,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "np",
    }
    parameters = signature(pipe.__call__).parameters
    return np.asarray(pipe(**{name: value for name, value in values.items() if name in parameters} | call)[0])


def test_names_and_summaries():
    assert set(ARCHITECTURES) == {*FULL, *TINY}
    assert not ARCHITECTURES.keys() & MODELS.keys()
    for name, architecture in ARCHITECTURES.items():
        assert architecture.name == name
        assert architecture.summary.endswith(".")


def test_architectures_have_as_many_parameters_as_the_published_weights():
    found = {
        name: {
            part: sum(parameter.numel() for parameter in network.parameters())
            for part, network in networks(without_memory(name)).items()
        }
        for name in FULL
    }
    assert found == PARAMETERS


def test_attention_has_as_many_heads_as_published():
    # Parameters and multiply-accumulates do not depend on the heads, but the time does.
    for name in FULL:
        attentions = [module for module in without_memory(name).unet.modules() if isinstance(module, Attention)]
        if name == "sd15":
            assert {attention.heads for attention in attentions} == {8}
        else:
            assert {attention.to_q.out_features / attention.heads for attention in attentions} == {64}
        for part in ("text_encoder", "text_encoder_2", "image_encoder"):
            encoder = getattr(without_memory(name), part, None)
            if encoder is not None:
                width = encoder.config.hidden_size / encoder.config.num_attention_heads
                assert width == (80 if part == "image_encoder" else 64)


@pytest.mark.parametrize(
    ("name", "pixels", "giga_macs", "shares"),
    [
        (
            "sd15",
            512,
            401.6,
            [0.079, 0.224, 0.380, 0.470, 0.564, 0.673, 0.760, 0.848, 0.941, 0.960, 0.973, 0.985],
        ),
        ("sd21", 512, 402.1, []),
        ("sd21", 768, 1074.6, []),
        ("sd21", 1024, 2337.5, []),
        ("sdxl", 1024, 3380.6, [0.015, 0.038, 0.066, 0.129, 0.214, 0.306, 0.437, 0.659, 0.882]),
    ],
)
def test_steps_cost_as_many_macs_as_published(name, pixels, giga_macs, shares):
    unet = without_memory(name).unet
    with torch.device("meta"):
        sample = torch.empty(1, 4, pixels // 8, pixels // 8)
        conditions = {"encoder_hidden_states": torch.empty(1, 77, unet.config.cross_attention_dim)}
        if name == "sdxl":
            conditions["added_cond_kwargs"] = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
    costs = count_costs(unet, (sample, 500), conditions, skip_branches(unet)[: len(shares)])
    assert round(costs.full / 1e9, 1) == giga_macs
    assert [round(costs.share(branch), 3) for branch in costs.shallow] == shares


@pytest.mark.parametrize("name", FULL)
def test_a_tiny_architecture_has_the_structure_of_the_full_one(name):
    full, tiny = without_memory(name), without_memory(f"{name}-tiny")
    assert type(tiny) is type(full)
    assert [branch.name for branch in skip_branches(tiny.unet)] == [branch.name for branch in skip_branches(full.unet)]
    assert {part: type(network) for part, network in networks(tiny).items()} == {
        part: type(network) for part, network in networks(full).items()
    }
    assert tiny.scheduler.config == full.scheduler.config
    for part in ("down_blocks", "up_blocks"):
        blocks = zip(getattr(tiny.unet, part), getattr(full.unet, part), strict=True)
        for narrow, wide in blocks:
            assert type(narrow) is type(wide)
            assert len(narrow.resnets) == len(wide.resnets)
            assert len(getattr(narrow, "attentions", ())) == len(getattr(wide, "attentions", ()))
    assert len(tiny.unet.mid_block.resnets) == len(full.unet.mid_block.resnets)


# NumPy deprecates how diffusers' Euler scheduler makes an array of a tensor.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("name", TINY)
def test_a_tiny_architecture_runs_with_and_without_caching(name):
    pipe = random_pipeline(name, device="cpu", dtype=torch.float32)
    images = generate(pipe)
    assert images.shape[-3:] == (64, 64, 3)
    assert np.isfinite(images).all()
    assert images.std() > 0.01
    engine = apply_deepcache(pipe, DeepCacheConfig(cache_interval=3, cache_branch_id=0))
    # Image to image runs the share `strength` of its four steps.
    cached = generate(pipe, **({"strength": 1.0} if "strength" in signature(pipe.__call__).parameters else {}))
    assert np.isfinite(cached).all()
    assert cached.std() > 0.01
    assert engine.stats.pattern == ("F..F." if name.startswith("sd15") else "F..F")


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float16), ("meta", torch.bfloat16)])
def test_all_weights_have_the_dtype_and_device(name, device, dtype):
    pipe = random_pipeline(name, device=device, dtype=dtype)
    assert pipe.dtype == dtype
    for network in networks(pipe).values():
        assert not network.training
        assert {parameter.dtype for parameter in network.parameters()} == {dtype}
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert {tensor.device.type for tensor in (*network.parameters(), *network.buffers())} == {device}


def test_default_dtype_and_device():
    pipe = random_pipeline("sd15-tiny")
    on_gpu = torch.cuda.is_available()
    assert pipe.dtype == (torch.float16 if on_gpu else torch.float32)
    assert random_pipeline("sd15-tiny", device="meta").dtype == torch.float32
    assert random_pipeline("sd15-tiny", device="cpu", dtype="bf16").dtype == torch.bfloat16


@pytest.mark.parametrize("device", DEVICES)
def test_weights_depend_on_the_seed(device):
    first, same, other = (random_pipeline("sdxl-tiny", device=device, seed=seed) for seed in (0, 0, 1))
    for part in ("unet", "text_encoder", "text_encoder_2", "vae"):
        weights, again, others = (getattr(pipe, part).state_dict() for pipe in (first, same, other))
        assert all(torch.equal(again[name], weight) for name, weight in weights.items())
        assert any(not torch.equal(others[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_random_state_and_defaults_do_not_change(device, fails, monkeypatch):
    if fails:
        whole = ARCHITECTURES["sd15-tiny"]
        last = {"another": Component("AutoencoderKL", {"down_block_types": ("NoBlock",)})}
        monkeypatch.setitem(ARCHITECTURES, "sd15-tiny", replace(whole, networks=whole.networks | last))
    kinds = ("cpu", device)
    torch.manual_seed(3)
    expected = [torch.rand(4, device=kind) for kind in kinds]
    torch.manual_seed(3)
    with pytest.raises(ValueError, match="NoBlock") if fails else nullcontext():
        random_pipeline("sd15-tiny", device=device, dtype=torch.bfloat16)
    for kind, numbers in zip(kinds, expected, strict=True):
        assert torch.equal(torch.rand(4, device=kind), numbers)
    assert torch.get_default_dtype() == torch.float32
    assert torch.empty(0).device.type == "cpu"


def test_schedulers_are_the_published_ones():
    kinds = {name: type(without_memory(name).scheduler).__name__ for name in FULL}
    assert (kinds.pop("sd15"), kinds.pop("sd21")) == ("PNDMScheduler", "DDIMScheduler")
    assert set(kinds.values()) == {"EulerDiscreteScheduler"}
    predictions = {name: without_memory(name).scheduler.config.prediction_type for name in FULL}
    assert {name for name, kind in predictions.items() if kind == "v_prediction"} == {"sd21", "svd", "svd-xt"}


def test_prompts_have_77_tokens_as_published():
    pipe = without_memory("sdxl")
    for tokenizer, text_encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        for prompt in ("", "a red circle", "many words " * 100):
            tokens = tokenizer(prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True)
            assert len(tokens.input_ids) == text_encoder.config.max_position_embeddings == 77
    assert max(pipe.tokenizer.get_vocab().values()) < without_memory("sd15-tiny").text_encoder.config.vocab_size


def test_the_pooled_state_is_at_the_end_of_the_text():
    pipe = random_pipeline("sdxl-tiny", device="cpu")
    tokens = pipe.tokenizer_2(["a red circle", ""], padding=True, return_tensors="pt").input_ids
    output = pipe.text_encoder_2(tokens)
    ends = [row.tolist().index(pipe.tokenizer_2.eos_token_id) for row in tokens]
    states = torch.stack([state[end] for state, end in zip(output.last_hidden_state, ends, strict=True)])
    torch.testing.assert_close(output.text_embeds, pipe.text_encoder_2.text_projection(states))


def test_sizes_are_the_published_ones():
    for name in FULL:
        pipe, (width, height) = without_memory(name), ARCHITECTURES[name].size
        assert ARCHITECTURES[f"{name}-tiny"].size == (64, 64)
        if name.startswith("svd"):
            parameters = signature(pipe.__call__).parameters
            assert (parameters["width"].default, parameters["height"].default) == (width, height)
        else:
            assert width == height == pipe.unet.config.sample_size * pipe.vae_scale_factor
            assert pipe.vae.config.sample_size == width


def test_guidance_is_the_default_of_the_pipeline():
    guidance = {name: recommended_guidance(name, without_memory(name)) for name in ("sd15", "sdxl", "svd")}
    assert guidance == {"sd15": 7.5, "sdxl": 5.0, "svd": None}


def test_a_pipeline_can_be_saved_and_loaded(tmp_path):
    from DeepCache.models import load_pipeline

    pipe = random_pipeline("svd-tiny", device="cpu")
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "StableVideoDiffusionPipeline"
    loaded = load_pipeline(tmp_path, device="cpu").unet.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in pipe.unet.state_dict().items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sd15-tyni", r"'sd15-tyni' \(did you mean sd15-tiny\?\)"),
        ("flux", r"'flux'. The names are sd15, .*svd-xt, each also as NAME-tiny"),
    ],
)
def test_unknown_names_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        random_pipeline(name)


def test_unknown_devices_and_dtypes_are_refused():
    with pytest.raises(ValueError, match="'toaster'"):
        random_pipeline("sd15-tiny", device="toaster")
    with pytest.raises(ValueError, match="'int3'"):
        random_pipeline("sd15-tiny", device="cpu", dtype="int3")
