"""Stable Cascade and Würstchen."""

from __future__ import annotations

from diffusers import StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen import WuerstchenDiffNeXt, WuerstchenPrior

from tests.compatibility.case import PipelineCase
from tests.compatibility.components import TEXT_WIDTH, refused

__all__ = ["CASES", "REFUSED"]


def _stable_cascade_unet() -> StableCascadeUNet:
    return StableCascadeUNet(
        conditioning_dim=8,
        block_out_channels=(8, 8),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_text_pooled_in_channels=TEXT_WIDTH,
    )


def _wuerstchen_decoder() -> WuerstchenDiffNeXt:
    return WuerstchenDiffNeXt(
        c_cond=8,
        c_hidden=[8, 8],
        nhead=[-1, 2],
        blocks=[1, 1],
        level_config=["CT", "CTA"],
        inject_effnet=[False, True],
        clip_embd=TEXT_WIDTH,
    )


def _wuerstchen_prior() -> WuerstchenPrior:
    return WuerstchenPrior(c=8, c_cond=TEXT_WIDTH, depth=1, nhead=2)


_NOTE = "its denoising networks have no mid block and keep one skip connection a resolution"
_STABLE_CASCADE = "cannot cut a StableCascadeUNet: it has no 'mid_block'"
_WUERSTCHEN = "cannot cut a WuerstchenDiffNeXt: it has no 'mid_block'"

CASES: list[PipelineCase] = []

REFUSED = [
    refused("StableCascadeDecoderPipeline", _STABLE_CASCADE, _NOTE, decoder=_stable_cascade_unet),
    refused("StableCascadePriorPipeline", _STABLE_CASCADE, _NOTE, prior=_stable_cascade_unet),
    refused(
        "StableCascadeCombinedPipeline",
        _STABLE_CASCADE,
        _NOTE,
        decoder=_stable_cascade_unet,
        prior_prior=_stable_cascade_unet,
    ),
    refused("WuerstchenDecoderPipeline", _WUERSTCHEN, _NOTE, decoder=_wuerstchen_decoder),
    refused(
        "WuerstchenPriorPipeline",
        "has none among its components (tokenizer, text_encoder, prior, ",
        "its prior is a stack of blocks of one resolution",
        prior=_wuerstchen_prior,
    ),
    refused(
        "WuerstchenCombinedPipeline", _WUERSTCHEN, _NOTE, decoder=_wuerstchen_decoder, prior_prior=_wuerstchen_prior
    ),
]
