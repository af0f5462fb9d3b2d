"""Identifies the model of a checkpoint by the names and shapes of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from DeepCache.models.architectures import Architecture
from DeepCache.models.configurations import CONFIGURATIONS
from DeepCache.models.sources import damage

if TYPE_CHECKING:
    import torch

__all__ = ["ALLOWED", "PICKLES", "SAFETENSORS", "Header", "candidates", "check_is_checkpoint", "misfit", "read_header"]

ALLOWED = "a complete checkpoint of Stable Diffusion 1 or 2, SDXL, its refiner, or inpainting"
SAFETENSORS = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")

_CONVERSION = (
    "import torch; from safetensors.torch import save_file; "
    "w = torch.load({old!r}, map_location='cpu', weights_only=True); w = w.get('state_dict', w); "
    "save_file({{k: v.clone().contiguous() for k, v in w.items() if torch.is_tensor(v)}}, {new!r})"
)
_FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"
# By diffusers' name for the kind of a checkpoint. The first one with the same layers is chosen.
_CONFIGURATIONS = {
    "v1": ("sd15",),
    "v2": ("sd21",),
    "inpainting": ("sd15-inpainting",),
    "inpainting_v2": ("sd2-inpainting",),
    "xl_base": ("sdxl", "ssd-1b", "segmind-vega"),
    "xl_inpaint": ("sdxl-inpainting",),
    "xl_refiner": ("sdxl-refiner",),
}
# By the start of diffusers' name for the kind.
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
_LORA = ("lora_up.", "lora_down.", ".lora_A.", ".lora_B.", ".lora.", "hada_w1_", "lokr_w1")
_CONTROLNET = ("control_model.", "controlnet_cond_embedding.", "controlnet_down_blocks.")
# Parts of weight names that only other files have, what these are, and the fix.
_PARTS = (
    (_LORA, "a LoRA", "Give it as --lora."),
    (_CONTROLNET, "a ControlNet", ""),
    ((".time_stack.",), "Stable Video Diffusion", "Give the folder of its pipeline."),
)
_TEXT_ENCODER = ("text_model.", "cond_stage_model.", "conditioner.", "transformer.resblocks.")
# Starts of weight names in files with one component.
_ALONE = (
    (("emb_params", "string_to_param", "clip_l", "clip_g", "<"), "a textual inversion", "Give it as --embedding."),
    (("input_blocks.0.0.", "down_blocks.0.", "conv_in."), "a U-Net without the rest of its pipeline", ""),
    (("encoder.", "decoder.", "first_stage_model.", "vae."), "a VAE", "Save it as a folder and give that as --vae."),
    (_TEXT_ENCODER, "a text encoder", ""),
)
# Classes of networks, with their names in messages and diffusers' converters of their weights.
_CONVERTERS = {
    "UNet2DConditionModel": ("U-Net", "convert_ldm_unet_checkpoint"),
    "AutoencoderKL": ("VAE", "convert_ldm_vae_checkpoint"),
}


@dataclass(frozen=True)
class Header:
    """The header of a checkpoint: its weights on the `meta` device, and its metadata."""

    tensors: dict[str, torch.Tensor]
    notes: dict[str, str]

    def has(self, *starts: str) -> bool:
        """Whether a weight has one of these starts in its name."""
        return any(name.startswith(starts) for name in self.tensors)


def read_header(path: Path, shown: str) -> Header:
    """Reads the header of a checkpoint without its weights."""
    import torch
    from safetensors import safe_open

    if not path.is_file():
        raise FileNotFoundError(f"there is no model file {shown!r}. Check the path")
    if path.suffix.lower() in PICKLES:
        snippet = _CONVERSION.format(old=shown, new=str(Path(shown).with_suffix(SAFETENSORS)))
        raise ValueError(
            f"cannot load the model {shown!r}: {path.suffix} files are pickles, which can run code; a model in one "
            f'file must be a {SAFETENSORS} file. Convert it: python -c "{snippet}"'
        )
    if path.suffix.lower() != SAFETENSORS:
        raise ValueError(f"the model {shown!r} is a file, but not a {SAFETENSORS} file. Give one, or a folder")
    if reason := damage(path):
        raise OSError(
            f"cannot load the model {shown!r}: it is damaged, or not a {SAFETENSORS} file ({reason}). Download or save "
            "it again."
        )
    with safe_open(path, framework="pt") as file:
        tensors = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118
        return Header(tensors, file.metadata() or {})


def check_is_checkpoint(shown: str, header: Header) -> None:
    """Raises a TypeError that says what the file is, if known, unless it has a U-Net in the original layout."""
    allowed = f"The file must be {ALLOWED}."
    for parts, what, fix in _PARTS:
        if any(part in name for name in header.tensors for part in parts):
            raise TypeError(f"the file {shown!r} is {what}. {fix or allowed}")
    if _FIRST_LAYER in header.tensors:
        return
    kind = _kind(header)
    if kind not in ("", "v1"):
        raise TypeError(f"the file {shown!r} is {_name_of(kind)}. {allowed}")
    for starts, what, fix in _ALONE:
        if header.has(*starts):
            raise TypeError(f"the file {shown!r} is {what}. {fix or allowed}")
    raise TypeError(f"the file {shown!r} has no U-Net that is known. {allowed}")


def candidates(shown: str, header: Header) -> Iterable[Architecture]:
    """The possible configurations of a checkpoint, the most likely first.

    Models with the same layers may predict the noise or the velocity, which the metadata of the file may say.
    """
    kind = _kind(header)
    if kind not in _CONFIGURATIONS:
        raise TypeError(
            f"the file {shown!r} is {_name_of(kind) if kind else 'of an unknown kind'}, whose configuration is not "
            f"included in DeepCache. Give it with config (--config), or {ALLOWED}"
        )
    predicts = header.notes.get("modelspec.prediction_type", "")
    for name in _CONFIGURATIONS[kind]:
        architecture = CONFIGURATIONS["sd21-base" if kind == "v2" and predicts == "epsilon" else name]
        if kind == "xl_base":
            # SDXL models that predict the velocity have an empty weight of this name.
            changes: dict[str, Any] = {}
            if "v_pred" in header.tensors or predicts == "v":
                changes["prediction_type"] = "v_prediction"
            if "ztsnr" in header.tensors:
                changes["rescale_betas_zero_snr"] = True
            scheduler = architecture.scheduler
            architecture = replace(architecture, scheduler=replace(scheduler, config=scheduler.config | changes))
        yield architecture


def misfit(header: Header, config: Mapping[str, Any]) -> str:
    """How the U-Net or VAE of a checkpoint differs from a configuration; empty if it does not."""
    import diffusers
    import torch
    from diffusers.loaders import single_file_utils

    kind = config["_class_name"]
    if kind not in _CONVERTERS:
        return f"it has no {kind}"
    part, converter = _CONVERTERS[kind]
    network: Any = getattr(diffusers, kind)
    with torch.device("meta"):
        expected = network.from_config(dict(config))
    try:
        found = getattr(single_file_utils, converter)(dict(header.tensors), expected.config)
    except KeyError as error:
        return f"its {part} has no {error.args[0]}"
    for name, weight in expected.state_dict().items():
        if name not in found:
            return f"its {part} has no {name}"
        here, there = ("×".join(map(str, each.shape)) for each in (found[name], weight))
        if here != there:
            return f"{name} of its {part} is {here}, and {there} in the configuration"
    return ""


def _kind(header: Header) -> str:
    """Diffusers' name for the kind of a checkpoint; empty if it does not recognise it."""
    from diffusers.loaders import single_file_utils

    infer: Any = single_file_utils.infer_diffusers_model_type
    try:
        return str(infer(header.tensors))
    # Diffusers looks up further weights in a file that has one of a kind, and may not find them.
    except Exception:
        return ""


def _name_of(kind: str) -> str:
    return next((name for start, name in _OTHERS.items() if kind.startswith(start)), f"a {kind} model")
