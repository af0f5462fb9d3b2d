"""Well-known pipelines by name, with random weights in the place of trained ones: to measure time, memory and cost
without a download."""

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

__all__ = ["ARCHITECTURES", "Architecture", "Component", "architecture_names", "random_pipeline"]

_TINY = "-tiny"


@dataclass(frozen=True)
class Component:
    """A part of a pipeline.

    Args:
        kind: its class, one of diffusers or transformers.
        config: its configuration, where that is not the default of the class.
    """

    kind: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """A pipeline without its weights.

    Args:
        name: what `random_pipeline`, `load_pipeline` and the commands call it.
        summary: what it is, in one sentence.
        pipeline: the class of the pipeline, one of diffusers.
        networks: the parts that have weights, by the name of the component.
        scheduler: the scheduler.
        options: what else the pipeline's class is called with.
        size: width and height in pixels of what it draws. A pipeline for videos takes another for its default where the
            architecture is a tiny one.
    """

    name: str
    summary: str
    pipeline: str
    networks: dict[str, Component]
    scheduler: Component
    options: dict[str, Any]
    size: tuple[int, int]


_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
_EULER = Component("EulerDiscreteScheduler", _BETAS | {"steps_offset": 1, "timestep_spacing": "leading"})

# The published configurations say 2, and transformers then takes the pooled state where the id is highest: at the end
# of the text, as in the vocabulary of the model in the box.
_TEXT = {"vocab_size": 49408, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
_CLIP_L = Component(
    "CLIPTextModel",
    _TEXT
    | {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
    },
)
_OPENCLIP_H = Component(
    "CLIPTextModel",
    _TEXT
    | {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "projection_dim": 512,
        "hidden_act": "gelu",
    },
)
_OPENCLIP_BIG_G = Component(
    "CLIPTextModelWithProjection",
    _TEXT
    | {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
        "hidden_act": "gelu",
    },
)
_OPENCLIP_H_VISION = Component(
    "CLIPVisionModelWithProjection",
    {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "projection_dim": 1024,
        "hidden_act": "gelu",
        "image_size": 224,
        "patch_size": 14,
    },
)


def _vae(sample_size: int, scaling_factor: float) -> Component:
    return Component(
        "AutoencoderKL",
        {
            "block_out_channels": (128, 256, 512, 512),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 2,
            "latent_channels": 4,
            "sample_size": sample_size,
            "scaling_factor": scaling_factor,
        },
    )


def _stable_diffusion(
    name: str, summary: str, unet: dict[str, Any], text_encoder: Component, scheduler: Component, pixels: int
) -> Architecture:
    return Architecture(
        name,
        summary,
        pipeline="StableDiffusionPipeline",
        networks={
            "unet": Component(
                "UNet2DConditionModel",
                {"sample_size": pixels // 8, "block_out_channels": (320, 640, 1280, 1280)} | unet,
            ),
            "text_encoder": text_encoder,
            "vae": _vae(pixels, 0.18215),
        },
        scheduler=scheduler,
        options={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
        size=(pixels, pixels),
    )


_SD15 = _stable_diffusion(
    "sd15",
    "Stable Diffusion 1.5.",
    {"attention_head_dim": 8, "cross_attention_dim": 768},
    _CLIP_L,
    Component("PNDMScheduler", _BETAS | {"skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False}),
    pixels=512,
)
_SD21 = _stable_diffusion(
    "sd21",
    "Stable Diffusion 2.1, that for 768 pixels.",
    {
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    _OPENCLIP_H,
    Component(
        "DDIMScheduler",
        _BETAS
        | {"prediction_type": "v_prediction", "clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False},
    ),
    pixels=768,
)


def _stable_diffusion_xl(name: str, summary: str, unet: dict[str, Any]) -> Architecture:
    """Stable Diffusion XL, with what is another in its U-Net."""
    return Architecture(
        name,
        summary,
        pipeline="StableDiffusionXLPipeline",
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
                }
                | unet,
            ),
            "text_encoder": _CLIP_L,
            "text_encoder_2": _OPENCLIP_BIG_G,
            "vae": _vae(1024, 0.13025),
        },
        scheduler=_EULER,
        options={"force_zeros_for_empty_prompt": True},
        size=(1024, 1024),
    )


def _refiner(refined: Architecture) -> Architecture:
    """The refiner, which has the second text encoder alone, and an aesthetic score among its conditions."""
    unet, text_encoder_2, vae = (refined.networks[part] for part in ("unet", "text_encoder_2", "vae"))
    wider = {
        "block_out_channels": (384, 768, 1536, 1536),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": 4,
        "attention_head_dim": (6, 12, 24, 24),
        "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 2560,
    }
    return replace(
        refined,
        name=f"{refined.name}-refiner",
        summary="The refiner of Stable Diffusion XL 1.0, which goes on from an image.",
        pipeline="StableDiffusionXLImg2ImgPipeline",
        networks={
            "unet": replace(unet, config=unet.config | wider),
            "text_encoder_2": text_encoder_2,
            "vae": vae,
        },
        options={
            "text_encoder": None,
            "tokenizer": None,
            "requires_aesthetics_score": True,
            "force_zeros_for_empty_prompt": False,
        },
    )


_SDXL = _stable_diffusion_xl("sdxl", "Stable Diffusion XL 1.0.", {})
# In these two the mid block is a single layer without attention. The 0 is that of a block without attention, and is
# never read.
_SSD_1B = _stable_diffusion_xl(
    "ssd-1b",
    "Segmind's SSD-1B: Stable Diffusion XL with half the weights.",
    {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": (0, (2, 2), (4, 4)),
        "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 0),
    },
)
_SEGMIND_VEGA = _stable_diffusion_xl(
    "segmind-vega",
    "Segmind-Vega: Stable Diffusion XL with less than a third of the weights.",
    {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": (0, (1, 1), (2, 2)),
        "reverse_transformer_layers_per_block": ((2, 2, 2), (1, 1, 1), 0),
    },
)


def _stable_video_diffusion(name: str, frames: int) -> Architecture:
    return Architecture(
        name,
        f"Stable Video Diffusion for {frames} frames, which begins with an image.",
        pipeline="StableVideoDiffusionPipeline",
        networks={
            "unet": Component(
                "UNetSpatioTemporalConditionModel",
                {
                    "sample_size": 96,
                    "block_out_channels": (320, 640, 1280, 1280),
                    "num_attention_heads": (5, 10, 20, 20),
                    "cross_attention_dim": 1024,
                    "addition_time_embed_dim": 256,
                    "projection_class_embeddings_input_dim": 768,
                    "num_frames": frames,
                },
            ),
            "image_encoder": _OPENCLIP_H_VISION,
            "vae": Component(
                "AutoencoderKLTemporalDecoder",
                {
                    "block_out_channels": (128, 256, 512, 512),
                    "down_block_types": ("DownEncoderBlock2D",) * 4,
                    "layers_per_block": 2,
                    "sample_size": 768,
                    "scaling_factor": 0.18215,
                    "force_upcast": True,
                },
            ),
        },
        scheduler=Component(
            "EulerDiscreteScheduler",
            _EULER.config
            | {
                "prediction_type": "v_prediction",
                "timestep_type": "continuous",
                "use_karras_sigmas": True,
                "sigma_min": 0.002,
                "sigma_max": 700.0,
            },
        ),
        options={},
        size=(1024, 576),
    )


# Channels are multiples of 32, since the norms of all these networks have 32 groups.
_NARROW_TRANSFORMER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 32,
}
_NARROW: dict[str, dict[str, Any]] = {
    "text_encoder": _NARROW_TRANSFORMER | {"vocab_size": 622},
    "text_encoder_2": _NARROW_TRANSFORMER | {"vocab_size": 622},
    # The pipeline shows the encoder 224 pixels, whatever its configuration says.
    "image_encoder": _NARROW_TRANSFORMER | {"patch_size": 56},
    "vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "sample_size": 64},
}
_NARROW_UNET = {"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 32}
_NARROW_SDXL_UNET = {
    "block_out_channels": (32, 64, 128),
    "attention_head_dim": (1, 2, 4),
    "cross_attention_dim": 2 * 32,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
}
_NARROW_VIDEO_UNET = _NARROW_UNET | {
    "num_attention_heads": (1, 2, 4, 4),
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 3 * 8,
}

# With what makes the U-Net of each a narrow one.
_FULL: tuple[tuple[Architecture, dict[str, Any]], ...] = (
    (_SD15, _NARROW_UNET),
    (_SD21, _NARROW_UNET | {"attention_head_dim": (1, 2, 4, 4)}),
    (_SDXL, _NARROW_SDXL_UNET | {"transformer_layers_per_block": (1, 2, 2)}),
    (
        _refiner(_SDXL),
        _NARROW_SDXL_UNET
        | _NARROW_UNET
        | {
            "attention_head_dim": (1, 2, 4, 4),
            "transformer_layers_per_block": 2,
            "projection_class_embeddings_input_dim": 5 * 8 + 32,
        },
    ),
    (
        _SSD_1B,
        _NARROW_SDXL_UNET
        | {
            "transformer_layers_per_block": (0, (2, 2), (2, 2)),
            "reverse_transformer_layers_per_block": ((2, 2, 2), (2, 1, 1), 0),
        },
    ),
    (_SEGMIND_VEGA, _NARROW_SDXL_UNET),
    (_stable_video_diffusion("svd", 14), _NARROW_VIDEO_UNET),
    (_stable_video_diffusion("svd-xt", 25), _NARROW_VIDEO_UNET),
)


def _tiny(full: Architecture, unet: dict[str, Any]) -> Architecture:
    narrow = _NARROW | {"unet": unet | {"sample_size": 8}}
    return replace(
        full,
        name=full.name + _TINY,
        summary=f"The structure of {full.name} with narrow layers, for dry runs and tests.",
        networks={
            name: replace(network, config=network.config | narrow[name]) for name, network in full.networks.items()
        },
        size=(64, 64),
    )


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (*(full for full, _ in _FULL), *(_tiny(full, unet) for full, unet in _FULL))
}
"""What `random_pipeline` can build. Each is there as `NAME-tiny` too: the same blocks, layers and conditioning with
narrow channels and at most two transformer layers in a row, built in a moment, for pictures of 64 pixels."""


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
    """Builds a well-known pipeline with random weights, right on the device.

    It takes the time and the memory of the published one, but draws noise. Nothing is downloaded: the tokenizer is that
    of the model in the box, which cuts or pads a prompt to 77 tokens as the published ones do. There is no safety
    checker.

    Args:
        name (`str`):
            A name in `ARCHITECTURES`.
        dtype (`torch.dtype` or `str`, *optional*):
            As of `load_pipeline`: by default `float16` on a GPU with CUDA and `float32` elsewhere.
        device (`torch.device` or `str`, *optional*):
            As of `load_pipeline`: by default the first of `cuda`, `mps` and `cpu` that is there. Besides, `meta` for
            weights that have a shape but no memory: enough to count with `DeepCache.engine.cost`.
        seed (`int`, defaults to `0`):
            Seed of the weights, which are the same again for the same seed, dtype and kind of device. The caller's own
            random numbers go on as if nothing had been built.

    Returns:
        The pipeline, on the device, ready for inference.

    Raises:
        ValueError: the name, dtype or device is unknown, or the device is not in this machine.

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
        raise ValueError(
            f"there is no architecture {name!r}"
            + (f" (did you mean {near[0]}?)" if near else "")
            + f"; there are {architecture_names()}"
        )
    architecture = ARCHITECTURES[name]
    found_device = torch.device("meta") if str(device) == "meta" else resolve_device(device)
    found_dtype = resolve_dtype(dtype, found_device)
    warn_of_emulation(found_dtype, found_device)
    with _building(found_device, found_dtype, seed):
        networks = {part: _build(network) for part, network in architecture.networks.items()}
    for network in networks.values():
        # A few parameters of videos' U-Nets and autoencoders are made on the CPU all the same.
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
    """Makes tensors on the device, in the dtype and from the seed; then all is again as the caller had it."""
    import torch

    default_dtype = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), _forked(device, seed):
        # Not `torch.manual_seed`, which sets the seed of every device there is.
        torch.default_generator.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            with device:
                yield
        finally:
            torch.set_default_dtype(default_dtype)


@contextmanager
def _forked(device: torch.device, seed: int) -> Iterator[None]:
    """Random numbers of an accelerator from the seed; afterwards they go on where they were."""
    import torch

    if device.type in ("cpu", "meta"):
        yield
        return
    module: Any = torch.get_device_module(device)
    # There is but one device of this kind, and the functions take none.
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
    """What makes tensors of prompts and images, for the encoders that there are."""
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
