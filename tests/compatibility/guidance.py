"""The pipelines on which guidance reuse is refused, and why."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NOT_HALVED", "Reason"]


@dataclass(frozen=True)
class Reason:
    """Why no half of a batch can be run by itself.

    Args:
        message: a part of the error message.
        note: the same for the page.
    """

    message: str
    note: str


_ONE = "the batch of the U-Net has 1 samples, which is not two halves"
_THREE = "the batch of the U-Net has 3 samples, which is not two halves"
_NO_GUIDANCE = "classifier-free guidance is disabled"
_OTHER_LATENTS = "the two halves of the U-Net's batch are not the same latents"
_SEVERAL_PROMPTS = "has the same latents with several prompts in one half"

_UNGUIDED = Reason(_ONE, "it is not guided")
_UNGUIDED_BY_DEFAULT = Reason(_NO_GUIDANCE, "it is not guided by default")
_ENSEMBLE = Reason(_OTHER_LATENTS, "it is not guided")
_BUILT_IN = Reason(_NO_GUIDANCE, "its guidance is built into the U-Net")
_SAYS_NO = Reason(_NO_GUIDANCE, "it reports no guidance, and interleaves the halves of several views")
_ONE_BY_ONE = Reason(_ONE, "it calls the denoiser once per prompt")
_SUPER_RESOLUTION = Reason(_ONE, "its super-resolution is not guided")
_MORE_PARTS = Reason(_THREE, "its batch has three parts")
_FOUR_PARTS = Reason(_SEVERAL_PROMPTS, "the batch of `generate_mask` has four parts")
_PERTURBED = Reason("perturbed-attention guidance", "its batch has a perturbed part")
_MAPS = Reason("reads the attention maps of whole batches", "it reads the attention maps of the whole batch")
_FRAMES = Reason("counts on the whole batch", "its attention across frames needs the whole batch")

NOT_HALVED: dict[str, Reason] = {
    "AnimateDiffPAGPipeline": _PERTURBED,
    "AudioDiffusionPipeline": _UNGUIDED,
    "ConsistencyModelPipeline": _UNGUIDED,
    "DDIMPipeline": _UNGUIDED,
    "DDPMPipeline": _UNGUIDED,
    "DanceDiffusionPipeline": _UNGUIDED,
    "DreamLiteMobilePipeline": _UNGUIDED,
    "HunyuanDiTPAGPipeline": _PERTURBED,
    "KarrasVePipeline with churn": _UNGUIDED,
    "KarrasVePipeline without churn": _UNGUIDED,
    "KolorsPAGPipeline": _PERTURBED,
    "LDMPipeline": _UNGUIDED,
    "LDMSuperResolutionPipeline": _UNGUIDED,
    "LEditsPPPipelineStableDiffusion": _ONE_BY_ONE,
    "LEditsPPPipelineStableDiffusion without an attention mask": _ONE_BY_ONE,
    "LEditsPPPipelineStableDiffusionXL": _ONE_BY_ONE,
    "LEditsPPPipelineStableDiffusionXL with masks of cross-attention": _ONE_BY_ONE,
    "LatentConsistencyModelImg2ImgPipeline": _BUILT_IN,
    "LatentConsistencyModelPipeline": _BUILT_IN,
    "MarigoldDepthPipeline": _UNGUIDED,
    "MarigoldDepthPipeline ensemble": _ENSEMBLE,
    "MarigoldIntrinsicsPipeline": _ENSEMBLE,
    "MarigoldNormalsPipeline": _ENSEMBLE,
    "PNDMPipeline": _UNGUIDED,
    "RePaintPipeline": _UNGUIDED,
    "ScoreSdeVePipeline": _UNGUIDED,
    "SemanticStableDiffusionPipeline": _MORE_PARTS,
    "StableCascadeDecoderPipeline": _UNGUIDED_BY_DEFAULT,
    "StableDiffusionAttendAndExcitePipeline": _MAPS,
    "StableDiffusionAttendAndExcitePipeline with refinement": _MAPS,
    "StableDiffusionControlNetPAGInpaintPipeline": _PERTURBED,
    "StableDiffusionControlNetPAGPipeline": _PERTURBED,
    "StableDiffusionDiffEditPipeline": _FOUR_PARTS,
    "StableDiffusionInstructPix2PixPipeline": _MORE_PARTS,
    "StableDiffusionPAGImg2ImgPipeline": _PERTURBED,
    "StableDiffusionPAGInpaintPipeline": _PERTURBED,
    "StableDiffusionPAGPipeline": _PERTURBED,
    "StableDiffusionPAGPipeline perturbed above the skip branch": _PERTURBED,
    "StableDiffusionPanoramaPipeline": _SAYS_NO,
    "StableDiffusionPipelineSafe": _MORE_PARTS,
    "StableDiffusionPix2PixZeroPipeline": _MAPS,
    "StableDiffusionSAGPipeline": _MAPS,
    "StableDiffusionSAGPipeline without text guidance": _UNGUIDED,
    "StableDiffusionXLControlNetPAGImg2ImgPipeline": _PERTURBED,
    "StableDiffusionXLControlNetPAGPipeline": _PERTURBED,
    "StableDiffusionXLInstructPix2PixPipeline": _MORE_PARTS,
    "StableDiffusionXLModularPipeline": _ONE_BY_ONE,
    "StableDiffusionXLModularPipeline guided at the first step, perturbed from the third on": _ONE_BY_ONE,
    "StableDiffusionXLModularPipeline guided from the third step on": _ONE_BY_ONE,
    "StableDiffusionXLModularPipeline image to image": _ONE_BY_ONE,
    "StableDiffusionXLModularPipeline inpainting with ControlNet": _ONE_BY_ONE,
    "StableDiffusionXLPAGImg2ImgPipeline": _PERTURBED,
    "StableDiffusionXLPAGInpaintPipeline": _PERTURBED,
    "StableDiffusionXLPAGPipeline": _PERTURBED,
    "TextToVideoZeroPipeline": _FRAMES,
    "TextToVideoZeroPipeline with t1 right after t0": _FRAMES,
    "TextToVideoZeroSDXLPipeline": _FRAMES,
    "UnCLIPImageVariationPipeline": _SUPER_RESOLUTION,
    "UnCLIPPipeline": _SUPER_RESOLUTION,
    "UniDiffuserPipeline img2text": _ONE_BY_ONE,
    "UniDiffuserPipeline joint": _ONE_BY_ONE,
    "UniDiffuserPipeline text2img": _ONE_BY_ONE,
    "WuerstchenDecoderPipeline": _UNGUIDED_BY_DEFAULT,
}
