"""What a checkpoint holds, by the names and shapes of its weights: which published model, or what else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from DeepCache.models.architectures import Architecture
from DeepCache.models.configurations import CONFIGURATIONS

if TYPE_CHECKING:
    import torch

    from DeepCache.models.checkpoint_header import Header

__all__ = ["ALLOWED", "candidates", "misfit", "refuse_other_files", "text_encoder_in", "vae_in"]

ALLOWED = "a complete checkpoint of Stable Diffusion 1 or 2, SDXL, its refiner, or inpainting"

_UNET = "model.diffusion_model."
_FIRST_LAYER = f"{_UNET}input_blocks.0.0.weight"
# By the name that diffusers has for the kind of a checkpoint. The first whose U-Net fits is taken.
_CONFIGURATIONS = {
    "v1": ("sd15",),
    "v2": ("sd21",),
    "inpainting": ("sd15-inpainting",),
    "inpainting_v2": ("sd2-inpainting",),
    "xl_base": ("sdxl", "ssd-1b", "segmind-vega"),
    "xl_inpaint": ("sdxl-inpainting",),
    "xl_refiner": ("sdxl-refiner",),
}
# By what the name that diffusers has for the kind begins with.
_OTHERS = {
    "playground": "Playground 2.5",
    "upscale": "the x4 upscaler of Stable Diffusion",
    "instruct-pix2pix": "InstructPix2Pix",
    "controlnet": "a ControlNet",
    "stable_cascade": "Stable Cascade",
    "sd35": "Stable Diffusion 3.5, which has a transformer and no U-Net",
    "sd3": "Stable Diffusion 3, which has a transformer and no U-Net",
    "flux": "Flux, which has a transformer and no U-Net",
    "animatediff": "a motion module of AnimateDiff",
}
# A part of a name that only such files have, what they are, and what to do.
_PARTS = (
    (
        ("lora_up.", "lora_down.", ".lora_A.", ".lora_B.", ".lora.", "hada_w1_", "lokr_w1"),
        "a LoRA",
        "Give it as --lora",
    ),
    (("control_model.", "controlnet_cond_embedding.", "controlnet_down_blocks."), "a ControlNet", ""),
    ((".time_stack.",), "Stable Video Diffusion", "Give the folder of its pipeline"),
)
# Names that files begin with which hold one part of a pipeline.
_ALONE = (
    (("emb_params", "string_to_param", "clip_l", "clip_g", "<"), "a textual inversion", "Give it as --embedding"),
    (("input_blocks.0.0.", "down_blocks.0.", "conv_in."), "a U-Net without the rest of its pipeline", ""),
    (("encoder.", "decoder.", "first_stage_model.", "vae."), "a VAE", "Save it as a folder and give that as --vae"),
    (("text_model.", "cond_stage_model.", "conditioner.", "transformer.resblocks."), "a text encoder", ""),
)


def refuse_other_files(shown: str, names: Mapping[str, torch.Tensor]) -> None:
    """Refuses a file that is not a checkpoint with a U-Net in the original layout.

    Raises:
        TypeError: it is not; the message says what it is, as far as is known.
    """
    fix = f"The file must be {ALLOWED}."
    for parts, what, instead in _PARTS:
        if any(part in name for name in names for part in parts):
            raise TypeError(f"the file {shown!r} is {what}. {instead or fix}{'.' * bool(instead)}")
    if _FIRST_LAYER in names:
        return
    kind = _kind(names)
    if kind not in ("", "v1"):
        raise TypeError(f"the file {shown!r} is {_name_of(kind)}. {fix}")
    for beginnings, what, instead in _ALONE:
        if any(name.startswith(beginnings) for name in names):
            raise TypeError(f"the file {shown!r} is {what}. {instead or fix}{'.' * bool(instead)}")
    raise TypeError(f"the file {shown!r} has no U-Net that is known. {fix}")


def candidates(shown: str, header: Header) -> Iterable[Architecture]:
    """The configurations that a checkpoint may have, the most likely first.

    Models with the same layers may differ in whether they predict the noise or the velocity, which the metadata of the
    file may say.

    Raises:
        TypeError: there is none for this kind of model.
    """
    kind = _kind(header.tensors)
    if kind not in _CONFIGURATIONS:
        raise TypeError(
            f"the file {shown!r} is {_name_of(kind) if kind else 'of an unknown kind'}, whose configuration does not "
            f"come with DeepCache. Give it with config (--config), or {ALLOWED}"
        )
    predicts = header.notes.get("modelspec.prediction_type", "")
    for name in _CONFIGURATIONS[kind]:
        if kind == "v2" and predicts == "epsilon":
            yield CONFIGURATIONS["sd21-base"]
        elif kind == "xl_base":
            yield _with_prediction(CONFIGURATIONS[name], header, predicts)
        else:
            yield CONFIGURATIONS[name]


def _with_prediction(architecture: Architecture, header: Header, predicts: str) -> Architecture:
    """SDXL models that were trained to predict the velocity mark it with an empty weight of this name."""
    changes: dict[str, Any] = {}
    if "v_pred" in header.tensors or predicts == "v":
        changes["prediction_type"] = "v_prediction"
    if "ztsnr" in header.tensors:
        changes["rescale_betas_zero_snr"] = True
    scheduler = architecture.scheduler
    return replace(architecture, scheduler=replace(scheduler, config=scheduler.config | changes))


def text_encoder_in(names: Iterable[str]) -> bool:
    """Whether a checkpoint has a text encoder."""
    return any(name.startswith(("cond_stage_model.", "conditioner.embedders.")) for name in names)


def vae_in(names: Iterable[str]) -> bool:
    """Whether a checkpoint has a VAE."""
    return any(name.startswith(("first_stage_model.", "vae.")) for name in names)


def misfit(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> str:
    """How the U-Net or VAE of a checkpoint differs from a configuration; empty where it does not.

    Args:
        tensors: what the checkpoint holds, see `Header`.
        config: the configuration of a `UNet2DConditionModel` or an `AutoencoderKL`.
    """
    import diffusers
    import torch
    from diffusers.loaders import single_file_utils

    kind = config["_class_name"]
    converters = {
        "UNet2DConditionModel": ("U-Net", "convert_ldm_unet_checkpoint"),
        "AutoencoderKL": ("VAE", "convert_ldm_vae_checkpoint"),
    }
    if kind not in converters:
        return f"it has no {kind}"
    part, converter = converters[kind]
    network: Any = getattr(diffusers, kind)
    with torch.device("meta"):
        expected = network.from_config(dict(config))
    try:
        found = getattr(single_file_utils, converter)(dict(tensors), expected.config)
    except KeyError as error:
        return f"its {part} has no {error.args[0]}"
    for name, weight in expected.state_dict().items():
        if name not in found:
            return f"its {part} has no {name}"
        here, there = ("×".join(map(str, each.shape)) for each in (found[name], weight))
        if here != there:
            return f"{name} of its {part} is {here}, and {there} in the configuration"
    return ""


def _kind(tensors: Mapping[str, torch.Tensor]) -> str:
    """The kind of a checkpoint as diffusers calls it; empty where it cannot tell."""
    from diffusers.loaders import single_file_utils

    infer: Any = single_file_utils.infer_diffusers_model_type
    try:
        return str(infer(tensors))
    # It looks further into a file that has one name of a kind and lacks others.
    except Exception:
        return ""


def _name_of(kind: str) -> str:
    return next((name for start, name in _OTHERS.items() if kind.startswith(start)), f"a {kind} model")
