"""ComfyUI's own engine, from the checkout at `COMFYUI_PATH`, with tiny random models."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Any

import torch

from benchmarks.comfyui_engine.absent_modules import replace_packages

replace_packages("torchvision", "torchaudio", "av")
sys.path.insert(0, os.environ["COMFYUI_PATH"])
# ComfyUI reads the command line when it is imported.
_arguments, sys.argv = sys.argv, [sys.argv[0], "--cpu"]
import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True
logging.disable(logging.INFO)
import comfy.controlnet  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402

sys.argv = _arguments

__all__ = [
    "SAMPLERS",
    "TRANSFORMERS",
    "Residuals",
    "cond",
    "inpainting",
    "lora",
    "low_memory",
    "model",
    "node",
    "repeat",
    "sample",
    "sample_at",
    "transformer",
    "unload",
]

SAMPLERS = comfy.samplers.SAMPLER_NAMES
_TEXT, _CPU = 64, torch.device("cpu")
_COMMON: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [2] * 4,
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1] * 6 + [0] * 2,
    "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "use_temporal_attention": False,
    "context_dim": _TEXT,
    "num_heads": 4,
    "num_head_channels": -1,
    "adm_in_channels": None,
    "legacy": False,
    "dropout": 0,
    "dtype": torch.float32,
}
_LINEAR = {"use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 16}
_XL = _LINEAR | {
    "num_res_blocks": [2] * 3,
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 4, 4],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 4, 4, 4],
    "transformer_depth_middle": 4,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "SD15": {},
    "SDXL": _XL,
    "SD20": _LINEAR,
    "SDXLRefiner": _LINEAR
    | {
        "transformer_depth": [0, 0, 4, 4, 4, 4, 0, 0],
        "transformer_depth_output": [0] * 3 + [4] * 6 + [0] * 3,
        "transformer_depth_middle": 4,
        "num_classes": "sequential",
        "adm_in_channels": 2560,
    },
    # Its middle block has no transformer.
    "SSD1B": _XL | {"transformer_depth_middle": -1},
    # It has no middle block.
    "KOALA_700M": _XL
    | {
        "num_res_blocks": [1] * 3,
        "transformer_depth": [0, 2, 5],
        "transformer_depth_output": [0, 0, 2, 2, 5, 5],
        "transformer_depth_middle": -2,
    },
    "SVD_img2vid": _LINEAR
    | {
        "in_channels": 8,
        "num_classes": "sequential",
        "adm_in_channels": 768,
        "use_temporal_attention": True,
        "use_temporal_resblock": True,
        "extra_ff_mix_layer": True,
        "use_spatial_context": True,
        "merge_strategy": "learned_with_images",
        "merge_factor": 0.0,
        "video_kernel_size": [3, 1, 1],
    },
    "inpainting": {"in_channels": 9},
    "SD15_instructpix2pix": {"in_channels": 8},
    # Compiles fast.
    "small": {
        "num_res_blocks": [1],
        "channel_mult": [1],
        "transformer_depth": [1],
        "transformer_depth_output": [1, 0],
    },
}
_CLASSES = {"inpainting": "SD15", "small": "SD15"}
# ComfyUI recognises SD 2.x with v-prediction by the standard deviation of this bias.
_STATES = {"SD20": {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([0.0, 1.0])}}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "SD3": {
        "in_channels": 16,
        "patch_size": 2,
        "depth": 1,
        "input_size": None,
        "pos_embed_max_size": 8,
        "adm_in_channels": 16,
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 64}},
    },
    "Stable_Cascade_C": {
        "stable_cascade_stage": "up",
        "c_cond": 32,
        "c_hidden": [32, 32],
        "nhead": [2, 2],
        "blocks": [[1, 1], [1, 1]],
    },
}


def transformer(kind: str) -> Any:
    """A model that is not a U-Net, by its name in `TRANSFORMERS`, with weights on the meta device."""
    base = getattr(comfy.supported_models, kind)(TRANSFORMERS[kind]).get_model({}, "")
    return comfy.model_patcher.ModelPatcher(base, load_device=_CPU, offload_device=_CPU)


def model(kind: str = "SD15", seed: int = 0) -> Any:
    """A model with the layout of SD 1.5, SDXL or another one, with random weights."""
    torch.manual_seed(seed)
    settings = _COMMON | _CONFIGS[kind]
    config = getattr(comfy.supported_models, _CLASSES.get(kind, kind))(settings)
    # ComfyUI derives the heads from the widths of the published model.
    config.unet_config |= settings
    base = config.get_model(_STATES.get(kind, {}), "").eval()
    with torch.no_grad():
        for name, parameter in base.diffusion_model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(1.0) if name.endswith("weight") else parameter.normal_(0, 0.02)
    return comfy.model_patcher.ModelPatcher(base, load_device=_CPU, offload_device=_CPU)


def cond(seed: int, kind: str = "SD15", **options: Any) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    # The kinds with vectors wide enough for it: SDXL and derived models.
    takes_pooled = _CONFIGS[kind].get("adm_in_channels", 0) > 1280
    pooled = {"pooled_output": torch.randn(1, 1280, generator=generator)} if takes_pooled else {}
    return [[torch.randn(1, 7, _TEXT, generator=generator), pooled | options]]


def node(module: str, name: str, patcher: Any, **inputs: Any) -> Any:
    """The model that a node of ComfyUI returns.

    Args:
        module: where it is in `comfy_extras`, without `nodes_`.
        name: its class.
        patcher: the model that it takes.
        inputs: its other inputs.
    """
    kind = getattr(importlib.import_module(f"comfy_extras.nodes_{module}"), name)
    # Nodes of ComfyUI's second kind have `execute`, and return a tuple or an object with one.
    run = kind.execute if hasattr(kind, "execute") else getattr(kind(), kind.FUNCTION)
    found = run(patcher, **inputs)
    return found[0] if isinstance(found, tuple) else found.result[0]


def lora(patcher: Any, seed: int = 5) -> dict[str, torch.Tensor]:
    """A LoRA for the attention layers and convolutions of a model, in its file format."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    for path, weight in patcher.model.diffusion_model.state_dict().items():
        if weight.ndim > 1 and ("attn" in path or "in_layers.2" in path):
            name = "lora_unet_" + path.removesuffix(".weight").replace(".", "_")
            down = torch.randn(2, *weight.shape[1:], generator=generator)
            up = torch.randn(len(weight), 2, *[1] * (weight.ndim - 2), generator=generator)
            weights[f"{name}.lora_down.weight"] = down * weight[0].numel() ** -0.5
            weights[f"{name}.lora_up.weight"] = up
            weights[f"{name}.alpha"] = torch.tensor(1.0)
    return weights


class _LowMemory(comfy.model_patcher.ModelPatcher):
    """Loads a small part of the model: most weights are cast, and LoRAs applied to them, where they are used."""

    def load(
        self, device_to: Any = None, lowvram_model_memory: int = 0, force_patch_weights: bool = False, **others: Any
    ) -> None:
        super().load(device_to, lowvram_model_memory=200_000, force_patch_weights=force_patch_weights)


def low_memory(patcher: Any) -> Any:
    """The model as ComfyUI runs it if the device does not have enough memory."""
    # A loaded model would stay loaded.
    unload()
    changed = patcher.clone()
    changed.__class__ = _LowMemory
    return changed


def unload() -> None:
    """Unloads all models from the device, as ComfyUI does when another one needs the memory."""
    comfy.model_management.unload_all_models()


class _Autoencoder:
    """Replaces a VAE: the mean colour of each patch."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return torch.cat([small, small.mean(1, keepdim=True)], dim=1)


def inpainting() -> dict[str, Any]:
    """The settings of a run that inpaints the right half of an image, for an inpainting model."""
    from nodes import InpaintModelConditioning  # of ComfyUI

    pixels = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(1, 128, 128)
    mask[..., 64:] = 1.0
    prepare = InpaintModelConditioning()
    positive, negative, latent = prepare.encode(cond(10), cond(20), pixels, _Autoencoder(), mask, noise_mask=True)
    return {"positive": positive, "negative": negative, "latent": latent["samples"], "mask": latent["noise_mask"]}


def repeat(model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, disable: Any = None) -> Any:
    """A sampler that evaluates the same input several times, so that all evaluations have the same deep feature."""
    first = sigmas[0] * x.new_ones([x.shape[0]])
    # The predictions of all evaluations along the batch, which a sampler may return.
    return torch.cat([model(x, first, **(extra_args or {})) for _ in sigmas[1:]])


def sample(
    patcher: Any,
    kind: str = "SD15",
    steps: int = 10,
    cfg: float = 4.0,
    sampler: Any = "euler",
    size: tuple[int, int] = (16, 16),
    batch: int = 1,
    positive: Any = None,
    negative: Any = None,
    seed: int = 1,
    latent: Any = None,
    mask: Any = None,
    denoise: float = 1.0,
) -> torch.Tensor:
    """Runs a sampler, given by name or as a function."""
    latent = torch.zeros(batch, 4, *size) if latent is None else latent
    noise = comfy.sample.prepare_noise(latent, seed)
    positive, negative = positive or cond(10, kind), negative or cond(20, kind)
    common = {"disable_pbar": True, "seed": seed, "noise_mask": mask}
    if callable(sampler):
        sampling = patcher.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", int(steps / denoise))[-steps - 1 :]
        function = comfy.samplers.KSAMPLER(sampler)
        return comfy.sample.sample_custom(patcher, noise, cfg, function, sigmas, positive, negative, latent, **common)
    settings = (steps, cfg, sampler, "normal", positive, negative, latent)
    return comfy.sample.sample(patcher, noise, *settings, denoise=denoise, **common)


def sample_at(
    patcher: Any, noise: torch.Tensor, sigmas: torch.Tensor, cfg: float, positive: Any, negative: Any
) -> torch.Tensor:
    """Runs Euler's method at these noise levels, starting from this noise times the first one."""
    euler, common = comfy.samplers.ksampler("euler"), {"disable_pbar": True}
    latent = torch.zeros_like(noise)
    return comfy.sample.sample_custom(patcher, noise, cfg, euler, sigmas, positive, negative, latent, **common)


class Residuals(comfy.controlnet.ControlBase):
    """A ControlNet without a model: residuals that depend on its input, in the shapes that the U-Net expects."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        widths, levels = ([32, 64, 128, 128], 4) if kind == "SD15" else ([32, 64, 128], 3)
        # The outputs of the input blocks: each level has two blocks and, but for the last, a downsampler.
        self._shapes = [(32, 0)]
        for level in range(levels):
            self._shapes += [(widths[level], level)] * 2
            if level < levels - 1:
                self._shapes.append((widths[level], level + 1))

    def get_control(self, x: Any, timestep: Any, cond: Any, batched: int, options: Any = None) -> Any:
        def residual(width: int, level: int) -> torch.Tensor:
            made = torch.nn.functional.adaptive_avg_pool2d(
                x.mean(1, keepdim=True), [-(-side // 2**level) for side in x.shape[2:]]
            )
            return made.expand(-1, width, -1, -1) / 3

        output = [residual(*shape) for shape in self._shapes]
        return {"input": [], "middle": [output[-1] / 2], "output": output}

    def copy(self) -> Residuals:
        return self

    def get_models(self) -> list[Any]:
        return []

    def inference_memory_requirements(self, dtype: Any) -> int:
        return 0
