"""Stable Cascade and Würstchen."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import DDPMWuerstchenScheduler, StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel, WuerstchenDiffNeXt, WuerstchenPrior

from tests.compatibility.case import PipelineCase, uniform
from tests.compatibility.components import (
    TEXT_WIDTH,
    clip_text_encoder,
    clip_tokenizer,
    generator,
    projecting_text_encoder,
    quiet,
    refused,
    seeded,
)

__all__ = ["CASES", "REFUSED"]

_PRIOR_CHANNELS = 16


@cache
def _vqgan() -> PaellaVQModel:
    return seeded(lambda: PaellaVQModel(bottleneck_blocks=1, embed_dim=8, num_vq_embeddings=16))


def _stable_cascade_prior() -> StableCascadeUNet:
    """The levels of stage C, narrow."""
    return seeded(
        lambda: StableCascadeUNet(
            conditioning_dim=8,
            block_out_channels=(8, 8),
            num_attention_heads=(2, 2),
            down_num_layers_per_block=(1, 2),
            up_num_layers_per_block=(2, 1),
            clip_text_in_channels=TEXT_WIDTH,
            clip_text_pooled_in_channels=TEXT_WIDTH,
            clip_image_in_channels=TEXT_WIDTH,
            switch_level=(False,),
        )
    )


def _stable_cascade_decoder() -> StableCascadeUNet:
    """The levels of stage B, narrow."""
    layers = ("SDCascadeResBlock", "SDCascadeTimestepBlock")
    return seeded(
        lambda: StableCascadeUNet(
            in_channels=4,
            out_channels=4,
            patch_size=2,
            conditioning_dim=8,
            block_out_channels=(8, 8, 8, 8),
            num_attention_heads=(-1, -1, 2, 2),
            down_num_layers_per_block=(1, 1, 2, 1),
            up_num_layers_per_block=(1, 2, 1, 1),
            down_blocks_repeat_mappers=(1, 1, 1, 1),
            up_blocks_repeat_mappers=(3, 3, 2, 2),
            block_types_per_layer=(layers, layers, (*layers, "SDCascadeAttnBlock"), (*layers, "SDCascadeAttnBlock")),
            clip_text_pooled_in_channels=TEXT_WIDTH,
            effnet_in_channels=_PRIOR_CHANNELS,
            pixel_mapper_in_channels=3,
            dropout=(0.1, 0.1, 0.1, 0.1),
        )
    )


def _wuerstchen_decoder() -> WuerstchenDiffNeXt:
    """The levels of Würstchen's stage B, narrow."""
    return seeded(
        lambda: WuerstchenDiffNeXt(
            c_cond=8,
            c_hidden=[8, 8, 8, 8],
            nhead=[-1, 2, 2, 2],
            blocks=[1, 1, 2, 1],
            effnet_embd=_PRIOR_CHANNELS,
            clip_embd=TEXT_WIDTH,
        )
    )


def _wuerstchen_prior() -> WuerstchenPrior:
    return seeded(lambda: WuerstchenPrior(c=8, c_cond=TEXT_WIDTH, depth=1, nhead=2))


def _parts(text_encoder: Any, **denoiser: Any) -> dict[str, Any]:
    return {
        "tokenizer": clip_tokenizer(),
        "text_encoder": text_encoder,
        "scheduler": DDPMWuerstchenScheduler(),
    } | denoiser


def _build(name: str, **components: Any) -> Any:
    return quiet(getattr(diffusers, name)(**components))


def _decoder(name: str) -> Any:
    if name.startswith("Wuerstchen"):
        parts = _parts(clip_text_encoder(), decoder=_wuerstchen_decoder())
    else:
        parts = _parts(projecting_text_encoder(), decoder=_stable_cascade_decoder())
    return _build(name, **parts, vqgan=_vqgan())


def _combined(name: str) -> Any:
    if name.startswith("Wuerstchen"):
        text_encoder: Any = clip_text_encoder()
        prior: Any = _wuerstchen_prior()
        decoder: Any = _wuerstchen_decoder()
    else:
        text_encoder, prior, decoder = projecting_text_encoder(), _stable_cascade_prior(), _stable_cascade_decoder()
    before = {f"prior_{part}": value for part, value in _parts(text_encoder, prior=prior).items()}
    return _build(name, **_parts(text_encoder, decoder=decoder), **before, vqgan=_vqgan())


def _run(pipe: Any, **call: Any) -> torch.Tensor:
    return pipe(
        **{"prompt": "a red circle", "num_inference_steps": 5, "generator": generator(), "output_type": "latent"} | call
    ).images


def _run_prior(pipe: Any, **call: Any) -> torch.Tensor:
    return pipe(
        **{
            "prompt": "a red circle",
            "num_inference_steps": 5,
            "height": 256,
            "width": 256,
            "generator": generator(),
        }
        | call
    ).image_embeddings


def _run_decoder(pipe: Any, width: int = 3, **call: Any) -> torch.Tensor:
    embeddings = torch.randn(1, _PRIOR_CHANNELS, 3, width, generator=generator(1))
    return _run(pipe, image_embeddings=embeddings, **call)


def _run_combined(pipe: Any, **call: Any) -> torch.Tensor:
    return _run(
        pipe,
        **{"prior_num_inference_steps": 4, "height": 128, "width": 128, "decoder_guidance_scale": 1.5} | call,
    )


_GUIDED = {"guidance_scale": 1.5}
_NOT_GUIDED = "the default guidance scale of the decoder is 0, without guidance to reuse"
_PRIOR_AS_IT_IS = "the prior runs unchanged; the decoder is cached"
_BOTH = "the prior and the decoder are cached"

CASES: list[PipelineCase] = [
    PipelineCase(
        "StableCascadePriorPipeline",
        build=lambda: _build(
            "StableCascadePriorPipeline", **_parts(projecting_text_encoder(), prior=_stable_cascade_prior())
        ),
        run=_run_prior,
        run_other=lambda pipe: _run_prior(pipe, width=512, num_images_per_prompt=2, guidance_scale=1.0),
        patterns={"prior": uniform(5)},
    ),
    *(
        case
        for name in ("StableCascadeDecoderPipeline", "WuerstchenDecoderPipeline")
        for case in (
            PipelineCase(
                name,
                build=lambda name=name: _decoder(name),
                run=_run_decoder,
                run_other=lambda pipe: _run_decoder(pipe, width=6, **_GUIDED),
                patterns={"decoder": uniform(5)},
            ),
            PipelineCase(
                name,
                build=lambda name=name: _decoder(name),
                run=lambda pipe: _run_decoder(pipe, **_GUIDED),
                run_other=lambda pipe: _run_decoder(pipe, num_inference_steps=3),
                patterns={"decoder": uniform(5)},
                note=_NOT_GUIDED,
                id="guided",
            ),
        )
    ),
    PipelineCase(
        "StableCascadeCombinedPipeline",
        build=lambda: _combined("StableCascadeCombinedPipeline"),
        run=_run_combined,
        run_other=lambda pipe: _run_combined(pipe, width=256, prior_num_inference_steps=3, decoder_guidance_scale=0.0),
        patterns={"prior_prior": uniform(4), "decoder": uniform(5)},
        note=f"{_BOTH}; {_NOT_GUIDED}",
    ),
    PipelineCase(
        "WuerstchenCombinedPipeline",
        build=lambda: _combined("WuerstchenCombinedPipeline"),
        run=_run_combined,
        run_other=lambda pipe: _run_combined(pipe, width=256, num_inference_steps=3, decoder_guidance_scale=0.0),
        patterns={"decoder": uniform(5)},
        note=f"{_PRIOR_AS_IT_IS}; {_NOT_GUIDED}",
    ),
]

REFUSED = [
    refused(
        "WuerstchenPriorPipeline",
        "has none among its components (tokenizer, text_encoder, prior, ",
        "its prior is a stack of blocks of one resolution",
        prior=_wuerstchen_prior,
    ),
]
