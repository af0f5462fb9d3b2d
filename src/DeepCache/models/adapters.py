"""LoRAs and textual inversions beside the weights of a pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from DeepCache.extras import require

__all__ = ["Lora", "load_embeddings", "load_loras"]


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
