"""Kandinsky 2.1, 2.2 and 3."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMScheduler, Kandinsky3UNet, UNet2DConditionModel, VQModel
from diffusers.pipelines.kandinsky import MultilingualCLIP
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig

from tests.compatibility.case import PipelineCase, uniform
from tests.compatibility.components import (
    TEXT_WIDTH,
    clip_image_encoder,
    clip_tokenizer,
    generator,
    image,
    mask,
    prior_transformer,
    projecting_text_encoder,
    quiet,
    refused,
    seeded,
    t5_encoder,
    unclip_scheduler,
)

__all__ = ["CASES", "REFUSED"]


def _unet(**config: Any) -> UNet2DConditionModel:
    """The blocks of Kandinsky's U-Net, narrow."""
    return seeded(
        lambda: UNet2DConditionModel(
            **{
                "sample_size": 8,
                "in_channels": 4,
                "out_channels": 8,
                "block_out_channels": (4, 8, 8, 8),
                "layers_per_block": 3,
                "down_block_types": ("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3),
                "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
                "up_block_types": (*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"),
                "norm_num_groups": 2,
                "cross_attention_dim": TEXT_WIDTH,
                "attention_head_dim": 4,
                "resnet_time_scale_shift": "scale_shift",
                "encoder_hid_dim": TEXT_WIDTH,
            }
            | config
        )
    )


def _first_unet(**config: Any) -> UNet2DConditionModel:
    return _unet(encoder_hid_dim_type="text_image_proj", addition_embed_type="text_image", **config)


def _second_unet(**config: Any) -> UNet2DConditionModel:
    return _unet(**{"encoder_hid_dim_type": "image_proj", "addition_embed_type": "image"} | config)


@cache
def _movq() -> VQModel:
    return seeded(
        lambda: VQModel(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=(*["DownEncoderBlock2D"] * 3, "AttnDownEncoderBlock2D"),
            up_block_types=("AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 3),
            latent_channels=4,
            num_vq_embeddings=16,
            norm_num_groups=2,
        )
    )


@cache
def _multilingual_text_encoder() -> MultilingualCLIP:
    return seeded(
        lambda: MultilingualCLIP(
            MCLIPConfig(
                transformerDimSize=TEXT_WIDTH,
                imageDimSize=TEXT_WIDTH,
                vocab_size=len(clip_tokenizer()),
                hidden_size=TEXT_WIDTH,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=80,
            )
        )
    )


def _first_decoder(**config: Any) -> dict[str, Any]:
    return {
        "text_encoder": _multilingual_text_encoder(),
        "tokenizer": clip_tokenizer(),
        "unet": _first_unet(**config),
        "scheduler": DDIMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1),
        "movq": _movq(),
    }


def _second_decoder(**config: Any) -> dict[str, Any]:
    return {
        "unet": _second_unet(**config),
        "scheduler": DDPMScheduler(beta_start=0.00085, beta_end=0.012, variance_type="learned_range"),
        "movq": _movq(),
    }


def _third_pipeline() -> dict[str, Any]:
    unet = seeded(
        lambda: Kandinsky3UNet(
            time_embedding_dim=8,
            groups=2,
            attention_head_dim=4,
            block_out_channels=(8, 8, 8, 8),
            cross_attention_dim=TEXT_WIDTH,
            encoder_hid_dim=TEXT_WIDTH,
        )
    )
    return {
        "tokenizer": clip_tokenizer(),
        "text_encoder": t5_encoder(),
        "unet": unet,
        "scheduler": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        "movq": _movq(),
    }


def _prior(prefix: str = "") -> dict[str, Any]:
    components = {
        "prior": prior_transformer(),
        "image_encoder": clip_image_encoder(),
        "text_encoder": projecting_text_encoder(),
        "tokenizer": clip_tokenizer(),
        "scheduler": unclip_scheduler(clip_sample_range=10.0),
        "image_processor": None,
    }
    return {prefix + name: component for name, component in components.items()}


def _embeddings() -> dict[str, torch.Tensor]:
    """What the prior gives to the decoder."""
    given, negative = torch.randn(2, 1, TEXT_WIDTH, generator=generator()).unbind()
    return {"image_embeds": given, "negative_image_embeds": negative}


_TEXT = {"prompt": "a red circle"}
_FROM_IMAGE = {"image": image(), "strength": 0.8}
_INPAINT = {"image": image(), "mask_image": mask()}
_HINT = {"hint": image()}
_PRIOR_STEPS = {"prior_num_inference_steps": 2}
# Skips movq's decoder.
_LATENT = {"output_type": "latent"}

_WIDER = {"width": 128, "num_images_per_prompt": 2}
_TWO_IMAGES = {"num_images_per_prompt": 2}
_LESS_STRENGTH = {"strength": 0.4}


def _case(
    name: str,
    components: Callable[[], dict[str, Any]],
    given: dict[str, Any],
    other: dict[str, Any],
    steps: int = 5,
    **details: Any,
) -> PipelineCase:
    """A call of five steps with what is `given`, and one that has `other` settings besides."""
    call = {"num_inference_steps": 5, "height": 64, "width": 64, "output_type": "pt"} | given

    def run(pipe: Any, **changes: Any) -> torch.Tensor:
        return pipe(**call | changes, generator=generator()).images

    return PipelineCase(
        name,
        build=lambda: quiet(getattr(diffusers, name)(**components())),
        run=run,
        run_other=lambda pipe: run(pipe, **other),
        patterns=uniform(steps),
        **details,
    )


_COMBINED = {"note": "the prior runs unchanged; the decoder's U-Net is cached"}
# What the combined pipelines give to their decoder.
_COMBINED_V22 = _COMBINED | {"warns": ("`callback_steps` is deprecated",)}

CASES = [
    _case("KandinskyPipeline", _first_decoder, _TEXT | _embeddings(), _WIDER),
    _case("KandinskyImg2ImgPipeline", _first_decoder, _TEXT | _embeddings() | _FROM_IMAGE, _LESS_STRENGTH, steps=4),
    _case(
        "KandinskyInpaintPipeline",
        lambda: _first_decoder(in_channels=9),
        _TEXT | _embeddings() | _INPAINT,
        _TWO_IMAGES,
    ),
    _case(
        "KandinskyCombinedPipeline",
        lambda: _first_decoder() | _prior("prior_"),
        _TEXT | _PRIOR_STEPS,
        _WIDER,
        **_COMBINED,
    ),
    _case(
        "KandinskyImg2ImgCombinedPipeline",
        lambda: _first_decoder() | _prior("prior_"),
        _TEXT | _PRIOR_STEPS | _FROM_IMAGE,
        _LESS_STRENGTH,
        steps=4,
        **_COMBINED,
    ),
    _case(
        "KandinskyInpaintCombinedPipeline",
        lambda: _first_decoder(in_channels=9) | _prior("prior_"),
        _TEXT | _PRIOR_STEPS | _INPAINT,
        {"guidance_scale": 1.0},
        **_COMBINED,
    ),
    _case("KandinskyV22Pipeline", _second_decoder, _embeddings() | _LATENT, _WIDER),
    _case(
        "KandinskyV22Img2ImgPipeline", _second_decoder, _embeddings() | _LATENT | _FROM_IMAGE, _LESS_STRENGTH, steps=4
    ),
    _case(
        "KandinskyV22InpaintPipeline",
        lambda: _second_decoder(in_channels=9),
        _embeddings() | _LATENT | _INPAINT,
        _TWO_IMAGES,
    ),
    _case(
        "KandinskyV22ControlnetPipeline",
        lambda: _second_decoder(in_channels=8, addition_embed_type="image_hint"),
        _embeddings() | _HINT,
        _TWO_IMAGES,
    ),
    _case(
        "KandinskyV22ControlnetImg2ImgPipeline",
        lambda: _second_decoder(in_channels=8, addition_embed_type="image_hint"),
        _embeddings() | _HINT | _FROM_IMAGE,
        _LESS_STRENGTH,
        steps=4,
    ),
    _case(
        "KandinskyV22CombinedPipeline",
        lambda: _second_decoder() | _prior("prior_"),
        _TEXT | _PRIOR_STEPS | _LATENT,
        _WIDER,
        **_COMBINED_V22,
    ),
    _case(
        "KandinskyV22Img2ImgCombinedPipeline",
        lambda: _second_decoder() | _prior("prior_"),
        _TEXT | _PRIOR_STEPS | _LATENT | _FROM_IMAGE,
        _LESS_STRENGTH,
        steps=4,
        **_COMBINED_V22,
    ),
    _case(
        "KandinskyV22InpaintCombinedPipeline",
        lambda: _second_decoder(in_channels=9) | _prior("prior_"),
        _TEXT | _PRIOR_STEPS | _LATENT | _INPAINT,
        {"num_inference_steps": 4},
        **_COMBINED_V22,
    ),
    _case("Kandinsky3Pipeline", _third_pipeline, _TEXT | _LATENT, _WIDER),
    _case("Kandinsky3Img2ImgPipeline", _third_pipeline, _TEXT | _LATENT | _FROM_IMAGE, _LESS_STRENGTH, steps=4),
]


REFUSED = [
    *(
        refused(
            name,
            "has none among its components (prior, ",
            "its prior is a transformer; the decoder pipeline and the combined one are cached",
            prior=prior_transformer,
        )
        for name in ("KandinskyPriorPipeline", "KandinskyV22PriorPipeline", "KandinskyV22PriorEmb2EmbPipeline")
    ),
]
