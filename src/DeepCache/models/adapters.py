"""LoRAs, textual inversions and ControlNets."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from DeepCache.extras import require
from DeepCache.models.sources import is_repository

if TYPE_CHECKING:
    import torch

__all__ = [
    "Lora",
    "check_adapters",
    "check_controlnet",
    "load_controlnet",
    "load_embeddings",
    "load_loras",
    "loaded_adapters",
]


class Lora(NamedTuple):
    """A LoRA and its scale.

    Args:
        path: a `.safetensors` file, a folder with one, or a repository of the hub as `owner/name`.
        scale: its strength; 1 as it was trained.
    """

    path: str
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Lora:
        """Parses `PATH` or `PATH:SCALE`.

        Raises:
            ValueError: there is no path.

        Example:
            >>> Lora.parse("styles/ink.safetensors:0.8")
            Lora(path='styles/ink.safetensors', scale=0.8)
        """
        path, _, scale = text.rpartition(":")
        try:
            found = cls(path, float(scale))
        except ValueError:
            # The colon is part of the path, such as that of a drive.
            found = cls(text)
        if not found.path.strip():
            raise ValueError(f"a LoRA must be PATH or PATH:SCALE, got {text!r}")
        return found


def check_adapters(loras: Sequence[Lora], embeddings: Sequence[str] = ()) -> None:
    """Raises a FileNotFoundError if an adapter does not exist, before a model is loaded. The hub is not contacted."""
    for lora in loras:
        _locate("LoRA", lora.path)
    for embedding in embeddings:
        _locate("embedding", embedding)


def load_loras(pipe: Any, loras: Sequence[Lora]) -> None:
    """Loads LoRAs into a pipeline, without fusing them into its weights.

    Raises:
        FileNotFoundError: there is no such file or folder.
        OSError: it cannot be read.
        ValueError: it is not a LoRA for this model, or the pipeline does not support LoRAs.
        ImportError: peft is not installed.
    """
    if not loras:
        return
    require("lora", "a LoRA")
    _check_supports(pipe, "load_lora_weights", "LoRAs")
    names = [f"lora_{number}" for number in range(1, len(loras) + 1)]
    for name, lora in zip(names, loras, strict=True):
        folder, file = _locate("LoRA", lora.path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pipe.load_lora_weights(folder, adapter_name=name, **file)
        # The error of a LoRA for another model depends on its layers and sizes.
        except Exception as error:
            raise _not_loaded("LoRA", lora.path, error) from error
        if not any(name in found for found in pipe.get_list_adapters().values()):
            raise ValueError(f"the LoRA {lora.path!r} has no layers for this {type(pipe).__name__}")
    pipe.set_adapters(names, [lora.scale for lora in loras])


def load_embeddings(pipe: Any, embeddings: Sequence[str]) -> None:
    """Loads textual inversions into a pipeline.

    Args:
        pipe: the pipeline.
        embeddings: files, folders or repositories of the hub. The word is the one in the file, else its name.

    Raises:
        FileNotFoundError: there is no such file or folder.
        OSError: it cannot be read.
        ValueError: it is not a textual inversion for this model, or the pipeline does not support them.
    """
    if embeddings:
        _check_supports(pipe, "load_textual_inversion", "textual inversions")
    for embedding in embeddings:
        folder, file = _locate("embedding", embedding)
        word = {"token": Path(embedding).stem} if file else {}
        try:
            pipe.load_textual_inversion(folder, **file, **word)
        except Exception as error:
            raise _not_loaded("embedding", embedding, error) from error


def loaded_adapters(pipe: Any, loras: Sequence[Lora], embeddings: Sequence[str]) -> dict[str, Any]:
    """Identifies the adapters that were loaded into a pipeline: `loras`, a hash of the weights and the scale of each;
    `embeddings`, a hash of all words and their vectors. Each only if there are any."""
    found: dict[str, Any] = {}
    if loras:
        found["loras"] = [
            [_hash_of(_lora_weights(pipe, f"lora_{number}")), lora.scale] for number, lora in enumerate(loras, start=1)
        ]
    if embeddings:
        found["embeddings"] = _hash_of(_word_vectors(pipe))
    return found


def _lora_weights(pipe: Any, adapter: str) -> dict[str, torch.Tensor]:
    return {
        f"{component}.{name}": weight
        for component in pipe.components
        if hasattr(getattr(pipe, component, None), "named_parameters")
        for name, weight in getattr(pipe, component).named_parameters()
        if adapter in name.split(".")
    }


def _word_vectors(pipe: Any) -> dict[str, torch.Tensor]:
    """The vectors of the words that were added to the vocabulary of the tokenizers."""
    found: dict[str, torch.Tensor] = {}
    for number in ("", "_2", "_3"):
        tokenizer, encoder = (getattr(pipe, f"{name}{number}", None) for name in ("tokenizer", "text_encoder"))
        if tokenizer is not None and encoder is not None:
            vectors = encoder.get_input_embeddings().weight
            found |= {f"{word} {number}": vectors[row] for word, row in tokenizer.get_added_vocab().items()}
    return found


def _hash_of(tensors: dict[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def _check_supports(pipe: Any, method: str, what: str) -> None:
    if not hasattr(pipe, method):
        raise ValueError(f"a {type(pipe).__name__} does not support {what}")


def _locate(what: str, path: str) -> tuple[str, dict[str, Any]]:
    """The folder or repository of an adapter, and the argument of diffusers for its file."""
    found = Path(path).expanduser()
    if found.is_file():
        return str(found.parent), {"weight_name": found.name}
    if found.is_dir():
        return str(found), {}
    if found.suffix or not is_repository(path):
        raise FileNotFoundError(f"there is no {what} {path!r}. Check the path")
    return path, {}


def _not_loaded(what: str, path: str, error: Exception) -> Exception:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, OSError):
        return OSError(f"cannot load the {what} {path!r}: {reason}")
    return ValueError(f"cannot load the {what} {path!r} into this model: {reason}")


def check_controlnet(controlnet: str | None) -> None:
    """Raises a FileNotFoundError if a ControlNet does not exist, before a model is loaded. The hub is not contacted."""
    if controlnet is not None and not Path(controlnet).expanduser().is_dir() and not is_repository(controlnet):
        raise FileNotFoundError(
            f"there is no ControlNet folder {controlnet!r}; give a folder, or owner/name on the hub"
        )


def load_controlnet(controlnet: str, pipe: Any) -> Any:
    """Loads a ControlNet in the dtype and on the device of a pipeline.

    Args:
        controlnet: a folder that a ControlNet of diffusers was saved to, or a repository of the hub as `owner/name`.
        pipe: the pipeline.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: it cannot be loaded.
        ValueError: it is for another kind of model.
    """
    from diffusers import ControlNetModel

    check_controlnet(controlnet)
    path = Path(controlnet).expanduser()
    try:
        loaded: Any = ControlNetModel.from_pretrained(  # type: ignore[no-untyped-call]
            str(path) if path.is_dir() else controlnet, dtype=pipe.dtype
        )
    # Diffusers raises errors of many types for a folder without a ControlNet.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise OSError(f"cannot load the ControlNet {controlnet!r}: {reason}") from error
    own, other = pipe.unet.config.cross_attention_dim, loaded.config.cross_attention_dim
    if own != other:
        raise ValueError(
            f"the ControlNet {controlnet!r} is for another kind of model: its text has {other} features, and that of "
            f"this {type(pipe).__name__} {own}"
        )
    return loaded.to(pipe.device).eval()
