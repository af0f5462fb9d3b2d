"""The header of a checkpoint: names, shapes and notes, read without the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from DeepCache.models.sources import damage

if TYPE_CHECKING:
    import torch

__all__ = ["PICKLES", "SAFETENSORS", "Header", "read_header"]

SAFETENSORS = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_CONVERSION = (
    "import torch; from safetensors.torch import save_file; "
    "w = torch.load({old!r}, map_location='cpu', weights_only=True); w = w.get('state_dict', w); "
    "save_file({{k: v.clone().contiguous() for k, v in w.items() if torch.is_tensor(v)}}, {new!r})"
)


@dataclass(frozen=True)
class Header:
    """What a file of safetensors says of its weights.

    Args:
        tensors: by name, tensors on the `meta` device of the shape and dtype that is in the file.
        notes: further text by name.
    """

    tensors: dict[str, torch.Tensor]
    notes: dict[str, str]


def read_header(path: Path, shown: str) -> Header:
    """Reads the header of a checkpoint.

    Args:
        path: the file.
        shown: what the user calls it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a file of safetensors.
        OSError: it is damaged, or cannot be read.
    """
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
