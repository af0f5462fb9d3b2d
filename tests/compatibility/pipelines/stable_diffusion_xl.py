"""Stable Diffusion XL and everything built on it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    ClassifierFreeGuidance,
    ControlNetUnionModel,
    ControlNetXSAdapter,
    DPMSolverMultistepScheduler,
    PerturbedAttentionGuidance,
    StableDiffusionXLAutoBlocks,
    T2IAdapter,
    UNet2DConditionModel,
)

from tests.compatibility.case import PipelineCase, RefusedCase, uniform
from tests.compatibility.components import (
    TEXT_WIDTH,
    controlnet,
    denoise,
    generator,
    image,
    mask,
    quiet,
    seeded,
    stable_diffusion_xl,
    stable_diffusion_xl_components,
    stable_diffusion_xl_unet,
)

__all__ = ["CASES", "REFUSED"]

_INVERSION_STEPS = 5
# Of the scheduler of LEDITS++ with a new numpy.
_COPY_KEYWORD = ("__array__ implementation doesn't accept a copy keyword",)


def _refiner() -> Any:
    """The refiner has a block more than the base and the second text encoder only."""
    unet = stable_diffusion_xl_unet(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4, 4, 4),
        cross_attention_dim=TEXT_WIDTH,
        projection_class_embeddings_input_dim=5 * 4 + TEXT_WIDTH,
    )
    return stable_diffusion_xl(
        "StableDiffusionXLImg2ImgPipeline",
        unet=unet,
        text_encoder=None,
        tokenizer=None,
        requires_aesthetics_score=True,
    )


def _refine(pipe: Any, denoising_start: float) -> torch.Tensor:
    latents = torch.randn(1, 4, 8, 8, generator=generator(1))
    return denoise(pipe, image=latents, denoising_start=denoising_start)


def _adapter() -> Any:
    adapter = seeded(
        lambda: T2IAdapter(
            channels=[8, 16, 16, 16], num_res_blocks=1, downscale_factor=16, adapter_type="full_adapter_xl"
        )
    )
    return stable_diffusion_xl("StableDiffusionXLAdapterPipeline", adapter=adapter)


def _controlled(name: str) -> Any:
    unet = stable_diffusion_xl_unet()
    return stable_diffusion_xl(name, unet=unet, controlnet=controlnet(unet))


def _union(unet: UNet2DConditionModel) -> ControlNetUnionModel:
    names = (
        "block_out_channels",
        "down_block_types",
        "norm_num_groups",
        "cross_attention_dim",
        "attention_head_dim",
        "use_linear_projection",
        "addition_embed_type",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
    )
    return seeded(
        lambda: ControlNetUnionModel(
            **{name: unet.config[name] for name in names},
            conditioning_embedding_out_channels=(4, 4, 4, 4),
            num_trans_channel=8,
            num_trans_head=2,
            num_proj_channel=8,
        ),
        seed=2,
    )


def _united(name: str) -> Any:
    unet = stable_diffusion_xl_unet()
    return stable_diffusion_xl(name, unet=unet, controlnet=_union(unet))


def _controlnet_xs() -> Any:
    unet = stable_diffusion_xl_unet()
    adapter = seeded(
        lambda: ControlNetXSAdapter.from_unet(
            unet, size_ratio=0.5, conditioning_embedding_out_channels=(4, 4, 4, 4), num_attention_heads=[1, 1, 1]
        ),
        seed=2,
    )
    return stable_diffusion_xl("StableDiffusionXLControlNetXSPipeline", unet=unet, controlnet=adapter)


def _ledits() -> Any:
    scheduler = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=2)
    return stable_diffusion_xl("LEditsPPPipelineStableDiffusionXL", scheduler=scheduler)


def _edit(pipe: Any, size: int = 64, **call: Any) -> torch.Tensor:
    pipe.invert(image(size=size), num_inversion_steps=_INVERSION_STEPS, skip=0.2, generator=generator())
    return pipe(**{"editing_prompt": "a blue square", "output_type": "latent"} | call).images


def _inverted_and(edit: dict[int, str]) -> dict[int, str]:
    inversion = uniform(_INVERSION_STEPS)
    return {interval: inversion[interval] + calls for interval, calls in edit.items()}


def _modular(**components: Any) -> Any:
    pipe = StableDiffusionXLAutoBlocks().init_pipeline()
    pipe.update_components(**stable_diffusion_xl_components() | components)
    return quiet(pipe)


def _modular_perturbed() -> Any:
    guider = PerturbedAttentionGuidance(
        stop=0.2, perturbed_guidance_start=0.2, perturbed_guidance_stop=1.0, perturbed_guidance_layers=[0]
    )
    return _modular(guider=guider)


def _modular_controlled() -> Any:
    unet = stable_diffusion_xl_unet()
    return _modular(unet=unet, controlnet=controlnet(unet))


def _run_modular(pipe: Any, **call: Any) -> torch.Tensor:
    return pipe(
        **{"prompt": "a red circle", "num_inference_steps": 5, "generator": generator(), "height": 64, "width": 64}
        | call,
        output="latents",
    )


def _text(name: str, **case: Any) -> PipelineCase:
    return PipelineCase(
        name,
        **{
            "build": lambda: stable_diffusion_xl(name),
            "run": lambda pipe: denoise(pipe, height=64, width=64),
            "run_other": lambda pipe: denoise(pipe, height=64, width=128, guidance_scale=1.0),
            "patterns": uniform(5),
        }
        | case,
    )


def _image_to_image(name: str, **case: Any) -> PipelineCase:
    return PipelineCase(
        name,
        **{
            "build": lambda: stable_diffusion_xl(name),
            "run": lambda pipe: denoise(pipe, image=image(), strength=0.8),
            "run_other": lambda pipe: denoise(pipe, image=image(), strength=0.4),
            "patterns": uniform(4),
        }
        | case,
    )


def _inpainting(name: str, **case: Any) -> PipelineCase:
    return PipelineCase(
        name,
        **{
            "build": lambda: stable_diffusion_xl(name),
            "run": lambda pipe: denoise(pipe, image=image(), mask_image=mask(), strength=0.8),
            "run_other": lambda pipe: denoise(pipe, image=image(), mask_image=mask(), strength=0.4),
            "patterns": uniform(4),
        }
        | case,
    )


CASES = [
    _text("StableDiffusionXLPipeline"),
    _text(
        "StableDiffusionXLPipeline",
        id="ending early",
        # Of the timesteps 801, 601, 401, 201 and 1 those from 200 on.
        run=lambda pipe: denoise(pipe, height=64, width=64, denoising_end=0.8),
        run_other=lambda pipe: denoise(pipe, height=64, width=64, denoising_end=0.4),
        patterns=uniform(4),
    ),
    _image_to_image("StableDiffusionXLImg2ImgPipeline"),
    PipelineCase(
        "StableDiffusionXLImg2ImgPipeline",
        id="as refiner",
        build=_refiner,
        # Of the timesteps 801, 601, 401, 201 and 1 those below 600.
        run=lambda pipe: _refine(pipe, denoising_start=0.4),
        run_other=lambda pipe: _refine(pipe, denoising_start=0.2),
        patterns=uniform(3),
        note="the base and the refiner each need their own helper, and each starts with a full step",
    ),
    _inpainting("StableDiffusionXLInpaintPipeline"),
    _text(
        "StableDiffusionXLInstructPix2PixPipeline",
        build=lambda: stable_diffusion_xl(
            "StableDiffusionXLInstructPix2PixPipeline", unet=stable_diffusion_xl_unet(in_channels=8)
        ),
        run=lambda pipe: denoise(pipe, image=image(), height=64, width=64),
        run_other=lambda pipe: denoise(pipe, image=image(), height=64, width=64, guidance_scale=1.0),
    ),
    _text(
        "StableDiffusionXLAdapterPipeline",
        build=_adapter,
        run=lambda pipe: denoise(pipe, image=image(), adapter_conditioning_factor=0.6),
        run_other=lambda pipe: denoise(pipe, image=image(size=128), guidance_scale=1.0),
    ),
    _text(
        "StableDiffusionXLControlNetPipeline",
        build=lambda: _controlled("StableDiffusionXLControlNetPipeline"),
        run=lambda pipe: denoise(pipe, image=image()),
        run_other=lambda pipe: denoise(pipe, image=image(size=128), guess_mode=True),
    ),
    _image_to_image(
        "StableDiffusionXLControlNetImg2ImgPipeline",
        build=lambda: _controlled("StableDiffusionXLControlNetImg2ImgPipeline"),
        run=lambda pipe: denoise(pipe, image=image(), control_image=image(1), strength=0.8),
        run_other=lambda pipe: denoise(pipe, image=image(), control_image=image(1), strength=0.4),
    ),
    _inpainting(
        "StableDiffusionXLControlNetInpaintPipeline",
        build=lambda: _controlled("StableDiffusionXLControlNetInpaintPipeline"),
        run=lambda pipe: denoise(pipe, image=image(), mask_image=mask(), control_image=image(1), strength=0.8),
        run_other=lambda pipe: denoise(pipe, image=image(), mask_image=mask(), control_image=image(1), strength=0.4),
    ),
    _text(
        "StableDiffusionXLControlNetUnionPipeline",
        build=lambda: _united("StableDiffusionXLControlNetUnionPipeline"),
        run=lambda pipe: denoise(pipe, control_image=[image(), image(1)], control_mode=[0, 3]),
        run_other=lambda pipe: denoise(pipe, control_image=[image(size=128)], control_mode=[1], guidance_scale=1.0),
    ),
    _image_to_image(
        "StableDiffusionXLControlNetUnionImg2ImgPipeline",
        build=lambda: _united("StableDiffusionXLControlNetUnionImg2ImgPipeline"),
        run=lambda pipe: denoise(pipe, image=image(), control_image=[image(1)], control_mode=[3], strength=0.8),
        run_other=lambda pipe: denoise(pipe, image=image(), control_image=[image(1)], control_mode=[3], strength=0.4),
    ),
    _inpainting(
        "StableDiffusionXLControlNetUnionInpaintPipeline",
        build=lambda: _united("StableDiffusionXLControlNetUnionInpaintPipeline"),
        run=lambda pipe: denoise(
            pipe, image=image(), mask_image=mask(), control_image=[image(1)], control_mode=[3], strength=0.8
        ),
        run_other=lambda pipe: denoise(
            pipe, image=image(), mask_image=mask(), control_image=[image(1)], control_mode=[3], strength=0.4
        ),
    ),
    _text(
        "StableDiffusionXLControlNetXSPipeline",
        build=_controlnet_xs,
        run=lambda pipe: denoise(pipe, image=image()),
        run_other=lambda pipe: denoise(pipe, image=image(size=128), guidance_scale=1.0),
    ),
    _text("StableDiffusionXLPAGPipeline"),
    _image_to_image("StableDiffusionXLPAGImg2ImgPipeline"),
    _inpainting("StableDiffusionXLPAGInpaintPipeline"),
    _text(
        "StableDiffusionXLControlNetPAGPipeline",
        build=lambda: _controlled("StableDiffusionXLControlNetPAGPipeline"),
        run=lambda pipe: denoise(pipe, image=image()),
        run_other=lambda pipe: denoise(pipe, image=image(size=128), pag_scale=0.0),
    ),
    _image_to_image(
        "StableDiffusionXLControlNetPAGImg2ImgPipeline",
        build=lambda: _controlled("StableDiffusionXLControlNetPAGImg2ImgPipeline"),
        run=lambda pipe: denoise(pipe, image=image(), control_image=image(1), strength=0.8),
        run_other=lambda pipe: denoise(pipe, image=image(), control_image=image(1), strength=0.4),
    ),
    PipelineCase(
        "LEditsPPPipelineStableDiffusionXL",
        build=_ledits,
        run=_edit,
        run_other=lambda pipe: _edit(pipe, size=128),
        patterns=_inverted_and(uniform(_INVERSION_STEPS)),
        warns=_COPY_KEYWORD,
        note="`invert` and the edit are two denoising runs; use the same settings for both, or unedited parts of the "
        "image change",
    ),
    PipelineCase(
        "LEditsPPPipelineStableDiffusionXL",
        id="with masks of cross-attention",
        build=_ledits,
        run=lambda pipe: _edit(pipe, use_cross_attn_mask=True),
        run_other=lambda pipe: _edit(pipe, use_cross_attn_mask=True, use_intersect_mask=True),
        patterns=_inverted_and(uniform(_INVERSION_STEPS)),
        warns=_COPY_KEYWORD,
        note="masks use the attention of deep layers, which on a shallow step is computed from the inputs of the "
        "last full step",
    ),
    PipelineCase(
        "StableDiffusionXLModularPipeline",
        build=_modular,
        run=_run_modular,
        run_other=lambda pipe: _run_modular(pipe, width=128),
        # The prompt and the negative prompt each have a call.
        patterns=uniform(5, slots=2),
        note="each guider call of a step has its own deep feature",
    ),
    PipelineCase(
        "StableDiffusionXLModularPipeline",
        id="guided from the third step on",
        build=lambda: _modular(guider=ClassifierFreeGuidance(start=0.4)),
        run=_run_modular,
        run_other=lambda pipe: _run_modular(pipe, width=128),
        # The first call of the negative prompt is full, as it has no deep feature yet.
        patterns={2: "F." + "FF..FF", 3: "F." + ".FFF.."},
    ),
    PipelineCase(
        "StableDiffusionXLModularPipeline",
        id="guided at the first step, perturbed from the third on",
        build=_modular_perturbed,
        run=_run_modular,
        run_other=lambda pipe: _run_modular(pipe, width=128),
        # The first perturbed call is full: the deep feature of the negative prompt, which was the second call of the
        # first step, is not its own.
        patterns={2: "FF" + "." + "FF..FF", 3: "FF" + "." + ".FFF.."},
    ),
    PipelineCase(
        "StableDiffusionXLModularPipeline",
        id="image to image",
        build=_modular,
        run=lambda pipe: _run_modular(pipe, image=image(), strength=0.8),
        run_other=lambda pipe: _run_modular(pipe, image=image(), strength=0.4),
        patterns=uniform(4, slots=2),
    ),
    PipelineCase(
        "StableDiffusionXLModularPipeline",
        id="inpainting with ControlNet",
        build=_modular_controlled,
        run=lambda pipe: _run_modular(
            pipe, image=image(), mask_image=mask(), control_image=image(1), strength=0.8, control_guidance_end=0.6
        ),
        run_other=lambda pipe: _run_modular(pipe, control_image=image(1), guess_mode=True),
        patterns=uniform(4, slots=2),
    ),
]

REFUSED: list[RefusedCase] = []
