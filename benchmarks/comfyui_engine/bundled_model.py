"""The bundled model in ComfyUI's own U-Net, with its text encoder and autoencoder behind the methods that nodes call.

Import `engine` first, or run within ComfyUI. It cannot be a checkpoint file: ComfyUI takes all widths for
multiples of the first and each norm to have 32 groups; here the widths are 48, 64 and 96 and the groups 16.
"""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import comfy.utils
import torch

from DeepCache.models import load_pipeline

__all__ = ["Autoencoder", "TextEncoder", "load", "model_of"]


class _Operations(comfy.ops.disable_weight_init):
    """Layers with the number of norm groups of the bundled model."""

    class GroupNorm(comfy.ops.disable_weight_init.GroupNorm):
        def __init__(self, num_groups: int, *arguments: Any, **options: Any) -> None:
            super().__init__(16, *arguments, **options)


class _Multiple:
    """The factor of the first width, which need not be an integer."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __mul__(self, _: int) -> int:
        return self.width

    __rmul__ = __mul__


def load() -> tuple[Any, TextEncoder, Autoencoder]:
    """The outputs of ComfyUI's checkpoint loader: model, text encoder and autoencoder."""
    pipe = load_pipeline(dtype="float32", device="cpu")
    return model_of(pipe), TextEncoder(pipe), Autoencoder(pipe.vae)


def model_of(pipe: Any) -> Any:
    ours = pipe.unet.config
    attends = [int(name.startswith("CrossAttn")) for name in ours.down_block_types]
    layout: dict[str, Any] = {
        "image_size": ours.sample_size,
        "in_channels": ours.in_channels,
        "out_channels": ours.out_channels,
        "model_channels": ours.block_out_channels[0],
        "num_res_blocks": [ours.layers_per_block] * len(attends),
        "channel_mult": [_Multiple(width) for width in ours.block_out_channels],
        "transformer_depth": [here for here in attends for _ in range(ours.layers_per_block)],
        "transformer_depth_output": [here for here in attends for _ in range(ours.layers_per_block + 1)],
        "transformer_depth_middle": 1,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "use_temporal_attention": False,
        "context_dim": ours.cross_attention_dim,
        "num_heads": ours.attention_head_dim[0],
        "num_head_channels": -1,
        "adm_in_channels": None,
        "legacy": False,
        "dropout": 0,
        "dtype": torch.float32,
    }
    config = comfy.supported_models.SD15(layout)
    config.custom_operations = _Operations
    # ComfyUI derives these from the widths of the published model.
    config.unet_config |= {"num_heads": layout["num_heads"], "num_head_channels": -1, "dtype": torch.float32}
    model = config.get_model({}, "").eval()
    model.latent_format.scale_factor = pipe.vae.config.scaling_factor

    weights = pipe.unet.state_dict()
    names = comfy.utils.unet_to_diffusers(layout)
    model.diffusion_model.load_state_dict({names[name]: weight for name, weight in weights.items()})
    heads = dict(zip(ours.block_out_channels, ours.attention_head_dim, strict=True))
    for module in model.diffusion_model.modules():
        if hasattr(module, "dim_head"):
            width = module.to_q.out_features
            module.heads, module.dim_head = heads[width], width // heads[width]
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


class TextEncoder:
    """The text encoder of the pipeline with the two methods that ComfyUI's nodes call."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def tokenize(self, text: str) -> torch.Tensor:
        tokenizer = self._pipe.tokenizer
        options = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
        return tokenizer(text, return_tensors="pt", **options).input_ids

    @torch.no_grad()
    def encode_from_tokens_scheduled(self, tokens: torch.Tensor) -> list[Any]:
        return [[self._pipe.text_encoder(tokens)[0], {}]]


class Autoencoder:
    """The VAE of the pipeline with the method that ComfyUI's nodes call; `samples` are unscaled latents."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae

    @torch.no_grad()
    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        images = self._vae.decode(samples).sample
        return (images / 2 + 0.5).clamp(0, 1).movedim(1, -1)
