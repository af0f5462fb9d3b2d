"""Video: AnimateDiff, PIA, Stable Video Diffusion, I2VGen-XL, text to video."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    I2VGenXLUNet,
    MotionAdapter,
    SparseControlNetModel,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.utils import pt_to_pil
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.compatibility.case import PipelineCase, RefusedCase, uniform
from tests.compatibility.components import (
    TEXT_WIDTH,
    clip_text_encoder,
    clip_tokenizer,
    controlnet,
    ddim,
    denoise,
    generator,
    image,
    projecting_text_encoder,
    prompted,
    quiet,
    seeded,
    stable_diffusion,
    stable_diffusion_unet,
    stable_diffusion_xl,
    stable_diffusion_xl_unet,
    vae,
)

__all__ = ["CASES", "REFUSED"]

_FRAMES = 2
_IMAGE_SIZE = 64


def _text_and_autoencoder() -> dict[str, Any]:
    return {"vae": vae(), "text_encoder": clip_text_encoder(), "tokenizer": clip_tokenizer(), "scheduler": ddim()}


@cache
def _image_encoder() -> CLIPVisionModelWithProjection:
    return seeded(
        lambda: CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=TEXT_WIDTH,
                intermediate_size=16,
                projection_dim=TEXT_WIDTH,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=_IMAGE_SIZE,
                patch_size=16,
            )
        )
    )


def _image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(crop_size={"height": _IMAGE_SIZE, "width": _IMAGE_SIZE}, size=_IMAGE_SIZE)


def _frames(count: int = _FRAMES) -> list[torch.Tensor]:
    return list(image(batch=count))


# ---- AnimateDiff and PIA: a U-Net for images with motion modules in it


def _motion_adapter(**config: Any) -> MotionAdapter:
    return seeded(
        lambda: MotionAdapter(
            **{
                "block_out_channels": (8, 16, 16, 16),
                "motion_num_attention_heads": 2,
                "motion_norm_num_groups": 4,
            }
            | config
        )
    )


def _animatediff(name: str, **components: Any) -> Any:
    return quiet(
        getattr(diffusers, name)(
            **_text_and_autoencoder()
            | {"unet": stable_diffusion_unet(), "motion_adapter": _motion_adapter()}
            | components
        )
    )


def _animatediff_xl() -> Any:
    return _animatediff(
        "AnimateDiffSDXLPipeline",
        unet=stable_diffusion_xl_unet(),
        motion_adapter=_motion_adapter(block_out_channels=(8, 16, 16)),
        text_encoder_2=projecting_text_encoder(),
        tokenizer_2=clip_tokenizer(),
    )


def _with_free_init() -> Any:
    pipe = _animatediff("AnimateDiffPipeline")
    pipe.enable_free_init(num_iters=2)
    return pipe


def _with_free_noise() -> Any:
    pipe = _animatediff("AnimateDiffPipeline")
    pipe.enable_free_noise(context_length=2, context_stride=1)
    pipe.enable_free_noise_split_inference(spatial_split_size=64, temporal_split_size=4)
    return pipe


def _sparse_controlnet() -> SparseControlNetModel:
    return seeded(
        lambda: SparseControlNetModel(
            conditioning_channels=3,
            block_out_channels=(8, 16, 16, 16),
            norm_num_groups=4,
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=2,
            motion_num_attention_heads=2,
            conditioning_embedding_out_channels=(4, 4, 4, 4),
            use_simplified_condition_embedding=False,
        )
    )


def _run(pipe: Any, steps: int = 5, **call: Any) -> torch.Tensor:
    return prompted(pipe, steps, **call).frames


def _run_text(pipe: Any, **call: Any) -> torch.Tensor:
    return _run(pipe, **{"height": 64, "width": 64, "num_frames": _FRAMES} | call)


def _run_video(pipe: Any, **call: Any) -> torch.Tensor:
    return _run(pipe, **{"video": _frames(), "strength": 0.8} | call)


# ---- U-Nets made for video


def _unet_3d() -> UNet3DConditionModel:
    return seeded(
        lambda: UNet3DConditionModel(
            block_out_channels=(8, 16, 16, 16),
            norm_num_groups=4,
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=2,
        )
    )


def _text_to_video(name: str) -> Any:
    return quiet(getattr(diffusers, name)(**_text_and_autoencoder(), unet=_unet_3d()))


@cache
def _temporal_vae() -> AutoencoderKLTemporalDecoder:
    return seeded(
        lambda: AutoencoderKLTemporalDecoder(
            block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=1
        )
    )


def _stable_video_diffusion() -> Any:
    unet = seeded(
        lambda: UNetSpatioTemporalConditionModel(
            block_out_channels=(32,) * 4,
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=3 * 4,
            cross_attention_dim=TEXT_WIDTH,
            num_attention_heads=2,
        )
    )
    return quiet(
        diffusers.StableVideoDiffusionPipeline(
            vae=_temporal_vae(),
            image_encoder=_image_encoder(),
            unet=unet,
            scheduler=EulerDiscreteScheduler(
                beta_schedule="scaled_linear",
                prediction_type="v_prediction",
                timestep_type="continuous",
                timestep_spacing="leading",
                sigma_min=0.002,
                sigma_max=700.0,
                steps_offset=1,
                use_karras_sigmas=True,
            ),
            feature_extractor=_image_processor(),
        )
    )


def _run_stable_video_diffusion(pipe: Any, steps: int = 5, **call: Any) -> torch.Tensor:
    return pipe(
        **{
            "image": image(),
            "height": 64,
            "width": 64,
            "num_frames": _FRAMES,
            "num_inference_steps": steps,
            "generator": generator(),
            "output_type": "latent",
        }
        | call
    ).frames


def _i2vgen_xl() -> Any:
    unet = seeded(
        lambda: I2VGenXLUNet(
            block_out_channels=(8, 16, 16, 16),
            norm_num_groups=4,
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=2,
        )
    )
    return quiet(
        diffusers.I2VGenXLPipeline(
            **_text_and_autoencoder(),
            image_encoder=_image_encoder(),
            feature_extractor=_image_processor(),
            unet=unet,
        )
    )


def _run_i2vgen_xl(pipe: Any, **call: Any) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]):
        # The pipeline samples the latents of the image without the generator.
        torch.manual_seed(0)
        return _run_text(pipe, image=pt_to_pil(2 * image() - 1)[0], clip_skip=None, **call)


# ---- Text2Video-Zero: Stable Diffusion with attention across frames


def _run_zero(pipe: Any, **call: Any) -> torch.Tensor:
    return denoise(pipe, **{"height": 64, "width": 64, "video_length": _FRAMES, "t0": 1, "t1": 3} | call)


_FIRST_FRAME_THEN_ALL = "two denoising runs, first frame and all frames, each of which starts full"
_WARPING = ("torch.meshgrid: in an upcoming release", "Default grid_sample and affine_grid behavior has changed")

CASES: list[PipelineCase] = [
    PipelineCase(
        "AnimateDiffPipeline",
        build=lambda: _animatediff("AnimateDiffPipeline"),
        run=_run_text,
        run_other=lambda pipe: _run_text(pipe, prompt=["a red circle", "a blue square"], num_frames=3, width=128),
        patterns=uniform(5),
    ),
    PipelineCase(
        "AnimateDiffPipeline",
        build=_with_free_init,
        run=_run_text,
        run_other=lambda pipe: _run_text(pipe, steps=3, guidance_scale=1.0),
        patterns={2: "F.F.F" + "F.F.F", 3: "F..F." + "F..F."},
        id="with FreeInit",
        note="each denoising run of FreeInit starts with a full step",
    ),
    PipelineCase(
        "AnimateDiffPipeline",
        build=_with_free_noise,
        run=lambda pipe: _run_text(pipe, num_frames=4),
        run_other=lambda pipe: _run_text(pipe, num_frames=3, guidance_scale=1.0),
        patterns=uniform(5),
        id="with FreeNoise and split inference",
    ),
    PipelineCase(
        "AnimateDiffControlNetPipeline",
        build=lambda: _animatediff("AnimateDiffControlNetPipeline", controlnet=controlnet(stable_diffusion_unet())),
        run=lambda pipe: _run_text(pipe, conditioning_frames=_frames()),
        run_other=lambda pipe: _run_text(pipe, conditioning_frames=_frames(3), num_frames=3, guidance_scale=1.0),
        patterns=uniform(5),
    ),
    PipelineCase(
        "AnimateDiffPAGPipeline",
        build=lambda: _animatediff("AnimateDiffPAGPipeline"),
        run=_run_text,
        run_other=lambda pipe: _run_text(pipe, pag_scale=0.0),
        patterns=uniform(5),
    ),
    PipelineCase(
        "AnimateDiffSDXLPipeline",
        build=_animatediff_xl,
        run=_run_text,
        run_other=lambda pipe: _run_text(pipe, num_frames=3, denoising_end=0.6),
        patterns=uniform(5),
    ),
    PipelineCase(
        "AnimateDiffSparseControlNetPipeline",
        build=lambda: _animatediff("AnimateDiffSparseControlNetPipeline", controlnet=_sparse_controlnet()),
        run=lambda pipe: _run_text(pipe, conditioning_frames=image()),
        run_other=lambda pipe: _run_text(pipe, conditioning_frames=image(), num_frames=3, guidance_scale=1.0),
        patterns=uniform(5),
    ),
    PipelineCase(
        "AnimateDiffVideoToVideoPipeline",
        build=lambda: _animatediff("AnimateDiffVideoToVideoPipeline"),
        run=lambda pipe: _run_video(pipe, height=64, width=64),
        run_other=lambda pipe: _run_video(pipe, height=64, width=64, strength=0.4),
        patterns=uniform(4),
    ),
    PipelineCase(
        "AnimateDiffVideoToVideoControlNetPipeline",
        build=lambda: _animatediff(
            "AnimateDiffVideoToVideoControlNetPipeline", controlnet=controlnet(stable_diffusion_unet())
        ),
        run=lambda pipe: _run_video(pipe, height=64, width=64, conditioning_frames=_frames()),
        run_other=lambda pipe: _run_video(
            pipe, height=64, width=64, conditioning_frames=_frames(), strength=0.4, control_guidance_end=0.5
        ),
        patterns=uniform(4),
    ),
    PipelineCase(
        "PIAPipeline",
        build=lambda: _animatediff("PIAPipeline", motion_adapter=_motion_adapter(conv_in_channels=9)),
        run=lambda pipe: _run_text(pipe, image=image()),
        run_other=lambda pipe: _run_text(pipe, image=image(), strength=0.6),
        patterns=uniform(5),
    ),
    PipelineCase(
        "StableVideoDiffusionPipeline",
        build=_stable_video_diffusion,
        run=_run_stable_video_diffusion,
        run_other=lambda pipe: _run_stable_video_diffusion(pipe, num_frames=3, max_guidance_scale=1.0),
        patterns=uniform(5),
        warns=("__array__ implementation doesn't accept a copy keyword",),
    ),
    PipelineCase(
        "I2VGenXLPipeline",
        build=_i2vgen_xl,
        run=_run_i2vgen_xl,
        run_other=lambda pipe: _run_i2vgen_xl(pipe, num_frames=3, guidance_scale=1.0),
        patterns=uniform(5),
    ),
    PipelineCase(
        "TextToVideoSDPipeline",
        build=lambda: _text_to_video("TextToVideoSDPipeline"),
        run=_run_text,
        run_other=lambda pipe: _run_text(pipe, num_frames=3, guidance_scale=1.0),
        patterns=uniform(5),
    ),
    PipelineCase(
        "VideoToVideoSDPipeline",
        build=lambda: _text_to_video("VideoToVideoSDPipeline"),
        run=_run_video,
        run_other=lambda pipe: _run_video(pipe, strength=0.4),
        patterns=uniform(4),
    ),
    PipelineCase(
        "TextToVideoZeroPipeline",
        build=lambda: stable_diffusion("TextToVideoZeroPipeline"),
        run=_run_zero,
        run_other=lambda pipe: _run_zero(pipe, video_length=3, t0=2, t1=4, steps=6),
        patterns={2: "F.F" + "F.F.", 3: "F.." + "F..F"},
        note=_FIRST_FRAME_THEN_ALL,
        warns=_WARPING,
    ),
    PipelineCase(
        "TextToVideoZeroPipeline",
        build=lambda: stable_diffusion("TextToVideoZeroPipeline"),
        run=lambda pipe: _run_zero(pipe, t0=2, t1=3),
        run_other=_run_zero,
        patterns={2: "F." + "F.F.", 3: "F." + "F..F"},
        id="with t1 right after t0",
        warns=_WARPING,
    ),
    PipelineCase(
        "TextToVideoZeroSDXLPipeline",
        build=lambda: stable_diffusion_xl("TextToVideoZeroSDXLPipeline"),
        run=lambda pipe: _run_zero(pipe, output_type="pt"),
        run_other=lambda pipe: _run_zero(pipe, output_type="pt", video_length=3, t0=2, t1=4, steps=6),
        patterns={2: "F.F" + "F.F.", 3: "F.." + "F..F"},
        note=_FIRST_FRAME_THEN_ALL,
        warns=_WARPING,
    ),
]

REFUSED: list[RefusedCase] = []
