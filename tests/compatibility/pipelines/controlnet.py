"""Stable Diffusion with ControlNet, ControlNet-XS, T2I-Adapter, GLIGEN or BLIP-Diffusion."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import ConfigMixin, ControlNetXSAdapter, ModelMixin, PNDMScheduler, T2IAdapter
from diffusers.configuration_utils import register_to_config
from diffusers.pipelines.deprecated.blip_diffusion.blip_image_processing import BlipImageProcessor
from diffusers.pipelines.deprecated.blip_diffusion.modeling_ctx_clip import ContextCLIPTextModel
from diffusers.pipelines.stable_diffusion.clip_image_project_model import CLIPImageProjection
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessor, CLIPProcessor

from tests.compatibility.case import PipelineCase, RefusedCase, uniform
from tests.compatibility.components import (
    TEXT_WIDTH,
    clip_image_encoder,
    clip_text_encoder,
    clip_tokenizer,
    controlnet,
    denoise,
    generator,
    image,
    mask,
    quiet,
    seeded,
    stable_diffusion,
    stable_diffusion_unet,
    vae,
)

__all__ = ["CASES", "REFUSED"]


def _controlled(name: str) -> Any:
    unet = stable_diffusion_unet()
    return stable_diffusion(name, unet=unet, controlnet=controlnet(unet))


def _controlnet_xs() -> Any:
    unet = stable_diffusion_unet()
    adapter = seeded(
        lambda: ControlNetXSAdapter.from_unet(
            unet, size_ratio=0.5, conditioning_embedding_out_channels=(4, 4, 4, 4), num_attention_heads=[1, 1, 1, 1]
        ),
        seed=2,
    )
    return stable_diffusion("StableDiffusionControlNetXSPipeline", unet=unet, controlnet=adapter)


def _adapter() -> Any:
    adapter = seeded(lambda: T2IAdapter(channels=[8, 16, 16, 16], num_res_blocks=1, downscale_factor=8))
    return stable_diffusion("StableDiffusionAdapterPipeline", adapter=adapter)


_OBJECTS = {"gligen_phrases": ["a red circle", "a blue square"], "gligen_boxes": [[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1]]}


def _gligen() -> Any:
    return stable_diffusion("StableDiffusionGLIGENPipeline", unet=stable_diffusion_unet(attention_type="gated"))


def _gligen_text_image() -> Any:
    return stable_diffusion(
        "StableDiffusionGLIGENTextImagePipeline",
        unet=stable_diffusion_unet(attention_type="gated-text-image"),
        processor=CLIPProcessor(
            CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), clip_tokenizer()
        ),
        image_encoder=clip_image_encoder(),
        image_project=seeded(lambda: CLIPImageProjection(TEXT_WIDTH)),
    )


class _SubjectQueries(ModelMixin, ConfigMixin):
    """Replaces the Q-Former of BLIP-Diffusion, which fails with transformers 5: returns tokens for the subject of the
    image."""

    @register_to_config
    def __init__(self, num_query_tokens: int = 4) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_query_tokens, TEXT_WIDTH))

    def forward(self, image_input: torch.Tensor, text_input: list[str], return_dict: bool) -> torch.Tensor:
        return self.queries.expand(len(text_input), -1, -1) * image_input.mean()


def _blip(name: str, **components: Any) -> Any:
    return quiet(
        getattr(diffusers, name)(
            **{
                "tokenizer": clip_tokenizer(),
                "text_encoder": seeded(lambda: ContextCLIPTextModel(clip_text_encoder().config)),
                "vae": vae(),
                "unet": stable_diffusion_unet(),
                "scheduler": PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False),
                "qformer": seeded(_SubjectQueries),
                "image_processor": BlipImageProcessor(),
            }
            | components
        )
    )


def _blip_controlled() -> Any:
    unet = stable_diffusion_unet()
    return _blip("BlipDiffusionControlNetPipeline", unet=unet, controlnet=controlnet(unet))


def _run_blip(pipe: Any, steps: int = 5, size: int = 64, **call: Any) -> torch.Tensor:
    return pipe(
        prompt=["in the snow"],
        reference_image=Image.new("RGB", (64, 64), "red"),
        source_subject_category=["circle"],
        target_subject_category=["circle"],
        height=size,
        width=size,
        num_inference_steps=steps,
        generator=generator(),
        output_type="pt",
        **call,
    ).images


_OUTLINE = Image.new("L", (64, 64), "white")
_BLIP_NOTE = "tested with a replacement of diffusers' Q-Former, which fails with transformers 5"

CASES = [
    PipelineCase(
        "StableDiffusionControlNetPipeline",
        build=lambda: _controlled("StableDiffusionControlNetPipeline"),
        run=lambda pipe: denoise(pipe, image=image()),
        run_other=lambda pipe: denoise(pipe, steps=3, image=image(size=128), guess_mode=True),
        patterns=uniform(5),
        note="the ControlNet itself still runs at every step",
    ),
    PipelineCase(
        "StableDiffusionControlNetImg2ImgPipeline",
        build=lambda: _controlled("StableDiffusionControlNetImg2ImgPipeline"),
        run=lambda pipe: denoise(pipe, image=image(), control_image=image(1), strength=0.8),
        run_other=lambda pipe: denoise(pipe, image=image(), control_image=image(1), strength=0.4),
        patterns=uniform(4),
    ),
    PipelineCase(
        "StableDiffusionControlNetInpaintPipeline",
        build=lambda: _controlled("StableDiffusionControlNetInpaintPipeline"),
        run=lambda pipe: denoise(pipe, image=image(), mask_image=mask(), control_image=image(1)),
        run_other=lambda pipe: denoise(pipe, image=image(), mask_image=mask(), control_image=image(1), strength=0.4),
        patterns=uniform(5),
    ),
    PipelineCase(
        "StableDiffusionControlNetXSPipeline",
        build=_controlnet_xs,
        run=lambda pipe: denoise(pipe, image=image()),
        run_other=lambda pipe: denoise(pipe, steps=3, image=image(size=128), guidance_scale=1.0),
        patterns=uniform(5),
    ),
    PipelineCase(
        "StableDiffusionControlNetXSPipeline",
        id="controlled for the first steps only",
        build=_controlnet_xs,
        run=lambda pipe: denoise(pipe, image=image(), control_guidance_end=0.6),
        run_other=lambda pipe: denoise(pipe, image=image(), control_guidance_start=0.6),
        patterns=uniform(5),
    ),
    PipelineCase(
        "StableDiffusionAdapterPipeline",
        build=_adapter,
        run=lambda pipe: denoise(pipe, image=image()),
        run_other=lambda pipe: denoise(pipe, steps=3, image=image(size=128), guidance_scale=1.0),
        patterns=uniform(5),
    ),
    PipelineCase(
        "StableDiffusionGLIGENPipeline",
        build=_gligen,
        run=lambda pipe: denoise(pipe, height=64, width=64, gligen_scheduled_sampling_beta=0.4, **_OBJECTS),
        run_other=lambda pipe: denoise(pipe, steps=3, height=64, width=128, guidance_scale=1.0, **_OBJECTS),
        patterns=uniform(5),
        note="after `gligen_scheduled_sampling_beta`, the deep layers forget the boxes at the next full step",
    ),
    PipelineCase(
        "StableDiffusionGLIGENTextImagePipeline",
        build=_gligen_text_image,
        run=lambda pipe: denoise(pipe, height=64, width=64, gligen_images=[_OUTLINE.convert("RGB")] * 2, **_OBJECTS),
        run_other=lambda pipe: denoise(pipe, steps=3, height=64, width=128, **_OBJECTS),
        # One call with the objects and one without at every step.
        patterns=uniform(5, slots=2),
    ),
    PipelineCase(
        "BlipDiffusionPipeline",
        build=lambda: _blip("BlipDiffusionPipeline"),
        run=_run_blip,
        run_other=lambda pipe: _run_blip(pipe, steps=3, size=128, guidance_scale=1.0),
        # PNDM takes its second step twice.
        patterns=uniform(6),
        note=_BLIP_NOTE,
    ),
    PipelineCase(
        "BlipDiffusionControlNetPipeline",
        build=_blip_controlled,
        run=lambda pipe: _run_blip(pipe, condtioning_image=_OUTLINE),
        run_other=lambda pipe: _run_blip(pipe, steps=3, size=128, guidance_scale=1.0, condtioning_image=_OUTLINE),
        patterns=uniform(6),
        note=_BLIP_NOTE,
    ),
]

REFUSED: list[RefusedCase] = []
