"""Sound: AudioLDM, AudioLDM 2, MusicLDM, Audio Diffusion, Dance Diffusion."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import AudioLDM2UNet2DConditionModel, AutoencoderKL, IPNDMScheduler, UNet1DModel, UNet2DModel
from diffusers.pipelines.deprecated.audio_diffusion import AudioDiffusionPipeline
from transformers import (
    ClapTextConfig,
    ClapTextModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5Config,
    T5EncoderModel,
)

from tests.compatibility.case import PipelineCase, RefusedCase, uniform
from tests.compatibility.components import TEXT_WIDTH, ddim, generator, quiet, seeded, stable_diffusion_unet

__all__ = ["CASES", "REFUSED"]

_BLOCKS: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
    "up_block_types": (*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 2,
}

# ---- AudioLDM, MusicLDM and AudioLDM 2: the latents of a spectrogram


@cache
def _vae() -> AutoencoderKL:
    return seeded(
        lambda: AutoencoderKL(
            in_channels=1,
            out_channels=1,
            block_out_channels=(4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=2,
            latent_channels=8,
        )
    )


@cache
def _vocoder() -> SpeechT5HifiGan:
    return seeded(
        lambda: SpeechT5HifiGan(
            SpeechT5HifiGanConfig(
                model_in_dim=32,
                upsample_initial_channel=4,
                upsample_rates=[4, 4],
                upsample_kernel_sizes=[8, 8],
                resblock_kernel_sizes=[3],
                resblock_dilation_sizes=[[1]],
            )
        )
    )


@cache
def _text_encoder() -> ClapTextModelWithProjection:
    return seeded(
        lambda: ClapTextModelWithProjection(
            ClapTextConfig(
                vocab_size=8,
                hidden_size=TEXT_WIDTH,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                projection_dim=TEXT_WIDTH,
            )
        )
    )


def _embeddings(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def _class_conditioned(name: str, **components: Any) -> Any:
    """AudioLDM or MusicLDM, whose text is a class embedding and whose cross-attention attends to the image itself."""
    unet = stable_diffusion_unet(
        **_BLOCKS
        | {
            "cross_attention_dim": _BLOCKS["block_out_channels"],
            "class_embed_type": "simple_projection",
            "projection_class_embeddings_input_dim": TEXT_WIDTH,
            "class_embeddings_concat": True,
        }
    )
    return quiet(
        getattr(diffusers, name)(
            vae=_vae(),
            text_encoder=_text_encoder(),
            tokenizer=None,
            unet=unet,
            scheduler=ddim(),
            vocoder=_vocoder(),
            **components,
        )
    )


def _audioldm2() -> Any:
    unet = seeded(
        lambda: AudioLDM2UNet2DConditionModel(
            # A layer attends to itself, to the language model's embeddings and to the text's.
            **_BLOCKS,
            cross_attention_dim=[[None, TEXT_WIDTH, 2 * TEXT_WIDTH]] * 4,
        )
    )
    language = GPT2Config(vocab_size=8, n_positions=8, n_embd=TEXT_WIDTH, n_layer=1, n_head=2)
    text = T5Config(vocab_size=8, d_model=2 * TEXT_WIDTH, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return quiet(
        diffusers.AudioLDM2Pipeline(
            vae=_vae(),
            text_encoder=None,
            text_encoder_2=seeded(lambda: T5EncoderModel(text)),
            projection_model=None,
            language_model=seeded(lambda: GPT2LMHeadModel(language)),
            tokenizer=None,
            tokenizer_2=None,
            feature_extractor=None,
            unet=unet,
            scheduler=ddim(),
            vocoder=_vocoder(),
        )
    )


def _run(pipe: Any, steps: int = 5, **call: Any) -> torch.Tensor:
    return pipe(**{"num_inference_steps": steps, "generator": generator(), "output_type": "latent"} | call).audios


def _run_class_conditioned(pipe: Any, batch: int = 1, **call: Any) -> torch.Tensor:
    return _run(
        pipe,
        prompt_embeds=_embeddings(1, batch, TEXT_WIDTH),
        negative_prompt_embeds=_embeddings(2, batch, TEXT_WIDTH),
        **call,
    )


def _run_audioldm2(pipe: Any, batch: int = 1, **call: Any) -> torch.Tensor:
    return _run(
        pipe,
        prompt_embeds=_embeddings(1, batch, 4, 2 * TEXT_WIDTH),
        negative_prompt_embeds=_embeddings(2, batch, 4, 2 * TEXT_WIDTH),
        generated_prompt_embeds=_embeddings(3, batch, 8, TEXT_WIDTH),
        negative_generated_prompt_embeds=_embeddings(4, batch, 8, TEXT_WIDTH),
        **call,
    )


# ---- Audio Diffusion: a spectrogram as an image


class _SilentMel:
    """Turns spectrograms into silence; diffusers' own needs librosa."""

    def get_sample_rate(self) -> int:
        return 22050

    def image_to_audio(self, image: Any) -> np.ndarray:
        return np.zeros(1)


def _audio_diffusion() -> Any:
    unet = seeded(
        lambda: UNet2DModel(
            sample_size=(32, 32),
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 8, 16, 16, 16, 16),
            down_block_types=(*("DownBlock2D",) * 4, "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
            norm_num_groups=4,
        )
    )
    return quiet(AudioDiffusionPipeline(vqvae=None, unet=unet, mel=_SilentMel(), scheduler=ddim()))


def _run_audio_diffusion(pipe: Any, **call: Any) -> torch.Tensor:
    images, _ = pipe(**{"steps": 5, "generator": generator(), "return_dict": False} | call)
    return torch.stack([torch.from_numpy(np.array(image)) for image in images])


# ---- Dance Diffusion: the wave itself


def _dance_diffusion() -> Any:
    unet = seeded(
        lambda: UNet1DModel(
            sample_rate=16000,
            extra_in_channels=16,
            time_embedding_dim=16,
            # A head of attention has 32 channels.
            block_out_channels=(4,) * 9 + (32,) * 5,
            down_block_types=("DownBlock1DNoSkip", *("DownBlock1D",) * 9, *("AttnDownBlock1D",) * 4),
            up_block_types=(*("AttnUpBlock1D",) * 4, *("UpBlock1D",) * 9, "UpBlock1DNoSkip"),
        )
    )
    return quiet(diffusers.DanceDiffusionPipeline(unet=unet, scheduler=IPNDMScheduler()))


def _run_dance_diffusion(pipe: Any, **call: Any) -> torch.Tensor:
    # No length is shorter for so many blocks.
    call = {"num_inference_steps": 5, "generator": generator(), "audio_length_in_s": 3 * 2**14 / 16000} | call
    return torch.from_numpy(pipe(**call).audios)


CASES: list[PipelineCase] = [
    PipelineCase(
        "AudioLDMPipeline",
        build=lambda: _class_conditioned("AudioLDMPipeline"),
        run=lambda pipe: _run_class_conditioned(pipe, output_type="pt"),
        run_other=lambda pipe: _run_class_conditioned(pipe, output_type="pt", batch=2, audio_length_in_s=0.064),
        patterns=uniform(5),
    ),
    PipelineCase(
        "AudioLDM2Pipeline",
        build=_audioldm2,
        run=_run_audioldm2,
        run_other=lambda pipe: _run_audioldm2(pipe, batch=2, audio_length_in_s=0.064),
        patterns=uniform(5),
    ),
    PipelineCase(
        "MusicLDMPipeline",
        build=lambda: _class_conditioned("MusicLDMPipeline", feature_extractor=None),
        run=_run_class_conditioned,
        run_other=lambda pipe: _run_class_conditioned(pipe, guidance_scale=1.0, steps=3),
        patterns=uniform(5),
    ),
    PipelineCase(
        "AudioDiffusionPipeline",
        build=_audio_diffusion,
        run=_run_audio_diffusion,
        run_other=lambda pipe: _run_audio_diffusion(pipe, batch_size=2, start_step=2),
        patterns=uniform(5),
    ),
    PipelineCase(
        "DanceDiffusionPipeline",
        build=_dance_diffusion,
        run=_run_dance_diffusion,
        run_other=lambda pipe: _run_dance_diffusion(pipe, batch_size=2, num_inference_steps=3),
        patterns=uniform(5),
    ),
]

REFUSED: list[RefusedCase] = []
