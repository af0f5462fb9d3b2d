"""Diffusers' own Stable Diffusion pipeline on tiny random components, which generates images from prompts."""

import zlib

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from DeepCache.generation.batch_sampler import BatchSampler

PROMPTS = ("a red circle", "a green star", "a blue ring")


class SmallPipeline(StableDiffusionPipeline):
    """Encodes a prompt as random numbers of its own."""

    def encode_prompt(self, prompt, device, num_images_per_prompt, do_classifier_free_guidance, *_, **__):
        return torch.cat([encoded(text) for text in prompt]), torch.cat([encoded("")] * len(prompt))


def encoded(text):
    return torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(zlib.crc32(text.encode())))


def small_pipeline(seed=0, cls=SmallPipeline):
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(block_out_channels=(4,), layers_per_block=1, norm_num_groups=2, sample_size=16)
    pipe = cls(
        vae=vae.eval(),
        text_encoder=None,
        tokenizer=None,
        unet=unet.eval(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampler_of(pipe, prompts=PROMPTS[:2], steps=6, guidance=3.0, seed=0, batch=2):
    return BatchSampler(pipe, prompts, steps, guidance, seed, batch)
