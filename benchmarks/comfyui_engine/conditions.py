"""Conditions under which the DeepCache node is checked in ComfyUI's engine: prompts, patches, LoRAs, other models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.comfyui_engine import engine

__all__ = [
    "FURTHER_CONDITIONS",
    "RANDOM_LAYERS",
    "Condition",
    "Unavailable",
    "conditions",
    "patch_by_number",
    "patched",
    "seeded_by_layer",
    "with_lora",
]


class Unavailable(Exception):
    """This version of ComfyUI does not have the nodes of a condition."""


def _area(x: int, width: int) -> dict[str, Any]:
    # Height, width, and the position of the upper left corner.
    return {"area": (16, width, 0, x)}


def patched(patcher: Any, **patches: Any) -> Any:
    changed = patcher.clone()
    for name, patch in patches.items():
        getattr(changed, name)(*patch)
    return changed


def patch_by_number(h: Any, skip: Any, options: Any) -> Any:
    number, transformers = options["block"][1], options["transformer_index"]
    return h * (1 + number / 50), skip * (1 + transformers / 100)


def conditions(kind: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    def same(patcher: Any) -> Any:
        return patcher

    half = torch.zeros(1, 16, 16)
    half[..., :8] = 1.0
    both = {
        "positive": engine.cond(11, kind, **_area(0, 10)) + engine.cond(12, kind, **_area(6, 10)),
    }
    control = {"control": engine.Residuals(kind), "control_apply_to_uncond": True}
    return {
        "plain": (same, {}),
        "two images": (same, {"batch": 2}),
        "an odd size": (same, {"size": (13, 18)}),
        "without guidance": (same, {"cfg": 1.0}),
        "two prompts": (same, {"positive": engine.cond(10, kind) + engine.cond(11, kind)}),
        "areas": (same, both),
        "a mask": (same, {"positive": engine.cond(11, kind, mask=half) + engine.cond(12, kind, mask=1 - half)}),
        "a ControlNet": (
            same,
            {"positive": engine.cond(13, kind, **control), "negative": engine.cond(14, kind, **control)},
        ),
        "patches by number": (lambda patcher: patched(patcher, set_model_output_block_patch=(patch_by_number,)), {}),
        "an input patch": (
            lambda patcher: patched(patcher, set_model_input_block_patch=(lambda h, options: h * 1.02,)),
            {},
        ),
        "PAG": (partial(engine.node, "pag", "PerturbedAttentionGuidance", scale=3.0), {}),
    }


class Condition(NamedTuple):
    """A change to a model, and the settings of its runs.

    Args:
        change: what returns the changed model.
        kind: the shape of the model.
        settings: what returns those that `engine.sample` takes.
        shows: whether images differ from those of the model as it was.
    """

    change: Callable[[Any], Any] = lambda patcher: patcher
    kind: str = "SD15"
    settings: Callable[[], dict[str, Any]] = dict
    shows: bool = True


def _node(module: str, name: str, **inputs: Any) -> Condition:
    return Condition(partial(engine.node, module, name, **inputs))


def _shape(kind: str, settings: Callable[[], dict[str, Any]] = dict) -> Condition:
    return Condition(kind=kind, settings=settings, shows=False)


def _from_an_image(kind: str, batch: int) -> dict[str, Any]:
    image = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    positive, negative = engine.cond(10, kind, concat_latent_image=image), engine.cond(20, kind)
    return {"positive": positive, "negative": negative, "batch": batch}


def _of_an_image(**settings: Any) -> dict[str, Any]:
    return {"latent": torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)), **settings}


def _right_half() -> torch.Tensor:
    return torch.arange(16).expand(1, 16, 16).ge(8).float()


def with_lora(patcher: Any) -> Any:
    return engine.comfy.sd.load_lora_for_models(patcher, None, engine.lora(patcher), 0.8, 0)[0]


def _with_bypassed_lora(patcher: Any) -> Any:
    if not hasattr(engine.comfy.sd, "load_bypass_lora_for_models"):
        raise Unavailable("this version of ComfyUI cannot bypass a LoRA")
    return engine.comfy.sd.load_bypass_lora_for_models(patcher, None, engine.lora(patcher), 0.8, 0)[0]


def _lora_on_one_prompt() -> dict[str, Any]:
    from comfy.hooks import create_hook_lora
    from comfy_extras.nodes_hooks import ConditioningSetProperties

    hooks = create_hook_lora(engine.lora(engine.model("SD15")), 0.8, 0)
    (positive,) = ConditioningSetProperties().set_properties(engine.cond(10), 1.0, "default", hooks=hooks)
    return {"positive": positive + engine.cond(11)}


def _without_memory(patcher: Any) -> Any:
    """A model that runs each prompt in a separate batch."""
    changed = patcher.clone()
    changed.add_object_patch("memory_required", lambda *args, **kwargs: 1e30)
    return changed


def _attention_by_number(patcher: Any) -> Any:
    def override(attention: Any, *args: Any, **kwargs: Any) -> Any:
        options = kwargs["transformer_options"]
        return attention(*args, **kwargs) * (1 + options["block"][1] / 50 + options["transformer_index"] / 100)

    changed = patcher.clone()
    changed.model_options["transformer_options"]["optimized_attention_override"] = override
    return changed


def _perp_neg(patcher: Any) -> Any:
    return engine.node("perpneg", "PerpNeg", patcher, empty_conditioning=engine.cond(30), neg_scale=1.0)


def _nag(patcher: Any) -> Any:
    try:
        return engine.node("nag", "NAGuidance", patcher, nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5)
    except ImportError as error:
        raise Unavailable("this version of ComfyUI has no NAGuidance node") from error


FURTHER_CONDITIONS = {
    "FreeU": _node("freelunch", "FreeU", b1=1.1, b2=1.2, s1=0.9, s2=0.2),
    "FreeU_V2": _node("freelunch", "FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "ToMe": _node("tomesd", "TomePatchModel", ratio=0.5),
    "SAG": _node("sag", "SelfAttentionGuidance", scale=0.5, blur_sigma=2.0),
    "NAG": Condition(_nag),
    "PerpNeg": Condition(_perp_neg),
    "Deep Shrink": _node(
        "model_downscale",
        "PatchModelAddDownscale",
        block_number=3,
        downscale_factor=2.0,
        start_percent=0.0,
        end_percent=0.35,
        downscale_after_skip=True,
        downscale_method="bicubic",
        upscale_method="bicubic",
    ),
    "HyperTile": _node("hypertile", "HyperTile", tile_size=32, swap_size=3, max_depth=1, scale_depth=False),
    "RescaleCFG": _node("model_advanced", "RescaleCFG", multiplier=0.7),
    "attention by number": Condition(_attention_by_number),
    "a LoRA": Condition(with_lora),
    "a bypassed LoRA": Condition(_with_bypassed_lora),
    "a LoRA on one prompt": Condition(settings=_lora_on_one_prompt),
    "a LoRA with little memory": Condition(lambda patcher: with_lora(engine.low_memory(patcher))),
    "one prompt after another": Condition(_without_memory, shows=False),
    "from an image": Condition(settings=partial(_of_an_image, denoise=0.6)),
    "in a part of an image": Condition(
        partial(engine.node, "differential_diffusion", "DifferentialDiffusion"),
        settings=lambda: _of_an_image(mask=_right_half()),
    ),
    "SD 2.x": _shape("SD20"),
    "SDXL refiner": _shape("SDXLRefiner"),
    "SSD-1B": _shape("SSD1B"),
    "KOALA": _shape("KOALA_700M"),
    "SVD": Condition(
        partial(engine.node, "video_model", "VideoLinearCFGGuidance", min_cfg=1.0),
        "SVD_img2vid",
        lambda: _from_an_image("SVD_img2vid", batch=3),
    ),
    "InstructPix2Pix": _shape("SD15_instructpix2pix", lambda: _from_an_image("SD15_instructpix2pix", batch=1)),
    "an inpainting model": _shape("inpainting", engine.inpainting),
}
# Conditions that draw random numbers in the layers.
RANDOM_LAYERS = {"ToMe", "HyperTile"}


def seeded_by_layer(patcher: Any) -> Any:
    """Seeds each layer, since a shallow step does not draw the random numbers of the layers it omits."""

    def seed(q: Any, k: Any, v: Any, options: Any) -> Any:
        torch.manual_seed(options["transformer_index"])
        return q, k, v

    return patched(patcher, set_model_attn1_patch=(seed,))
