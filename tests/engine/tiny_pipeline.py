"""Diffusers' own Stable Diffusion pipeline on tiny random components."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from packaging.version import Version

from tests.releases import DIFFUSERS


def tiny_unet(seed=0):
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


def small_unet():
    """As small as possible, since tracing takes longer than running."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


class _TextEncoder(torch.nn.Module):
    """For releases of diffusers that read its dtype and its LoRAs, and do not call it."""

    dtype, device = torch.float32, torch.device("cpu")


def _vae():
    """None, except for releases of diffusers that read its number of blocks."""
    old = Version("0.33") > DIFFUSERS
    return AutoencoderKL(block_out_channels=(4,) * 4, norm_num_groups=4) if old else None


def tiny_pipeline(unet=None):
    pipe = StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_TextEncoder() if Version("0.28") > DIFFUSERS else None,
        tokenizer=None,
        unet=tiny_unet() if unet is None else unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, steps=6, seed=0, batch=1, size=64, **call):
    """The latents of a run with random prompt embeddings."""
    generator = torch.Generator().manual_seed(seed)
    prompt, negative = torch.randn(2, batch, 3, 8, generator=generator)
    return pipe(
        prompt_embeds=prompt,
        negative_prompt_embeds=negative,
        num_inference_steps=steps,
        height=size,
        width=size,
        generator=generator,
        output_type="latent",
        **call,
    ).images
