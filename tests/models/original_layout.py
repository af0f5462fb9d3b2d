"""Writes pipelines of diffusers as checkpoints in the original layout, which diffusers can only read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import torch
from safetensors.torch import save_file

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPENCLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_names(names: Iterable[str], layers: int) -> dict[str, str]:
    """The names of a U-Net's weights in the original layout, by those of diffusers."""
    names = list(names)
    found = {}
    for name in names:
        for start, new in _UNET.items():
            if name.startswith(start):
                found[name] = new + _resnet(name.removeprefix(start))
        if match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.", name):
            way, block, kind, layer = match[1], int(match[2]), match[3], int(match[4])
            rest = name[match.end() :]
            here = block * (layers + 1) + (layer if kind in ("resnets", "attentions") else layers)
            place = f"input_blocks.{here + 1}" if way == "down" else f"output_blocks.{here}"
            if kind == "downsamplers":
                found[name] = f"{place}.0.op.{rest.removeprefix('conv.')}"
            elif kind == "upsamplers":
                attends = any(each.startswith(f"up_blocks.{block}.attentions.") for each in names)
                found[name] = f"{place}.{1 + attends}.{rest}"
            else:
                found[name] = f"{place}.{int(kind == 'attentions')}.{_resnet(rest) if kind == 'resnets' else rest}"
    return found


def vae_names(names: Iterable[str], blocks: int) -> dict[str, str]:
    """The names of a VAE's weights in the original layout, by those of diffusers."""
    found = {}
    for name in names:
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{blocks - 1 - int(m[1])}.block.", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample.", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        if "mid_block.attentions.0." in new:
            for old, original in _VAE_ATTENTION.items():
                new = new.replace(f"mid_block.attentions.0.{old}.", f"mid.attn_1.{original}.")
        found[name] = new.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    return found


def checkpoint_of(pipe: Any) -> dict[str, torch.Tensor]:
    """The weights of a pipeline, of Stable Diffusion 1 or 2 or SDXL, by their names in the original layout."""
    found = {}
    unet, vae = pipe.unet.state_dict(), pipe.vae.state_dict()
    for name, new in unet_names(unet, pipe.unet.config.layers_per_block).items():
        found[f"model.diffusion_model.{new}"] = unet[name]
    for name, new in vae_names(vae, len(pipe.vae.config.block_out_channels)).items():
        weight = vae[name]
        # Its attention consists of convolutions there.
        found[f"first_stage_model.{new}"] = (
            weight[:, :, None, None] if ".attn_1." in new and weight.ndim == 2 else weight
        )
    second = getattr(pipe, "text_encoder_2", None)
    first = pipe.text_encoder
    if second is not None:
        found |= _openclip(second, f"conditioner.embedders.{int(first is not None)}.model.")
        if first is not None:
            found |= _clip(first, "conditioner.embedders.0.transformer.")
    elif first.config.hidden_act == "gelu":
        found |= _openclip(first, "cond_stage_model.model.")
    else:
        found |= _clip(first, "cond_stage_model.transformer.")
    return found


def save_checkpoint(pipe: Any, path: Any, **notes: str) -> None:
    """Writes the pipeline to a file."""
    save_file({name: weight.contiguous() for name, weight in checkpoint_of(pipe).items()}, path, metadata=notes or None)


def _resnet(rest: str) -> str:
    layer, dot, last = rest.rpartition(".")
    return f"{_RESNET.get(layer, layer)}{dot}{last}"


def _clip(encoder: Any, prefix: str) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}text_model.{name.removeprefix('text_model.')}": weight
        for name, weight in encoder.state_dict().items()
    }


def _openclip(encoder: Any, prefix: str) -> dict[str, torch.Tensor]:
    weights = {name.removeprefix("text_model."): weight for name, weight in encoder.state_dict().items()}
    found = {
        f"{prefix}positional_embedding": weights["embeddings.position_embedding.weight"],
        f"{prefix}token_embedding.weight": weights["embeddings.token_embedding.weight"],
        f"{prefix}ln_final.weight": weights["final_layer_norm.weight"],
        f"{prefix}ln_final.bias": weights["final_layer_norm.bias"],
    }
    if "text_projection.weight" in weights:
        found[f"{prefix}text_projection"] = weights["text_projection.weight"].T
    for name, weight in weights.items():
        if match := re.match(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$", name):
            layer, part, kind = match.groups()
            place = f"{prefix}transformer.resblocks.{layer}."
            if part == "self_attn.q_proj":
                others = [weights[name.replace("q_proj", each)] for each in ("k_proj", "v_proj")]
                found[f"{place}attn.in_proj_{kind}"] = torch.cat([weight, *others])
            elif part in _OPENCLIP:
                found[f"{place}{_OPENCLIP[part]}.{kind}"] = weight
    return found


def save_header(weights: dict[str, torch.Tensor], path: Any, **notes: str) -> None:
    """Writes a sparse file with weights of these names and shapes, all zero."""
    entries: dict[str, Any] = {"__metadata__": notes} if notes else {}
    end = 0
    for name, weight in weights.items():
        entries[name] = {"dtype": "U8", "shape": list(weight.shape), "data_offsets": [end, end := end + weight.numel()]}
    header = json.dumps(entries).encode()
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
