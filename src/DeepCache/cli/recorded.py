"""What `deepcache generate --from IMAGE` prints beside its results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from DeepCache.generation import GeneratedImage

__all__ = ["print_differences", "print_fidelity"]


def print_differences(path: Path | None, pipe: Any, stderr: Console) -> None:
    """Prints what of an image cannot be used, and what differs from what it was generated with."""
    if path is None:
        return
    from DeepCache.generation import read_recorded
    from DeepCache.generation.recorded import made_with

    image = read_recorded(path)
    if image.unread:
        stderr.print(f"Ignored settings of {path}: {'; '.join(image.unread)}", soft_wrap=True, highlight=False)
    if differences := image.differences(made_with(pipe)):
        stderr.print(f"Differences from {path}: {', '.join(differences)}", soft_wrap=True, highlight=False)


def print_fidelity(path: Path | None, generated: Sequence[GeneratedImage], stderr: Console) -> None:
    """Prints how close an image that was generated again is to the first."""
    if path is None or len(generated) != 1:
        return
    from PIL import Image

    from DeepCache.metrics import psnr

    image = generated[0].drawing.image
    with Image.open(path) as first:
        if first.size != image.size:
            return
        fidelity = float(psnr([image], [first.convert("RGB")]))
    shown = "the same pixels" if math.isinf(fidelity) else f"PSNR {fidelity:.1f} dB"
    stderr.print(f"Compared with {path}: {shown}", soft_wrap=True, highlight=False)
