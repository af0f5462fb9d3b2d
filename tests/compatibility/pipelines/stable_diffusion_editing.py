"""Pipelines built on Stable Diffusion that edit, guide or combine."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import diffusers
import torch
from diffusers import DDIMInverseScheduler, DDIMParallelScheduler, DPMSolverMultistepScheduler
from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder
from transformers import CLIPVisionConfig

from tests.compatibility.case import PipelineCase, RefusedCase, uniform
from tests.compatibility.components import (
    TEXT_WIDTH,
    clip_tokenizer,
    ddim,
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

ARRAY_OF_TENSORS = ("__array__ implementation doesn't accept a copy keyword",)


def _of_size(pipe: Any, **call: Any) -> torch.Tensor:
    return denoise(pipe, **{"height": 64, "width": 64} | call)


def _one_after_another(*runs: dict[int, str]) -> dict[int, str]:
    return {interval: "".join(run[interval] for run in runs) for interval in runs[0]}


def _after_a_full_call(steps: int) -> dict[int, str]:
    """The calls of a run whose every step begins with one through which a gradient is taken."""
    return {interval: "".join(f"F{call}" for call in calls) for interval, calls in uniform(steps).items()}


def _all_full(calls: int) -> dict[int, str]:
    return dict.fromkeys(uniform(calls), "F" * calls)


def _cycle(pipe: Any, **call: Any) -> torch.Tensor:
    return denoise(pipe, source_prompt="a blue circle", image=image(), **call)


def _edit_with_mask(pipe: Any, strength: float) -> torch.Tensor:
    """All three parts of DiffEdit: where to edit, the latents of the image, the edit."""
    edit_mask = pipe.generate_mask(
        image(),
        source_prompt="a blue circle",
        target_prompt="a red circle",
        num_maps_per_mask=2,
        num_inference_steps=5,
        generator=generator(),
        output_type="np",
    )
    inverted = pipe.invert(
        "a blue circle", image(), num_inference_steps=5, inpaint_strength=strength, generator=generator()
    )
    return denoise(
        pipe, mask_image=torch.from_numpy(edit_mask), image_latents=inverted.latents, inpaint_strength=strength
    )


def _excite(pipe: Any, **call: Any) -> torch.Tensor:
    # The attention maps of two by two latents, the size of those of 16 by 16 in an image of 512 pixels.
    return _of_size(pipe, **{"token_indices": [2, 3], "attn_res": (2, 2), "thresholds": {}} | call)


def _build_with_one_refinement() -> Any:
    """Attend-and-Excite that refines the latents of a step once where they miss the threshold, instead of 20 times."""
    pipe = stable_diffusion("StableDiffusionAttendAndExcitePipeline")
    pipe._perform_iterative_refinement_step = partial(pipe._perform_iterative_refinement_step, max_refinement_steps=1)
    return pipe


def _with_target_attention(pipe: Any, **call: Any) -> torch.Tensor:
    embeddings = torch.rand(2, 1, clip_tokenizer().model_max_length, TEXT_WIDTH, generator=generator())
    return _of_size(pipe, source_embeds=embeddings[0], target_embeds=embeddings[1], **call)


def _invert_and_edit(pipe: Any, source: str = "a blue circle", **call: Any) -> torch.Tensor:
    pipe.invert(image(), source_prompt=source, num_inversion_steps=5, skip=0.2, generator=generator())
    return pipe(
        editing_prompt=["a red circle"], edit_warmup_steps=0, generator=generator(), output_type="latent", **call
    ).images


def _build_inversion() -> Any:
    return stable_diffusion(
        "LEditsPPPipelineStableDiffusion",
        scheduler=DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", steps_offset=1),
    )


@cache
def _example_encoder() -> PaintByExampleImageEncoder:
    return seeded(
        lambda: PaintByExampleImageEncoder(
            CLIPVisionConfig(
                hidden_size=8,
                intermediate_size=16,
                projection_dim=TEXT_WIDTH,
                # The encoder has a mapper of its own for every five of them.
                num_hidden_layers=4,
                num_attention_heads=2,
                image_size=32,
                patch_size=16,
            )
        )
    )


def _build_paint_by_example() -> Any:
    return quiet(
        diffusers.PaintByExamplePipeline(
            vae=vae(),
            image_encoder=_example_encoder(),
            unet=stable_diffusion_unet(in_channels=9),
            scheduler=ddim(),
            safety_checker=None,
            feature_extractor=None,
        )
    )


def _paint(pipe: Any, **call: Any) -> torch.Tensor:
    return pipe(
        example_image=image(size=32),
        image=image(seed=1),
        mask_image=mask(),
        num_inference_steps=5,
        generator=generator(),
        output_type="latent",
        **call,
    ).images


CASES = [
    PipelineCase(
        "StableDiffusionInstructPix2PixPipeline",
        build=lambda: stable_diffusion(
            "StableDiffusionInstructPix2PixPipeline", unet=stable_diffusion_unet(in_channels=8)
        ),
        run=lambda pipe: denoise(pipe, image=image()),
        run_other=lambda pipe: denoise(pipe, image=image(size=128), guidance_scale=1.0),
        patterns=uniform(5),
    ),
    PipelineCase(
        "CycleDiffusionPipeline",
        build=lambda: stable_diffusion("CycleDiffusionPipeline"),
        run=lambda pipe: _cycle(pipe, strength=0.8),
        run_other=lambda pipe: _cycle(pipe, strength=0.4, guidance_scale=1.0),
        patterns=uniform(4),
        note="steps that `strength` omits are not counted: the first step that runs is full",
    ),
    PipelineCase(
        "StableDiffusionDiffEditPipeline",
        build=lambda: stable_diffusion("StableDiffusionDiffEditPipeline", inverse_scheduler=DDIMInverseScheduler()),
        run=lambda pipe: _edit_with_mask(pipe, strength=0.8),
        run_other=lambda pipe: _edit_with_mask(pipe, strength=0.6),
        # The mask takes one call of the U-Net, the inversion four steps and the edit four.
        patterns=_one_after_another(uniform(1), uniform(4), uniform(4)),
        note="`generate_mask` (one full step), `invert` and the call each start with a full step",
    ),
    PipelineCase(
        "StableDiffusionPanoramaPipeline",
        build=lambda: stable_diffusion("StableDiffusionPanoramaPipeline"),
        # A view is 512 pixels wide and the next begins 64 further.
        run=lambda pipe: _of_size(pipe, width=576, steps=4),
        run_other=lambda pipe: _of_size(pipe, width=576, steps=4, view_batch_size=2, guidance_scale=1.0),
        patterns=uniform(4, slots=2),
        note="every view, or batch of views, has its own deep feature",
    ),
    PipelineCase(
        "StableDiffusionParadigmsPipeline",
        id="one step at a time",
        build=lambda: stable_diffusion("StableDiffusionParadigmsPipeline", scheduler=DDIMParallelScheduler()),
        run=lambda pipe: _of_size(pipe, parallel=1),
        run_other=lambda pipe: _of_size(pipe, parallel=1, steps=3, guidance_scale=1.0),
        patterns=uniform(5),
    ),
    PipelineCase(
        "StableDiffusionParadigmsPipeline",
        id="several steps at once",
        build=lambda: stable_diffusion("StableDiffusionParadigmsPipeline", scheduler=DDIMParallelScheduler()),
        # Without tolerance the window of three steps moves on by one a call.
        run=lambda pipe: _of_size(pipe, parallel=3, tolerance=0.0),
        run_other=lambda pipe: _of_size(pipe, parallel=2, tolerance=0.0, guidance_scale=1.0),
        patterns=_all_full(5),
        note="a call for several steps at once is full, so only `parallel=1` is cached",
    ),
    PipelineCase(
        "StableDiffusionSAGPipeline",
        build=lambda: stable_diffusion("StableDiffusionSAGPipeline"),
        run=_of_size,
        run_other=lambda pipe: _of_size(pipe, width=128, guidance_scale=1.0),
        # Once on the latents and once on those that are blurred where the attention of the mid block is high.
        patterns=uniform(5, slots=2),
        note="a shallow step blurs where the attention of the last full step was high",
    ),
    PipelineCase(
        "StableDiffusionSAGPipeline",
        id="without text guidance",
        build=lambda: stable_diffusion("StableDiffusionSAGPipeline"),
        run=lambda pipe: _of_size(pipe, guidance_scale=1.0),
        run_other=lambda pipe: _of_size(pipe, width=128),
        patterns=uniform(5, slots=2),
    ),
    PipelineCase(
        "StableDiffusionAttendAndExcitePipeline",
        build=lambda: stable_diffusion("StableDiffusionAttendAndExcitePipeline"),
        run=_excite,
        run_other=lambda pipe: _excite(pipe, steps=3, max_iter_to_alter=1, guidance_scale=1.0),
        patterns=_after_a_full_call(5),
        note="calls with gradients are full; the denoising call is cached",
        warns=("torch.meshgrid",),
    ),
    PipelineCase(
        "StableDiffusionAttendAndExcitePipeline",
        id="with refinement",
        build=_build_with_one_refinement,
        # No attention is as high as 1: the first step makes two more calls, that of the refinement and the one after.
        run=lambda pipe: _excite(pipe, thresholds={0: 1.0}, steps=3),
        run_other=lambda pipe: _excite(pipe, thresholds={0: 1.0}, steps=2, guidance_scale=1.0),
        patterns=_one_after_another(_all_full(2), _after_a_full_call(3)),
        warns=("torch.meshgrid",),
    ),
    PipelineCase(
        "StableDiffusionModelEditingPipeline",
        build=lambda: stable_diffusion("StableDiffusionModelEditingPipeline"),
        run=_of_size,
        run_other=lambda pipe: _of_size(pipe, width=128, guidance_scale=1.0),
        patterns=uniform(5),
    ),
    PipelineCase(
        "StableDiffusionPix2PixZeroPipeline",
        build=lambda: stable_diffusion(
            "StableDiffusionPix2PixZeroPipeline",
            inverse_scheduler=DDIMInverseScheduler(),
            caption_generator=None,
            caption_processor=None,
        ),
        run=_with_target_attention,
        run_other=lambda pipe: _with_target_attention(pipe, steps=3),
        # All steps to note down every attention map, then all again: a gradient that pulls towards the maps, and the
        # prediction itself.
        patterns=_one_after_another(uniform(5), _after_a_full_call(5)),
        note="calls with gradients are full; on a shallow step they are compared with the attention maps of "
        "the last full step",
    ),
    PipelineCase(
        "SemanticStableDiffusionPipeline",
        build=lambda: stable_diffusion("SemanticStableDiffusionPipeline"),
        run=lambda pipe: _of_size(pipe, editing_prompt=["a blue square"], edit_warmup_steps=1),
        run_other=lambda pipe: _of_size(pipe, width=128),
        patterns=uniform(5),
    ),
    PipelineCase(
        "PaintByExamplePipeline",
        build=_build_paint_by_example,
        run=_paint,
        run_other=lambda pipe: _paint(pipe, num_images_per_prompt=2, guidance_scale=1.0),
        patterns=uniform(5),
    ),
    PipelineCase(
        "LEditsPPPipelineStableDiffusion",
        build=_build_inversion,
        run=_invert_and_edit,
        # Without a prompt for the image the inversion makes one call a step.
        run_other=lambda pipe: _invert_and_edit(pipe, source=""),
        patterns=_one_after_another(uniform(5, slots=2), uniform(5)),
        note="enable DeepCache for both `invert` and the call, so that their noise matches; the mask "
        "of a shallow step uses the attention maps of the last full step",
        warns=ARRAY_OF_TENSORS,
    ),
    PipelineCase(
        "LEditsPPPipelineStableDiffusion",
        id="without an attention mask",
        build=_build_inversion,
        run=lambda pipe: _invert_and_edit(pipe, use_intersect_mask=False),
        run_other=lambda pipe: _invert_and_edit(pipe, source="", use_intersect_mask=False),
        patterns=_one_after_another(uniform(5, slots=2), uniform(5)),
        warns=ARRAY_OF_TENSORS,
    ),
]

REFUSED: list[RefusedCase] = []
