"""A CLIP of random weights that scores small images in a moment."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from DeepCache.models import MODELS

CLIP_SIDE = 16


def save_tiny_clip(folder: Path) -> Path:
    """Saves it as published ones are."""
    tokenizer = CLIPTokenizer.from_pretrained(MODELS["shapes"].folder / "tokenizer")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=small
        | {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 16,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config=small | {"image_size": CLIP_SIDE, "patch_size": 4},
        projection_dim=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        clip = CLIPModel(config).eval()
        for parameter in clip.parameters():
            # As they are generated, the weights are so small that all embeddings are alike.
            if parameter.ndim > 1:
                parameter.data.normal_(std=0.5)
    clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": CLIP_SIDE, "width": CLIP_SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": CLIP_SIDE}, crop_size=size).save_pretrained(folder)
    return folder
