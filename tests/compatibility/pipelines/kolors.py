"""Kolors."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers

from tests.compatibility.case import PipelineCase, RefusedCase, uniform
from tests.compatibility.components import (
    TEXT_WIDTH,
    ddim,
    denoise,
    image,
    quiet,
    seeded,
    stable_diffusion_xl_unet,
    vae,
)

__all__ = ["CASES", "REFUSED"]

# While the module of the text encoder is imported.
_WARNS = ("`torch.jit.script` is deprecated",)


@cache
def _tokenizer() -> Any:
    """One token a letter."""
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
    from sentencepiece import SentencePieceTrainer

    with TemporaryDirectory() as folder:
        prefix = Path(folder) / "tokenizer"
        letters = iter(["a red circle", "a blue square"])
        SentencePieceTrainer.train(
            sentence_iterator=letters, model_prefix=str(prefix), vocab_size=19, model_type="char", minloglevel=2
        )
        return ChatGLMTokenizer(str(prefix.with_suffix(".model")))


@cache
def _text_encoder() -> Any:
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

    config = ChatGLMConfig(
        num_layers=1,
        padded_vocab_size=_tokenizer().vocab_size,
        hidden_size=TEXT_WIDTH,
        ffn_hidden_size=16,
        kv_channels=4,
        num_attention_heads=2,
        multi_query_attention=True,
        multi_query_group_num=2,
        seq_length=32,
        original_rope=True,
        # diffusers leaves the weights of the other norm to chance.
        rmsnorm=False,
    )
    return seeded(lambda: ChatGLMModel(config, empty_init=False))


def _kolors(name: str) -> Any:
    return quiet(
        getattr(diffusers, name)(
            vae=vae(),
            text_encoder=_text_encoder(),
            tokenizer=_tokenizer(),
            unet=stable_diffusion_xl_unet(encoder_hid_dim=TEXT_WIDTH, encoder_hid_dim_type="text_proj"),
            scheduler=ddim(),
        )
    )


CASES = [
    PipelineCase(
        "KolorsPipeline",
        build=lambda: _kolors("KolorsPipeline"),
        run=lambda pipe: denoise(pipe, height=64, width=64, max_sequence_length=32),
        run_other=lambda pipe: denoise(pipe, height=64, width=128, max_sequence_length=32, guidance_scale=1.0),
        patterns=uniform(5),
        warns=_WARNS,
    ),
    PipelineCase(
        "KolorsImg2ImgPipeline",
        build=lambda: _kolors("KolorsImg2ImgPipeline"),
        run=lambda pipe: denoise(pipe, image=image(), max_sequence_length=32, strength=0.8),
        run_other=lambda pipe: denoise(pipe, image=image(), max_sequence_length=32, strength=0.4),
        patterns=uniform(4),
        warns=_WARNS,
    ),
    PipelineCase(
        "KolorsPAGPipeline",
        build=lambda: _kolors("KolorsPAGPipeline"),
        run=lambda pipe: denoise(pipe, height=64, width=64, max_sequence_length=32),
        run_other=lambda pipe: denoise(pipe, height=64, width=128, max_sequence_length=32, pag_scale=0.0),
        patterns=uniform(5),
        warns=_WARNS,
    ),
]

REFUSED: list[RefusedCase] = []
