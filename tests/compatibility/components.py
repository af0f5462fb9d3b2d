"""Tiny random components that the pipelines of the compatibility tests are made of.

A U-Net has the blocks and the layers of the published one, so that its branches are those a user sees; only its widths
are small. What no test changes (text encoders, autoencoders, tokenizers) is made once and shared.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    PriorTransformer,
    UnCLIPScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from DeepCache.models import MODELS
from tests.compatibility.case import RefusedCase

__all__ = [
    "TEXT_WIDTH",
    "bare_pipeline",
    "clip_image_encoder",
    "clip_text_encoder",
    "clip_tokenizer",
    "controlnet",
    "ddim",
    "denoise",
    "generator",
    "image",
    "mask",
    "prior_transformer",
    "projecting_text_encoder",
    "prompted",
    "quiet",
    "refused",
    "seeded",
    "stable_diffusion",
    "stable_diffusion_components",
    "stable_diffusion_unet",
    "stable_diffusion_xl",
    "stable_diffusion_xl_components",
    "stable_diffusion_xl_unet",
    "t5_encoder",
    "unclip_scheduler",
    "unconditional_unet",
    "vae",
]

TEXT_WIDTH = 8
SHAPES = MODELS["shapes"].folder
_Module = TypeVar("_Module", bound=nn.Module)


def seeded(build: Callable[[], _Module], seed: int = 0) -> _Module:
    """A module with the weights of a seed and no layer at zero, ready for inference."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build().eval().requires_grad_(False)
        for parameter in module.parameters():
            # Layers that are initialized with zero would hide errors.
            if not parameter.any():
                parameter.normal_(std=0.1)
    return module


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(seed: int = 0, size: int = 64, batch: int = 1) -> torch.Tensor:
    """A random image of values from 0 to 1."""
    return torch.rand(batch, 3, size, size, generator=generator(seed))


def quiet(pipe: Any) -> Any:
    """The pipeline without its progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion_unet(**config: Any) -> UNet2DConditionModel:
    """The blocks of Stable Diffusion's U-Net, narrow."""
    return seeded(
        lambda: UNet2DConditionModel(
            **{
                "sample_size": 8,
                "block_out_channels": (8, 16, 16, 16),
                "norm_num_groups": 4,
                "cross_attention_dim": TEXT_WIDTH,
                "attention_head_dim": 2,
            }
            | config
        )
    )


@cache
def vae() -> AutoencoderKL:
    """Four latent channels, eight pixels a latent as in Stable Diffusion."""
    return seeded(
        lambda: AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=2,
            latent_channels=4,
        )
    )


@cache
def clip_tokenizer() -> CLIPTokenizer:
    """The tokenizer of the model that the package ships."""
    return CLIPTokenizer.from_pretrained(SHAPES / "tokenizer")


@cache
def clip_text_encoder() -> CLIPTextModel:
    tokenizer = clip_tokenizer()
    return seeded(
        lambda: CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=TEXT_WIDTH,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    )


def ddim() -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, clip_sample=False, set_alpha_to_one=False)


def stable_diffusion_components() -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": clip_text_encoder(),
        "tokenizer": clip_tokenizer(),
        "unet": stable_diffusion_unet(),
        "scheduler": ddim(),
    }


def stable_diffusion(name: str, **components: Any) -> Any:
    """A pipeline that has the components of Stable Diffusion, and those given besides or in their place."""
    no_checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return quiet(getattr(diffusers, name)(**stable_diffusion_components() | no_checker | components))


@cache
def projecting_text_encoder() -> CLIPTextModelWithProjection:
    """The second text encoder of Stable Diffusion XL, of the same width as the first."""
    config = clip_text_encoder().config.to_dict() | {"projection_dim": TEXT_WIDTH}
    return seeded(lambda: CLIPTextModelWithProjection(CLIPTextConfig(**config)), seed=1)


def stable_diffusion_xl_unet(**config: Any) -> UNet2DConditionModel:
    """The blocks of Stable Diffusion XL's U-Net, narrow."""
    return stable_diffusion_unet(
        **{
            "block_out_channels": (8, 16, 16),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 2 * TEXT_WIDTH,
            "attention_head_dim": (2, 4, 4),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 6 * 4 + TEXT_WIDTH,
        }
        | config
    )


def stable_diffusion_xl_components() -> dict[str, Any]:
    return stable_diffusion_components() | {
        "text_encoder_2": projecting_text_encoder(),
        "tokenizer_2": clip_tokenizer(),
        "unet": stable_diffusion_xl_unet(),
    }


def stable_diffusion_xl(name: str, **components: Any) -> Any:
    """A pipeline that has the components of Stable Diffusion XL, and those given besides or in their place."""
    return quiet(getattr(diffusers, name)(**stable_diffusion_xl_components() | components))


def prompted(pipe: Any, steps: int = 5, **call: Any) -> Any:
    """The output of a pipeline call, with latents instead of images."""
    return pipe(
        **{
            "prompt": "a red circle",
            "num_inference_steps": steps,
            "generator": generator(),
            "output_type": "latent",
        }
        | call
    )


def denoise(pipe: Any, steps: int = 5, **call: Any) -> torch.Tensor:
    """The latents that a call of the pipeline ends with."""
    return prompted(pipe, steps, **call).images


def controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet for a U-Net, whose convolutions are not at zero."""
    return seeded(lambda: ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 4, 4)), seed=2)


def mask(size: int = 64) -> torch.Tensor:
    """The left half of an image to inpaint."""
    half = torch.zeros(1, 1, size, size)
    half[..., : size // 2] = 1
    return half


@cache
def clip_image_encoder() -> CLIPVisionModelWithProjection:
    """As many patches as the published encoder of 224 pixels, of two pixels each."""
    return seeded(
        lambda: CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=8,
                intermediate_size=16,
                projection_dim=TEXT_WIDTH,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=32,
                patch_size=2,
            )
        )
    )


@cache
def t5_encoder() -> T5EncoderModel:
    """Encodes the tokens of `clip_tokenizer`."""
    return seeded(
        lambda: T5EncoderModel(
            T5Config(vocab_size=len(clip_tokenizer()), d_model=TEXT_WIDTH, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        )
    )


@cache
def prior_transformer() -> PriorTransformer:
    """The prior of unCLIP, from the embedding of a text to that of an image."""
    return seeded(
        lambda: PriorTransformer(
            num_attention_heads=2,
            attention_head_dim=4,
            num_layers=1,
            embedding_dim=TEXT_WIDTH,
            num_embeddings=clip_tokenizer().model_max_length,
        )
    )


def unclip_scheduler(**config: Any) -> UnCLIPScheduler:
    """For the prior, unless `config` says otherwise."""
    return UnCLIPScheduler(
        **{"variance_type": "fixed_small_log", "prediction_type": "sample", "clip_sample_range": 5.0} | config
    )


def unconditional_unet(**config: Any) -> UNet2DModel:
    """The blocks of the DDPM for images of 32 pixels, narrow."""
    return seeded(
        lambda: UNet2DModel(
            **{
                "sample_size": 16,
                "block_out_channels": (8, 16, 16, 16),
                "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
                "norm_num_groups": 4,
                "attention_head_dim": 4,
            }
            | config
        )
    )


def bare_pipeline(pipeline: type[Any], **components: Any) -> Any:
    """A pipeline with these components and None for the others, which is enough to refuse it."""
    required = [key for key, value in inspect.signature(pipeline).parameters.items() if value.default is value.empty]
    return pipeline(**dict.fromkeys(required) | components)


def refused(name: str, reason: str, note: str, **components: Callable[[], Any]) -> RefusedCase:
    """A pipeline that is refused for these components, each given by what makes it."""
    return RefusedCase(
        name,
        build=lambda: bare_pipeline(getattr(diffusers, name), **{key: make() for key, make in components.items()}),
        reason=reason,
        note=note,
    )
