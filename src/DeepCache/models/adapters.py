"""LoRAs and textual inversions beside the weights of a pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from DeepCache.extras import require

if TYPE_CHECKING:
    import torch

__all__ = ["Lora", "check_adapters", "load_embeddings", "load_loras", "loaded_adapters"]


class Lora(NamedTuple):
    """A LoRA and how strongly it counts.

    Args:
        path: a file of safetensors, a folder with one, or a repository of the hub as `owner/name`.
        scale: 1 as it was trained.
    """

    path: str
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Lora:
        """Reads `PATH` or `PATH:SCALE`.

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
            # The colon is one of the path, such as that of a drive.
            found = cls(text)
        if not found.path.strip():
            raise ValueError(f"a LoRA must be PATH or PATH:SCALE, got {text!r}")
        return found


def check_adapters(loras: Sequence[Lora], embeddings: Sequence[str] = ()) -> None:
    """Refuses LoRAs and textual inversions that are not there, before a model is loaded. What is on the hub is not
    asked for.

    Raises:
        FileNotFoundError: there is no such file or folder.

    Example:
        >>> check_adapters([Lora("styles/ink.safetensors")])
        Traceback (most recent call last):
        FileNotFoundError: there is no LoRA 'styles/ink.safetensors'. Check the path
    """
    for lora in loras:
        _place("LoRA", lora.path)
    for embedding in embeddings:
        _place("embedding", embedding)


def load_loras(pipe: Any, loras: Sequence[Lora]) -> None:
    """Loads LoRAs into a pipeline, beside its weights.

    Raises:
        FileNotFoundError: there is no such file or folder.
        OSError: it cannot be read.
        ValueError: it is not a LoRA for this model, or the pipeline takes none.
        ImportError: peft is not installed.
    """
    if not loras:
        return
    require("lora", "a LoRA")
    _refuse_pipelines_without(pipe, "load_lora_weights", "LoRAs")
    names = []
    for number, lora in enumerate(loras, start=1):
        names.append(f"lora_{number}")
        place, file = _place("LoRA", lora.path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pipe.load_lora_weights(place, adapter_name=names[-1], **file)
        # Of another model, files have whatever layers and sizes.
        except Exception as error:
            raise _of_another("LoRA", lora.path, error) from error
        if not any(names[-1] in found for found in pipe.get_list_adapters().values()):
            raise ValueError(f"the LoRA {lora.path!r} has no layers for this {type(pipe).__name__}")
    pipe.set_adapters(names, [lora.scale for lora in loras])


def load_embeddings(pipe: Any, embeddings: Sequence[str]) -> None:
    """Loads textual inversions, whose words prompts may then use.

    Args:
        pipe: the pipeline.
        embeddings: a file, a folder or a repository of the hub each. The word is what the file says, else its name.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it is not a textual inversion for this model, or the pipeline takes none.
    """
    if embeddings:
        _refuse_pipelines_without(pipe, "load_textual_inversion", "textual inversions")
    for embedding in embeddings:
        place, file = _place("embedding", embedding)
        word = {} if not file else {"token": Path(embedding).stem}
        try:
            pipe.load_textual_inversion(place, **file, **word)
        except Exception as error:
            raise _of_another("embedding", embedding, error) from error


def loaded_adapters(pipe: Any, loras: Sequence[Lora], embeddings: Sequence[str]) -> dict[str, Any]:
    """What tells the adapters of a pipeline from others, wherever their files are.

    Args:
        pipe: the pipeline, after `load_loras` and `load_embeddings`.
        loras: what was loaded into it.
        embeddings: likewise.

    Returns:
        `loras`, a hash of the weights and the scale of each; `embeddings`, a hash of all words and their vectors.
        Neither where there are none.
    """
    found: dict[str, Any] = {}
    if loras:
        found["loras"] = [
            [_hash_of(_weights_of(pipe, f"lora_{number}")), lora.scale] for number, lora in enumerate(loras, start=1)
        ]
    if embeddings:
        found["embeddings"] = _hash_of(_word_vectors(pipe))
    return found


def _weights_of(pipe: Any, adapter: str) -> dict[str, torch.Tensor]:
    """The weights of a LoRA by the name that it has in a pipeline."""
    return {
        f"{component}.{name}": weight
        for component in pipe.components
        if hasattr(getattr(pipe, component, None), "named_parameters")
        for name, weight in getattr(pipe, component).named_parameters()
        if adapter in name.split(".")
    }


def _word_vectors(pipe: Any) -> dict[str, torch.Tensor]:
    """The vectors of the words that tokenizers have beyond their vocabulary."""
    found: dict[str, torch.Tensor] = {}
    for number in ("", "_2", "_3"):
        tokenizer, encoder = (getattr(pipe, f"{name}{number}", None) for name in ("tokenizer", "text_encoder"))
        if tokenizer is not None and encoder is not None:
            vectors = encoder.get_input_embeddings().weight
            found |= {f"{word} {number}": vectors[row] for word, row in tokenizer.get_added_vocab().items()}
    return found


def _hash_of(tensors: dict[str, torch.Tensor]) -> str:
    import hashlib

    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def _refuse_pipelines_without(pipe: Any, method: str, what: str) -> None:
    if not hasattr(pipe, method):
        raise ValueError(f"a {type(pipe).__name__} takes no {what}")


def _place(what: str, path: str) -> tuple[str, dict[str, Any]]:
    """Where diffusers is to look, and for which file."""
    found = Path(path).expanduser()
    if found.is_file():
        return str(found.parent), {"weight_name": found.name}
    if found.is_dir():
        return str(found), {}
    if path.startswith((".", "~", "/")) or path.count("/") != 1 or found.suffix or "\\" in path:
        raise FileNotFoundError(f"there is no {what} {path!r}. Check the path")
    return path, {}


def _of_another(what: str, path: str, error: Exception) -> Exception:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, OSError):
        return OSError(f"cannot load the {what} {path!r}: {reason}")
    return ValueError(f"cannot load the {what} {path!r} into this model: {reason}")
