"""ComfyUI's own engine, from the checkout that `COMFYUI_PATH` names, on tiny random models."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import torch

from tests.comfyui.absent_modules import stand_in_for

stand_in_for("torchvision", "torchaudio", "av")
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
import comfy.supported_models  # noqa: E402

sys.argv = _arguments

__all__ = ["SAMPLERS", "Residuals", "cond", "model", "repeat", "sample", "sample_at"]

SAMPLERS = comfy.samplers.SAMPLER_NAMES
_TEXT = 64
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
_CONFIGS: dict[str, dict[str, Any]] = {
    "SD15": {},
    "SDXL": {
        "num_res_blocks": [2] * 3,
        "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 4, 4],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 4, 4, 4],
        "transformer_depth_middle": 4,
        "use_linear_in_transformer": True,
        "num_heads": -1,
        "num_head_channels": 16,
        "num_classes": "sequential",
        "adm_in_channels": 2816,
    },
}


def model(kind: str = "SD15", seed: int = 0) -> Any:
    """A model of SD 1.5's or SDXL's shape, all of its weights random."""
    torch.manual_seed(seed)
    config = getattr(comfy.supported_models, kind)(_COMMON | _CONFIGS[kind])
    config.unet_config["dtype"] = torch.float32
    base = config.get_model({}, "").eval()
    with torch.no_grad():
        for name, parameter in base.diffusion_model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(1.0) if name.endswith("weight") else parameter.normal_(0, 0.02)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(base, load_device=cpu, offload_device=cpu)


def cond(seed: int, kind: str = "SD15", **options: Any) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    pooled = {"pooled_output": torch.randn(1, 1280, generator=generator)} if kind == "SDXL" else {}
    return [[torch.randn(1, 7, _TEXT, generator=generator), pooled | options]]


def repeat(model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, disable: Any = None) -> Any:
    """A sampler that evaluates the same several times: all evaluations have one deep feature."""
    first = sigmas[0] * x.new_ones([x.shape[0]])
    # Of many images along the batch, which is what a sampler may return.
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
    """A run of a sampler, by name or a function."""
    latent = torch.zeros(batch, 4, *size) if latent is None else latent
    noise = comfy.sample.prepare_noise(latent, seed)
    positive, negative = positive or cond(10, kind), negative or cond(20, kind)
    common = {"disable_pbar": True, "seed": seed}
    if callable(sampler):
        sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "normal", steps)
        function = comfy.samplers.KSAMPLER(sampler)
        return comfy.sample.sample_custom(patcher, noise, cfg, function, sigmas, positive, negative, latent, **common)
    settings = (steps, cfg, sampler, "normal", positive, negative, latent)
    return comfy.sample.sample(patcher, noise, *settings, denoise=denoise, noise_mask=mask, **common)


def sample_at(
    patcher: Any, noise: torch.Tensor, sigmas: torch.Tensor, cfg: float, positive: Any, negative: Any
) -> torch.Tensor:
    """A run of Euler's method at these noise levels, from this noise times the first of them."""
    euler, common = comfy.samplers.ksampler("euler"), {"disable_pbar": True}
    latent = torch.zeros_like(noise)
    return comfy.sample.sample_custom(patcher, noise, cfg, euler, sigmas, positive, negative, latent, **common)


class Residuals(comfy.controlnet.ControlBase):
    """A ControlNet without a model: residuals that depend on its input, in the shapes that the U-Net takes."""

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
