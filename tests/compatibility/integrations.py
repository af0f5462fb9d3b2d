"""A small Stable Diffusion for tests of integrations, and the expected latents of cached runs.

The U-Net has three blocks of one layer, the first two with cross-attention, so it has six skip branches. The expected
latents are computed without DeepCache: the whole U-Net runs at every step, and on shallow steps a hook replaces the
deep feature by that of the last full step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, T2IAdapter, UNet2DConditionModel
from torch import nn

from DeepCache import DeepCacheSDHelper
from tests.compatibility.components import (
    TEXT_WIDTH,
    clip_text_encoder,
    clip_tokenizer,
    ddim,
    generator,
    quiet,
    seeded,
    vae,
)

__all__ = [
    "BRANCHES",
    "DEEPEST",
    "INTERVAL",
    "MIDDLE",
    "PATTERN",
    "SHALLOWEST",
    "STEPS",
    "adapter",
    "as_if_new",
    "at_the_end_of_step",
    "build",
    "build_sdxl",
    "cached",
    "cached_at_each_branch",
    "controlnet",
    "deep_feature_replaced",
    "differing",
    "exact",
    "generate",
    "generate_sdxl",
    "helper",
    "image_embedding",
    "ip_adapter",
    "lora",
    "normal",
    "sdxl_adapter",
    "sdxl_controlnet",
    "sdxl_unet",
    "small_unet",
    "watched",
]

WIDTHS = (8, 16, 16)
# The shallowest, one that keeps the first block and a layer of the second, and the deepest.
BRANCHES = SHALLOWEST, MIDDLE, DEEPEST = (0, 3, 5)
INTERVAL, STEPS, PATTERN = 3, 5, "F..F."
IMAGE_WIDTH = 4

Run = Callable[[Any], torch.Tensor]


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def small_unet(**config: Any) -> UNet2DConditionModel:
    return seeded(
        lambda: UNet2DConditionModel(
            **{
                "sample_size": 8,
                "block_out_channels": WIDTHS,
                "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
                "layers_per_block": 1,
                "norm_num_groups": 4,
                "cross_attention_dim": TEXT_WIDTH,
                "attention_head_dim": 2,
            }
            | config
        )
    )


def sdxl_unet(time_ids: int = 6) -> UNet2DConditionModel:
    """The order of blocks of Stable Diffusion XL; its refiner has five time ids."""
    return small_unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=time_ids * 4 + TEXT_WIDTH,
    )


def build(pipeline: type[Any] = StableDiffusionPipeline, **components: Any) -> Any:
    """A pipeline of the Stable Diffusion family, with the same weights each time."""
    usual = {
        "vae": vae(),
        "text_encoder": clip_text_encoder(),
        "tokenizer": clip_tokenizer(),
        "unet": small_unet(),
        "scheduler": ddim(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return quiet(pipeline(**usual | components))


def build_sdxl(pipeline: type[Any], **components: Any) -> Any:
    """A pipeline of the Stable Diffusion XL family, without text encoders."""
    usual = {
        "vae": vae(),
        "text_encoder": None,
        "text_encoder_2": None,
        "tokenizer": None,
        "tokenizer_2": None,
        "unet": sdxl_unet(),
        "scheduler": ddim(),
    }
    return quiet(pipeline(**usual | components))


def generate(pipe: Any, prompt: Any = "a red circle", steps: int = STEPS, **call: Any) -> torch.Tensor:
    """The latents of a run."""
    usual = {
        "prompt": prompt,
        "num_inference_steps": steps,
        "generator": generator(),
        "output_type": "latent",
    }
    return pipe(**usual | call).images


def generate_sdxl(pipe: Any, **call: Any) -> torch.Tensor:
    """The latents of a run of a pipeline of the Stable Diffusion XL family, with random embeddings for a prompt."""
    prompt, negative = normal(5, 2, 1, 3, TEXT_WIDTH)
    pooled, negative_pooled = normal(6, 2, 1, TEXT_WIDTH)
    embeddings = {
        "prompt_embeds": prompt,
        "negative_prompt_embeds": negative,
        "pooled_prompt_embeds": pooled,
        "negative_pooled_prompt_embeds": negative_pooled,
    }
    return generate(pipe, None, **embeddings | call)


def controlnet(seed: int = 1) -> ControlNetModel:
    return seeded(
        lambda: ControlNetModel.from_unet(small_unet(), conditioning_embedding_out_channels=(4, 4, 4, 4)), seed
    )


def sdxl_controlnet(seed: int = 1) -> ControlNetModel:
    return seeded(
        lambda: ControlNetModel.from_unet(sdxl_unet(), conditioning_embedding_out_channels=(4, 4, 4, 4)), seed
    )


def adapter(seed: int = 1) -> T2IAdapter:
    return seeded(lambda: T2IAdapter(channels=list(WIDTHS), num_res_blocks=1, downscale_factor=8), seed)


def sdxl_adapter(seed: int = 1) -> T2IAdapter:
    return seeded(
        lambda: T2IAdapter(
            channels=[8, 16, 16, 16], num_res_blocks=1, downscale_factor=16, adapter_type="full_adapter_xl"
        ),
        seed,
    )


def image_embedding(seed: int = 0, guidance: bool = True) -> torch.Tensor:
    """An image embedding for an IP-Adapter, after one of no image with guidance."""
    embedding = normal(seed, 1, 1, IMAGE_WIDTH)
    return torch.cat([torch.zeros_like(embedding), embedding]) if guidance else embedding


def ip_adapter(unet: nn.Module, seed: int = 1) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of an IP-Adapter in the published format."""
    layers: dict[str, torch.Tensor] = {}
    # Attention layers are numbered; those for the prompt, which have the weights, have odd numbers.
    names = [name for name, module in unet.named_modules() if name.endswith("attn2")]
    for place, name in enumerate(names):
        width = unet.get_submodule(name).to_q.out_features
        for number, part in enumerate(("to_k_ip", "to_v_ip")):
            layers[f"{2 * place + 1}.{part}.weight"] = normal(1000 * seed + 2 * place + number, width, TEXT_WIDTH)
    # An image becomes four tokens.
    projection = {
        "proj.weight": normal(seed, 4 * TEXT_WIDTH, IMAGE_WIDTH),
        "proj.bias": normal(seed + 1, 4 * TEXT_WIDTH),
        "norm.weight": torch.ones(TEXT_WIDTH),
        "norm.bias": torch.zeros(TEXT_WIDTH),
    }
    return {"image_proj": projection, "ip_adapter": layers}


def lora(unet: nn.Module, seed: int = 1, dora: bool = False, rank: int = 2) -> dict[str, torch.Tensor]:
    """The weights of a LoRA, or of a DoRA, for the attention layers and some convolutions of a U-Net without any.

    Neither of its matrices is zero, unlike in an untrained LoRA.
    """
    weights: dict[str, torch.Tensor] = {}
    for number, (name, module) in enumerate(unet.named_modules()):
        if not name.endswith(("to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in")):
            continue
        width_out, *width_in = module.weight.shape
        ones = [1] * (len(width_in) - 1)
        key = f"unet.{name}.lora"
        weights[f"{key}_A.weight"] = 0.3 * normal(1000 * seed + number, rank, *width_in)
        weights[f"{key}_B.weight"] = 0.3 * normal(2000 * seed + number, width_out, rank, *ones)
        if dora:
            magnitude = [1, width_out, *ones] if ones else [width_out]
            weights[f"{key}_magnitude_vector"] = 1 + normal(3000 * seed + number, *magnitude).abs()
    return weights


def at_the_end_of_step(step: int, change: Callable[[Any], None]) -> Callable[..., dict[str, Any]]:
    """A `callback_on_step_end` that makes a change to the pipeline once."""

    def callback(pipe: Any, at: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if at == step:
            change(pipe)
        return tensors

    return callback


def helper(pipe: Any, branch: int = MIDDLE, interval: int = INTERVAL) -> DeepCacheSDHelper:
    made = DeepCacheSDHelper(pipe)
    made.set_params(cache_interval=interval, cache_branch_id=branch)
    return made


def cached(pipe: Any, run: Run, branch: int = MIDDLE, interval: int = INTERVAL) -> torch.Tensor:
    """A run with DeepCache."""
    with helper(pipe, branch, interval):
        return run(pipe)


def cached_at_each_branch(pipe: Any, run: Run) -> dict[int, torch.Tensor]:
    return {branch: cached(pipe, run, branch) for branch in BRANCHES}


@contextmanager
def watched(unet: nn.Module) -> Iterator[list[str]]:
    """One character for each call of the U-Net: `F` if its mid block ran, else `.`."""
    calls: list[str] = []

    def mid_block_ran(*_: object) -> None:
        calls[-1] = "F"

    handles = [
        unet.register_forward_pre_hook(lambda *_: calls.append("."), prepend=True),
        unet.mid_block.register_forward_hook(mid_block_ran),
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def deep_feature_replaced(unet: nn.Module, branch: int, pattern: str) -> Iterator[None]:
    """Makes the U-Net compute the expected output of a cached run, without DeepCache."""
    steps = iter(pattern)
    step, kept = "", torch.empty(0)

    def before_call(*_: object) -> None:
        nonlocal step
        step = next(steps)

    def after_the_deep_part(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal kept
        feature = output if isinstance(output, torch.Tensor) else output[0]
        if step == "F":
            kept = feature.clone()
            return None
        assert kept.shape == feature.shape
        return kept.clone() if isinstance(output, torch.Tensor) else (kept.clone(), *output[1:])

    handles = [
        unet.register_forward_pre_hook(before_call),
        _last_module_of_the_deep_part(unet, branch).register_forward_hook(after_the_deep_part),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    assert next(steps, None) is None


def _last_module_of_the_deep_part(unet: Any, branch: int) -> nn.Module:
    """The module before the layer of the up path with the skip connection of a branch."""
    layers = [(number, layer) for number, block in enumerate(unet.up_blocks) for layer in range(len(block.resnets))]
    number, layer = layers[-1 - branch]
    block = unet.up_blocks[number]
    if layer:
        return getattr(block, "attentions", block.resnets)[layer - 1]
    return unet.up_blocks[number - 1] if number else unet.mid_block


def exact(pipe: Any, run: Run, pattern: str = PATTERN) -> dict[int, torch.Tensor]:
    """Cached runs by branch, after a check that they have the expected latents and that the pipeline is restored."""
    plain = run(pipe)
    assert plain.isfinite().all()
    expected = {}
    for branch in BRANCHES:
        with deep_feature_replaced(pipe.unet, branch, pattern):
            expected[branch] = run(pipe)
    assert differing(expected, dict.fromkeys(BRANCHES, plain)) == set(BRANCHES)
    with watched(pipe.unet) as calls:
        results = cached_at_each_branch(pipe, run)
    assert "".join(calls) == pattern * len(BRANCHES)
    assert differing(results, expected) == set()
    assert torch.equal(cached(pipe, run, interval=1), plain)
    assert torch.equal(run(pipe), plain)
    return results


def differing(results: dict[int, torch.Tensor], others: dict[int, torch.Tensor]) -> set[int]:
    """The branches at which two sets of results differ."""
    return {branch for branch in BRANCHES if not torch.equal(results[branch], others[branch])}


def as_if_new(
    change: Callable[[Any], object],
    run: Run,
    start: Callable[[], Any] = build,
    run_before: Run | None = None,
) -> torch.Tensor:
    """A cached run after a change while DeepCache is enabled.

    It must equal that of a new pipeline that is changed before DeepCache is enabled, and differ from the run before.
    """
    new, used = start(), start()
    change(new)
    expected = cached(new, run)
    with helper(used):
        before = (run_before or run)(used)
        change(used)
        after = run(used)
    assert torch.equal(after, expected)
    assert not torch.equal(after, before)
    assert torch.equal(run(used), run(new))
    return after
