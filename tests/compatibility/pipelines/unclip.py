"""unCLIP, Shap-E and UniDiffuser."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    UniDiffuserModel,
    UniDiffuserTextDecoder,
)
from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel
from diffusers.utils import pt_to_pil
from transformers import CLIPImageProcessor

from tests.compatibility.case import PipelineCase, uniform
from tests.compatibility.components import (
    TEXT_WIDTH,
    clip_image_encoder,
    clip_text_encoder,
    clip_tokenizer,
    generator,
    image,
    prior_transformer,
    projecting_text_encoder,
    quiet,
    refused,
    seeded,
    unclip_scheduler,
    vae,
)

__all__ = ["CASES", "REFUSED"]

_WIDTHS = (4, 8, 8, 8)


def _decoder() -> UNet2DConditionModel:
    return seeded(
        lambda: UNet2DConditionModel(
            sample_size=8,
            in_channels=3,
            out_channels=6,
            block_out_channels=_WIDTHS,
            layers_per_block=3,
            down_block_types=("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=(*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"),
            norm_num_groups=2,
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=4,
            class_embed_type="identity",
            resnet_time_scale_shift="scale_shift",
        )
    )


def _super_resolution(seed: int) -> UNet2DModel:
    return seeded(
        lambda: UNet2DModel(
            sample_size=16,
            in_channels=6,
            out_channels=3,
            block_out_channels=_WIDTHS,
            layers_per_block=3,
            down_block_types=("ResnetDownsampleBlock2D",) * 4,
            up_block_types=("ResnetUpsampleBlock2D",) * 4,
            norm_num_groups=2,
            add_attention=False,
            resnet_time_scale_shift="scale_shift",
        ),
        seed,
    )


def _build(name: str, **components: Any) -> Any:
    return quiet(
        getattr(diffusers, name)(
            decoder=_decoder(),
            text_encoder=projecting_text_encoder(),
            tokenizer=clip_tokenizer(),
            text_proj=seeded(
                lambda: UnCLIPTextProjModel(
                    clip_embeddings_dim=TEXT_WIDTH, time_embed_dim=4 * _WIDTHS[0], cross_attention_dim=TEXT_WIDTH
                )
            ),
            super_res_first=_super_resolution(seed=1),
            super_res_last=_super_resolution(seed=2),
            decoder_scheduler=unclip_scheduler(prediction_type="epsilon", variance_type="learned_range"),
            super_res_scheduler=unclip_scheduler(prediction_type="epsilon"),
            **components,
        )
    )


def _run(pipe: Any, **call: Any) -> torch.Tensor:
    images = pipe(
        **{"decoder_num_inference_steps": 5, "super_res_num_inference_steps": 5} | call,
        generator=generator(),
        output_type="np",
    ).images
    return torch.from_numpy(images)


def _run_text(pipe: Any, **call: Any) -> torch.Tensor:
    return _run(pipe, prompt="a red circle", prior_num_inference_steps=2, **call)


def _unidiffuser(mode: str) -> Any:
    """UniDiffuser in one of its modes."""
    tokens = clip_tokenizer().model_max_length
    pipe = quiet(
        diffusers.UniDiffuserPipeline(
            vae=vae(),
            text_encoder=clip_text_encoder(),
            image_encoder=clip_image_encoder(),
            clip_image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
            clip_tokenizer=clip_tokenizer(),
            text_decoder=seeded(
                lambda: UniDiffuserTextDecoder(
                    prefix_length=tokens,
                    prefix_inner_dim=TEXT_WIDTH,
                    vocab_size=8,
                    n_positions=256,
                    n_embd=TEXT_WIDTH,
                    n_layer=1,
                    n_head=2,
                )
            ),
            text_tokenizer=clip_tokenizer(),
            unet=seeded(
                lambda: UniDiffuserModel(
                    text_dim=TEXT_WIDTH,
                    clip_img_dim=TEXT_WIDTH,
                    num_text_tokens=tokens,
                    num_attention_heads=2,
                    attention_head_dim=4,
                    in_channels=4,
                    out_channels=4,
                    num_layers=7,
                    norm_num_groups=2,
                    sample_size=8,
                    patch_size=2,
                )
            ),
            scheduler=DPMSolverMultistepScheduler(),
        )
    )
    getattr(pipe, f"set_{mode}_mode")()
    return pipe


def _run_unidiffuser(pipe: Any, **call: Any) -> torch.Tensor:
    """What is denoised: latents of the image, of the text, or of both."""
    denoised: list[torch.Tensor] = []
    pipe(
        **{"num_inference_steps": 5, "generator": generator(), "output_type": "latent"} | call,
        callback=lambda step, timestep, latents: denoised.append(latents),
    )
    return denoised[-1]


_UNIDIFFUSER = "each call of a step has its own deep feature; the published model has branches 0–14"


# One of the two U-Nets for super-resolution makes every step but the last, the other one the last.
_PATTERNS = {"decoder": uniform(5), "super_res_first": uniform(4), "super_res_last": uniform(1)}
_NOTE = "the decoder and the super-resolution are cached; `super_res_last` has only one step, which is full"

CASES = [
    PipelineCase(
        "UnCLIPPipeline",
        build=lambda: _build(
            "UnCLIPPipeline",
            prior=prior_transformer(),
            prior_scheduler=unclip_scheduler(),
        ),
        run=_run_text,
        run_other=lambda pipe: _run_text(pipe, num_images_per_prompt=2, super_res_num_inference_steps=3),
        patterns=_PATTERNS,
        note=_NOTE,
    ),
    PipelineCase(
        "UnCLIPImageVariationPipeline",
        build=lambda: _build(
            "UnCLIPImageVariationPipeline", image_encoder=clip_image_encoder(), feature_extractor=None
        ),
        run=lambda pipe: _run(pipe, image=image(size=32)),
        run_other=lambda pipe: _run(pipe, image=image(size=32), decoder_guidance_scale=1.0),
        patterns=_PATTERNS,
        note=_NOTE,
    ),
    PipelineCase(
        "UniDiffuserPipeline",
        build=lambda: _unidiffuser("text_to_image"),
        run=lambda pipe: _run_unidiffuser(pipe, prompt="a red circle"),
        run_other=lambda pipe: _run_unidiffuser(pipe, prompt="a red circle", num_images_per_prompt=2),
        patterns=uniform(5, slots=2),
        note=_UNIDIFFUSER,
        id="text2img",
    ),
    PipelineCase(
        "UniDiffuserPipeline",
        build=lambda: _unidiffuser("image_to_text"),
        run=lambda pipe: _run_unidiffuser(pipe, image=pt_to_pil(2 * image() - 1)[0]),
        run_other=lambda pipe: _run_unidiffuser(pipe, image=pt_to_pil(2 * image() - 1)[0], guidance_scale=1.0),
        patterns=uniform(5, slots=2),
        note=_UNIDIFFUSER,
        id="img2text",
    ),
    PipelineCase(
        "UniDiffuserPipeline",
        build=lambda: _unidiffuser("joint"),
        run=_run_unidiffuser,
        run_other=lambda pipe: _run_unidiffuser(pipe, num_inference_steps=3, guidance_scale=1.0),
        patterns=uniform(5, slots=3),
        note=_UNIDIFFUSER,
        id="joint",
    ),
]


REFUSED = [
    *(
        refused(
            name, "has none among its components (prior, ", "it denoises with a transformer", prior=prior_transformer
        )
        for name in ("ShapEPipeline", "ShapEImg2ImgPipeline")
    ),
]
