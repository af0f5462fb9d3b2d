"""Stable Diffusion 1 and 2: text, image and mask to image."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, LCMScheduler
from diffusers.pipelines.deprecated.alt_diffusion.modeling_roberta_series import (
    RobertaSeriesConfig,
    RobertaSeriesModelWithTransformation,
)
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

from tests.compatibility.case import PipelineCase, RefusedCase, uniform
from tests.compatibility.components import (
    TEXT_WIDTH,
    clip_image_encoder,
    clip_tokenizer,
    ddim,
    denoise,
    generator,
    image,
    mask,
    prior_transformer,
    projecting_text_encoder,
    quiet,
    seeded,
    stable_diffusion,
    stable_diffusion_components,
    stable_diffusion_unet,
    unclip_scheduler,
    vae,
)

__all__ = ["CASES", "REFUSED"]

STRENGTH = "steps that `strength` omits are not counted: the first step that runs is full"


def _assemble(name: str, **components: Any) -> Any:
    """A pipeline that knows of no safety checker."""
    return quiet(getattr(diffusers, name)(**stable_diffusion_components() | components))


def _of_size(pipe: Any, **call: Any) -> torch.Tensor:
    return denoise(pipe, **{"height": 64, "width": 64} | call)


def _two_wide_images(pipe: Any, **call: Any) -> torch.Tensor:
    return _of_size(pipe, width=128, num_images_per_prompt=2, guidance_scale=1.0, **call)


@cache
def _vae_of_upscaler() -> AutoencoderKL:
    """Four pixels a latent. The pipeline writes into the configuration of one that has another scaling factor."""
    return seeded(
        lambda: AutoencoderKL(
            block_out_channels=(4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=2,
            scaling_factor=0.08333,
        )
    )


def _build_upscale() -> Any:
    return _assemble(
        "StableDiffusionUpscalePipeline",
        vae=_vae_of_upscaler(),
        low_res_scheduler=DDPMScheduler(beta_schedule="scaled_linear"),
        unet=stable_diffusion_unet(
            in_channels=7,
            down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
            up_block_types=(*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
            only_cross_attention=(True, True, True, False),
            num_class_embeds=1000,
            use_linear_projection=True,
        ),
    )


def _build_latent_upscale() -> Any:
    return _assemble(
        "StableDiffusionLatentUpscalePipeline",
        scheduler=EulerDiscreteScheduler(),
        unet=stable_diffusion_unet(
            block_out_channels=(32, 32, 64, 64),
            layers_per_block=4,
            norm_num_groups=None,
            down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3),
            up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
            mid_block_type=None,
            in_channels=8,
            out_channels=5,
            act_fn="gelu",
            conv_in_kernel=1,
            conv_out_kernel=1,
            time_embedding_type="fourier",
            timestep_post_act="gelu",
            time_cond_proj_dim=128 + TEXT_WIDTH,
            resnet_time_scale_shift="scale_shift",
            attention_head_dim=16,
            cross_attention_norm="layer_norm",
        ),
    )


def _small_latents(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, 8, 8, generator=generator(1))


def _build_image_variation() -> Any:
    return quiet(
        diffusers.StableDiffusionImageVariationPipeline(
            vae=vae(),
            image_encoder=clip_image_encoder(),
            unet=stable_diffusion_unet(),
            scheduler=ddim(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def _vary(pipe: Any, **call: Any) -> torch.Tensor:
    return pipe(image(size=32), num_inference_steps=5, generator=generator(), output_type="latent", **call).images


def _build_unclip(name: str, **components: Any) -> Any:
    return _assemble(
        name,
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=TEXT_WIDTH),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        unet=stable_diffusion_unet(
            class_embed_type="projection",
            # The embedding of the image and that of its noise level.
            projection_class_embeddings_input_dim=2 * TEXT_WIDTH,
            use_linear_projection=True,
        ),
        **components,
    )


def _build_consistency(name: str) -> Any:
    return stable_diffusion(
        name, image_encoder=None, scheduler=LCMScheduler(), unet=stable_diffusion_unet(time_cond_proj_dim=8)
    )


@cache
def _alt_diffusion_text_encoder() -> RobertaSeriesModelWithTransformation:
    tokenizer = clip_tokenizer()
    return seeded(
        lambda: RobertaSeriesModelWithTransformation(
            RobertaSeriesConfig(
                vocab_size=len(tokenizer),
                hidden_size=8,
                project_dim=TEXT_WIDTH,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                # Positions are counted from the one after that of the padding.
                max_position_embeddings=tokenizer.model_max_length + 2,
            )
        )
    )


def _build_alt_diffusion(name: str) -> Any:
    return stable_diffusion(name, text_encoder=_alt_diffusion_text_encoder())


@cache
def _vae_with_depth() -> AutoencoderKL:
    """Three channels of colour and three of depth."""
    return seeded(lambda: AutoencoderKL.from_config(vae().config, in_channels=6, out_channels=6))


def _colour_and_depth(pipe: Any, **call: Any) -> torch.Tensor:
    generated = pipe("a red circle", num_inference_steps=5, generator=generator(), output_type="np", **call)
    return torch.cat([torch.from_numpy(generated.rgb), torch.from_numpy(generated.depth)[..., None]], dim=-1)


CASES = [
    PipelineCase(
        "StableDiffusionPipeline",
        build=lambda: stable_diffusion("StableDiffusionPipeline"),
        run=_of_size,
        run_other=_two_wide_images,
        patterns=uniform(5),
    ),
    PipelineCase(
        "StableDiffusionImg2ImgPipeline",
        build=lambda: stable_diffusion("StableDiffusionImg2ImgPipeline"),
        run=lambda pipe: denoise(pipe, image=image(), strength=0.8),
        run_other=lambda pipe: denoise(pipe, image=image(), strength=0.4),
        patterns=uniform(4),
        note=STRENGTH,
    ),
    PipelineCase(
        "StableDiffusionInpaintPipeline",
        build=lambda: stable_diffusion("StableDiffusionInpaintPipeline", unet=stable_diffusion_unet(in_channels=9)),
        run=lambda pipe: _of_size(pipe, image=image(), mask_image=mask()),
        run_other=lambda pipe: _of_size(pipe, image=image(), mask_image=mask(), strength=0.4),
        patterns=uniform(5),
        note=STRENGTH,
    ),
    PipelineCase(
        "StableDiffusionInpaintPipelineLegacy",
        build=lambda: stable_diffusion("StableDiffusionInpaintPipelineLegacy"),
        run=lambda pipe: denoise(pipe, image=image(), mask_image=mask(), strength=0.8),
        run_other=lambda pipe: denoise(pipe, image=image(), mask_image=mask(), strength=0.4),
        patterns=uniform(4),
        note=STRENGTH,
        warns=("The class .*StableDiffusionInpaintPipelineLegacy",),
    ),
    PipelineCase(
        "StableDiffusionDepth2ImgPipeline",
        build=lambda: _assemble(
            "StableDiffusionDepth2ImgPipeline",
            unet=stable_diffusion_unet(in_channels=5),
            depth_estimator=None,
            feature_extractor=None,
        ),
        run=lambda pipe: denoise(pipe, image=image(), depth_map=image()[:, 0], strength=0.8),
        run_other=lambda pipe: denoise(pipe, image=image(), depth_map=image()[:, 0], strength=0.4),
        patterns=uniform(4),
        note=STRENGTH,
    ),
    PipelineCase(
        "StableDiffusionUpscalePipeline",
        build=_build_upscale,
        # The latents are of the size of the image.
        run=lambda pipe: denoise(pipe, image=image(size=8)),
        run_other=lambda pipe: denoise(pipe, image=image(size=16), guidance_scale=1.0),
        patterns=uniform(5),
    ),
    PipelineCase(
        "StableDiffusionLatentUpscalePipeline",
        build=_build_latent_upscale,
        run=lambda pipe: denoise(pipe, image=_small_latents()),
        run_other=lambda pipe: denoise(pipe, steps=4, image=_small_latents(batch=2), prompt=["a red circle"] * 2),
        patterns=uniform(5),
    ),
    PipelineCase(
        "StableDiffusionImageVariationPipeline",
        build=_build_image_variation,
        run=_vary,
        run_other=lambda pipe: _vary(pipe, num_images_per_prompt=2, guidance_scale=1.0),
        patterns=uniform(5),
    ),
    PipelineCase(
        "StableUnCLIPPipeline",
        build=lambda: _build_unclip(
            "StableUnCLIPPipeline",
            prior=prior_transformer(),
            prior_scheduler=unclip_scheduler(),
            prior_text_encoder=projecting_text_encoder(),
            prior_tokenizer=clip_tokenizer(),
        ),
        run=lambda pipe: _of_size(pipe, prior_num_inference_steps=2),
        run_other=lambda pipe: _two_wide_images(pipe, prior_num_inference_steps=2),
        patterns=uniform(5),
        note="the decoder is cached; the prior is not a U-Net and runs unchanged",
    ),
    PipelineCase(
        "StableUnCLIPImg2ImgPipeline",
        build=lambda: _build_unclip(
            "StableUnCLIPImg2ImgPipeline", image_encoder=clip_image_encoder(), feature_extractor=None
        ),
        run=lambda pipe: _of_size(pipe, image=image(size=32)),
        run_other=lambda pipe: _two_wide_images(pipe, image=image(size=32)),
        patterns=uniform(5),
    ),
    PipelineCase(
        "LatentConsistencyModelPipeline",
        build=lambda: _build_consistency("LatentConsistencyModelPipeline"),
        run=_of_size,
        run_other=_two_wide_images,
        patterns=uniform(5),
        note="at four to eight steps there is little to cache; start with an interval of 2",
    ),
    PipelineCase(
        "LatentConsistencyModelImg2ImgPipeline",
        build=lambda: _build_consistency("LatentConsistencyModelImg2ImgPipeline"),
        run=lambda pipe: denoise(pipe, image=image(), strength=0.8),
        run_other=lambda pipe: denoise(pipe, steps=2, image=image(), strength=0.4),
        # All steps run, regardless of the strength.
        patterns=uniform(5),
    ),
    PipelineCase(
        "AltDiffusionPipeline",
        build=lambda: _build_alt_diffusion("AltDiffusionPipeline"),
        run=_of_size,
        run_other=_two_wide_images,
        patterns=uniform(5),
    ),
    PipelineCase(
        "AltDiffusionImg2ImgPipeline",
        build=lambda: _build_alt_diffusion("AltDiffusionImg2ImgPipeline"),
        run=lambda pipe: denoise(pipe, image=image(), strength=0.8),
        run_other=lambda pipe: denoise(pipe, image=image(), strength=0.4),
        patterns=uniform(4),
        note=STRENGTH,
    ),
    PipelineCase(
        "StableDiffusionPipelineSafe",
        build=lambda: stable_diffusion("StableDiffusionPipelineSafe"),
        run=lambda pipe: torch.from_numpy(_of_size(pipe, output_type="np")),
        run_other=lambda pipe: torch.from_numpy(_two_wide_images(pipe, output_type="np")),
        patterns=uniform(5),
        warns=("The decode_latents method is deprecated", "Safety checker disabled"),
    ),
    PipelineCase(
        "StableDiffusionLDM3DPipeline",
        build=lambda: stable_diffusion("StableDiffusionLDM3DPipeline", vae=_vae_with_depth(), image_encoder=None),
        run=lambda pipe: _colour_and_depth(pipe, height=64, width=64),
        run_other=lambda pipe: _colour_and_depth(pipe, height=64, width=128, guidance_scale=1.0),
        patterns=uniform(5),
        note="colour and depth are made from the same latents, so both are cached",
    ),
]

REFUSED: list[RefusedCase] = []
