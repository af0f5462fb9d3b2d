"""Published pipelines by name, with random weights: for measuring time, memory and cost without a download."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from DeepCache.models.device import resolve_device, resolve_dtype, warn_of_emulation
from DeepCache.models.registry import MODELS

if TYPE_CHECKING:
    import torch
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

__all__ = ["ARCHITECTURES", "Architecture", "Component", "architecture_names", "changed", "random_pipeline"]

_TINY = "-tiny"


@dataclass(frozen=True)
class Component:
    """A component of a pipeline.

    Args:
        kind: its class, from diffusers or transformers.
        config: its configuration, where it differs from the default of the class.
    """

    kind: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """A pipeline without its weights.

    Args:
        name: the name for `random_pipeline`, `load_pipeline` and the commands.
        summary: a description in one sentence.
        pipeline: the pipeline class of diffusers.
        networks: the components with weights, by name.
        scheduler: the scheduler.
        options: further arguments of the pipeline class.
        size: width and height of its images in pixels. A tiny video pipeline has another default size.
    """

    name: str
    summary: str
    pipeline: str
    networks: dict[str, Component]
    scheduler: Component
    options: dict[str, Any]
    size: tuple[int, int]


def changed(model: Architecture, **configs: dict[str, Any]) -> Architecture:
    """The architecture with changes to the configurations of its networks."""
    networks = {
        name: replace(network, config=network.config | configs.get(name, {}))
        for name, network in model.networks.items()
    }
    return replace(model, networks=networks)


def _clip(kind: str, width: int, layers: int, heads: int, projection: int, **config: Any) -> Component:
    size = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    return Component(kind, size | {"num_attention_heads": heads, "projection_dim": projection} | config)


# With the published `eos_token_id` of 2, transformers takes the pooled state at the highest id: at the end of the text,
# as in the vocabulary of the bundled model.
_TEXT = {"vocab_size": 49408, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
_CLIP_L = _clip("CLIPTextModel", 768, 12, 12, 768, hidden_act="quick_gelu", **_TEXT)
_OPENCLIP_H = _clip("CLIPTextModel", 1024, 23, 16, 512, hidden_act="gelu", **_TEXT)
_OPENCLIP_BIG_G = _clip("CLIPTextModelWithProjection", 1280, 32, 20, 1280, hidden_act="gelu", **_TEXT)
_VISION = {"hidden_act": "gelu", "image_size": 224, "patch_size": 14}
_OPENCLIP_H_VISION = _clip("CLIPVisionModelWithProjection", 1280, 32, 16, 1024, **_VISION)

_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
_EULER = Component("EulerDiscreteScheduler", _BETAS | {"steps_offset": 1, "timestep_spacing": "leading"})
_PNDM = Component("PNDMScheduler", _BETAS | {"skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False})
_V_DDIM = Component(
    "DDIMScheduler",
    _BETAS | {"prediction_type": "v_prediction", "clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False},
)


def _vae(sample_size: int, scaling_factor: float, kind: str = "AutoencoderKL", **config: Any) -> Component:
    blocks = {"block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4}
    sizes = {"layers_per_block": 2, "sample_size": sample_size, "scaling_factor": scaling_factor}
    return Component(kind, blocks | sizes | config)


_KL: dict[str, Any] = {"up_block_types": ("UpDecoderBlock2D",) * 4, "latent_channels": 4}


def _stable_diffusion(
    name: str, summary: str, pixels: int, unet: dict[str, Any], text_encoder: Component, scheduler: Component
) -> Architecture:
    wide = {"sample_size": pixels // 8, "block_out_channels": (320, 640, 1280, 1280)}
    return Architecture(
        name,
        summary,
        "StableDiffusionPipeline",
        networks={
            "unet": Component("UNet2DConditionModel", wide | unet),
            "text_encoder": text_encoder,
            "vae": _vae(pixels, 0.18215, **_KL),
        },
        scheduler=scheduler,
        options={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
        size=(pixels, pixels),
    )


_SD15 = _stable_diffusion(
    "sd15", "Stable Diffusion 1.5.", 512, {"attention_head_dim": 8, "cross_attention_dim": 768}, _CLIP_L, _PNDM
)
_SD21_UNET = {
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "upcast_attention": True,
}
_SD21 = _stable_diffusion("sd21", "Stable Diffusion 2.1 for 768 pixels.", 768, _SD21_UNET, _OPENCLIP_H, _V_DDIM)

_SDXL = Architecture(
    "sdxl",
    "Stable Diffusion XL 1.0.",
    "StableDiffusionXLPipeline",
    networks={
        "unet": Component(
            "UNet2DConditionModel",
            {
                "sample_size": 128,
                "block_out_channels": (320, 640, 1280),
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "transformer_layers_per_block": (1, 2, 10),
                "attention_head_dim": (5, 10, 20),
                "cross_attention_dim": 2048,
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
        ),
        "text_encoder": _CLIP_L,
        "text_encoder_2": _OPENCLIP_BIG_G,
        "vae": _vae(1024, 0.13025, **_KL),
    },
    scheduler=_EULER,
    options={"force_zeros_for_empty_prompt": True},
    size=(1024, 1024),
)
_REFINER_UNET = {
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "attention_head_dim": (6, 12, 24, 24),
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
# The refiner has the second text encoder alone, and an aesthetic score among its conditions.
_REFINER = replace(
    changed(
        replace(_SDXL, networks={name: part for name, part in _SDXL.networks.items() if name != "text_encoder"}),
        unet=_REFINER_UNET,
    ),
    name="sdxl-refiner",
    summary="The refiner of Stable Diffusion XL 1.0, which starts from an image.",
    pipeline="StableDiffusionXLImg2ImgPipeline",
    options={
        "text_encoder": None,
        "tokenizer": None,
        "requires_aesthetics_score": True,
        "force_zeros_for_empty_prompt": False,
    },
)


def _segmind(name: str, summary: str, down: tuple[Any, ...], up: tuple[Any, ...]) -> Architecture:
    """An SDXL with fewer layers. Its mid block is a single layer without attention; the 0 of a block without attention
    is never read."""
    transformers = {"transformer_layers_per_block": (0, *down), "reverse_transformer_layers_per_block": (*up, 0)}
    return replace(changed(_SDXL, unet={"mid_block_type": "UNetMidBlock2D"} | transformers), name=name, summary=summary)


_SSD_1B = _segmind(
    "ssd-1b",
    "Segmind's SSD-1B: Stable Diffusion XL with half the weights.",
    ((2, 2), (4, 4)),
    ((4, 4, 10), (2, 1, 1)),
)
_SEGMIND_VEGA = _segmind(
    "segmind-vega",
    "Segmind-Vega: Stable Diffusion XL with less than a third of the weights.",
    ((1, 1), (2, 2)),
    ((2, 2, 2), (1, 1, 1)),
)


def _stable_video_diffusion(name: str, frames: int) -> Architecture:
    unet = {
        "sample_size": 96,
        "block_out_channels": (320, 640, 1280, 1280),
        "num_attention_heads": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 768,
        "num_frames": frames,
    }
    sigmas = {"use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0}
    velocity = {"prediction_type": "v_prediction", "timestep_type": "continuous"}
    return Architecture(
        name,
        f"Stable Video Diffusion, {frames} frames from an image.",
        "StableVideoDiffusionPipeline",
        networks={
            "unet": Component("UNetSpatioTemporalConditionModel", unet),
            "image_encoder": _OPENCLIP_H_VISION,
            "vae": _vae(768, 0.18215, "AutoencoderKLTemporalDecoder", force_upcast=True),
        },
        scheduler=replace(_EULER, config=_EULER.config | velocity | sigmas),
        options={},
        size=(1024, 576),
    )


# Channels are multiples of 32, because the norms of all these networks have 32 groups.
_TINY_CLIP = _clip("", 32, 2, 2, 32, intermediate_size=64).config
_TINY_CONFIGS: dict[str, dict[str, Any]] = {
    "text_encoder": _TINY_CLIP | {"vocab_size": 622},
    "text_encoder_2": _TINY_CLIP | {"vocab_size": 622},
    # The pipeline feeds the encoder 224 pixels regardless of its configuration.
    "image_encoder": _TINY_CLIP | {"patch_size": 56},
    "vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "sample_size": 64},
}
_TINY_UNET = {"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 32}
_TINY_SDXL = {
    "block_out_channels": (32, 64, 128),
    "attention_head_dim": (1, 2, 4),
    "cross_attention_dim": 2 * 32,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
}
_TINY_REFINER = {
    "attention_head_dim": (1, 2, 4, 4),
    "transformer_layers_per_block": 2,
    "projection_class_embeddings_input_dim": 5 * 8 + 32,
}
_TINY_SSD_1B = {
    "transformer_layers_per_block": (0, (2, 2), (2, 2)),
    "reverse_transformer_layers_per_block": ((2, 2, 2), (2, 1, 1), 0),
}
_TINY_VIDEO = _TINY_UNET | {
    "num_attention_heads": (1, 2, 4, 4),
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 3 * 8,
}

# Each with the configuration that makes its U-Net narrow.
_FULL: tuple[tuple[Architecture, dict[str, Any]], ...] = (
    (_SD15, _TINY_UNET),
    (_SD21, _TINY_UNET | {"attention_head_dim": (1, 2, 4, 4)}),
    (_SDXL, _TINY_SDXL | {"transformer_layers_per_block": (1, 2, 2)}),
    (_REFINER, _TINY_SDXL | _TINY_UNET | _TINY_REFINER),
    (_SSD_1B, _TINY_SDXL | _TINY_SSD_1B),
    (_SEGMIND_VEGA, _TINY_SDXL),
    (_stable_video_diffusion("svd", 14), _TINY_VIDEO),
    (_stable_video_diffusion("svd-xt", 25), _TINY_VIDEO),
)


def _tiny(full: Architecture, unet: dict[str, Any]) -> Architecture:
    return replace(
        changed(full, **_TINY_CONFIGS, unet=unet | {"sample_size": 8}),
        name=full.name + _TINY,
        summary=f"The structure of {full.name} with narrow layers, for dry runs and tests.",
        size=(64, 64),
    )


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (*(full for full, _ in _FULL), *(_tiny(full, unet) for full, unet in _FULL))
}
"""The architectures of `random_pipeline`. Each also exists as `NAME-tiny`: the same blocks, layers and conditioning,
with narrow channels and at most two transformer layers in a row, for images of 64 pixels."""


def architecture_names() -> str:
    """The names in `ARCHITECTURES`, for a message."""
    return f"{', '.join(full.name for full, _ in _FULL)}, each also as NAME{_TINY}"


def random_pipeline(
    name: str,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> DiffusionPipeline:
    """Builds a published pipeline with random weights, directly on the device.

    It uses as much time and memory as the published one, but generates noise. Nothing is downloaded: the tokenizer is
    that of the bundled model, which cuts or pads a prompt to 77 tokens as the published ones do. There is no safety
    checker.

    Args:
        name (`str`):
            A name in `ARCHITECTURES`.
        dtype (`torch.dtype` or `str`, *optional*):
            As in `load_pipeline`: by default `float16` on a GPU with CUDA and `float32` elsewhere.
        device (`torch.device` or `str`, *optional*):
            As in `load_pipeline`: by default the first available of `cuda`, `mps` and `cpu`. Also `meta`, for weights
            that have a shape but no memory: enough to count with `DeepCache.engine.cost`.
        seed (`int`, defaults to `0`):
            Seed of the weights, which are reproducible for the same seed, dtype and kind of device. The random state of
            the caller does not change.

    Returns:
        The pipeline, on the device, ready for inference.

    Raises:
        ValueError: the name, dtype or device is unknown, or the device is not available.

    Example:
        >>> pipe = random_pipeline("sd15-tiny", device="cpu")
        >>> image = pipe("a red circle", num_inference_steps=2).images[0]
        >>> image.size
        (64, 64)
    """
    import diffusers
    import torch

    if name not in ARCHITECTURES:
        near = get_close_matches(name, ARCHITECTURES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"there is no architecture {name!r}{hint}. The names are {architecture_names()}")
    architecture = ARCHITECTURES[name]
    found_device = torch.device("meta") if str(device) == "meta" else resolve_device(device)
    found_dtype = resolve_dtype(dtype, found_device)
    warn_of_emulation(found_dtype, found_device)
    with _building(found_device, found_dtype, seed):
        networks = {part: _build(network) for part, network in architecture.networks.items()}
    for network in networks.values():
        # Video U-Nets and autoencoders create a few parameters on the CPU.
        network.to(found_device).eval().requires_grad_(False)
    pipeline: DiffusionPipeline = getattr(diffusers, architecture.pipeline)(
        **networks,
        **_processors(architecture),
        scheduler=_build(architecture.scheduler),
        **architecture.options,
    )
    return pipeline


@contextmanager
def _building(device: torch.device, dtype: torch.dtype, seed: int) -> Iterator[None]:
    """Creates tensors on the device, in the dtype and from the seed; restores the caller's random state and dtype."""
    import torch

    default_dtype = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), _seeded(device, seed):
        # `torch.manual_seed` would seed all devices.
        torch.default_generator.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            with device:
                yield
        finally:
            torch.set_default_dtype(default_dtype)


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seeds an accelerator, and restores its random state."""
    import torch

    if device.type in ("cpu", "meta"):
        yield
        return
    module: Any = torch.get_device_module(device)
    # The functions for MPS, which is a single device, have no argument for it.
    which = () if device.type == "mps" else (device,)
    state = module.get_rng_state(*which)
    module.set_rng_state(torch.Generator(device).manual_seed(seed).get_state(), *which)
    try:
        yield
    finally:
        module.set_rng_state(state, *which)


def _build(component: Component) -> Any:
    import diffusers
    import transformers

    if hasattr(diffusers, component.kind):
        return getattr(diffusers, component.kind)(**component.config)
    network = getattr(transformers, component.kind)
    return network(network.config_class(**component.config))


def _processors(architecture: Architecture) -> dict[str, Any]:
    """The tokenizers and image processors of the encoders."""
    from transformers import CLIPImageProcessorPil, CLIPTokenizer

    found: dict[str, Any] = {}
    for name in architecture.networks:
        if name.startswith("text_encoder"):
            found[name.replace("text_encoder", "tokenizer")] = CLIPTokenizer.from_pretrained(
                MODELS["shapes"].folder / "tokenizer", model_max_length=77
            )
        elif name == "image_encoder":
            found["feature_extractor"] = CLIPImageProcessorPil()
    return found
