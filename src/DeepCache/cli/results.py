"""Prints the results of `deepcache generate`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from DeepCache.cli.console import explain, note, print_json, print_table, table
from DeepCache.text import format_bytes

if TYPE_CHECKING:
    from DeepCache.generation import GeneratedImage


def print_results(images: Sequence[GeneratedImage], written: Sequence[Path], *, as_json: bool = False) -> None:
    """Prints cost and fidelity of the images, and the files that were written."""
    if as_json:
        print_json({"images": [_values(image) for image in images], "files": [str(path) for path in written]})
        return
    if images:
        _print_table(images)
        explain(
            "\nMACs: multiply-accumulates of the U-Net, relative to those without DeepCache.\n"
            "kept: memory for features between steps.\n"
        )
    for path in written:
        print(path)


def _values(image: GeneratedImage) -> dict[str, Any]:
    stats, original = image.stats, image.original
    found = {
        "prompt": image.prompt,
        "seed": image.seed,
        "file": str(image.accelerated.path),
        "seconds": image.accelerated.seconds,
        "pattern": stats.pattern,
        "full_steps": stats.full_steps,
        "shallow_steps": stats.shallow_steps,
        "skipped_steps": stats.skipped_steps,
        "mac_share": stats.mac_share,
        "bytes_kept": stats.bytes_kept,
    }
    if original is not None:
        # JSON has no infinity.
        identical = image.psnr == math.inf
        found |= {
            "original": str(original.path),
            "comparison": str(image.comparison),
            "original_seconds": original.seconds,
            "speed_up": image.speed_up,
            "identical": identical,
            "psnr": None if identical else image.psnr,
            "ssim": image.ssim,
        }
    return found


def _print_table(images: Sequence[GeneratedImage]) -> None:
    values: list[dict[str, Any]] = [_values(image) for image in images]
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "seconds": ("seconds", "{:.2f} s".format),
        "full": ("full_steps", "{:.0f}".format),
        "shallow": ("shallow_steps", "{:.0f}".format),
        "skipped": ("skipped_steps", "{:.0f}".format),
        "MACs": ("mac_share", "{:.1%}".format),
        "kept": ("bytes_kept", format_bytes),
    }
    if not any(each["skipped_steps"] for each in values):
        del columns["skipped"]
    if images[0].original is not None:
        columns = {
            "original": ("original_seconds", "{:.2f} s".format),
            "DeepCache": columns.pop("seconds"),
            "speed-up": ("speed_up", "{:.2f}×".format),
            **columns,
            "PSNR": ("psnr", _show_psnr),
            "SSIM": ("ssim", "{:.4f}".format),
        }
        for each, image in zip(values, images, strict=True):
            each["psnr"] = image.psnr
    shown = table("seed", *columns, space=0)
    for each in values:
        cells = [(each[name], show) for name, show in columns.values()]
        shown.add_row(str(each["seed"]), *("–" if value is None else show(value) for value, show in cells))
    if len(values) > 1:
        shown.add_section()
        shown.add_row("mean", *(_mean([each[name] for each in values], show) for name, show in columns.values()))
    print_table(shown)


def _mean(values: Sequence[float | None], show: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    return show(fmean(known)) if known else "–"


def _show_psnr(value: float) -> str:
    return "identical" if value == math.inf else f"{value:.1f} dB"


def print_differences(path: Path, pipe: Any) -> None:
    """Prints which settings of an image are ignored, and what differs from the environment it was generated in."""
    from DeepCache.generation import read_recorded
    from DeepCache.generation.recorded import made_with

    image = read_recorded(path)
    if image.unread:
        note(f"Ignored settings of {path}: {'; '.join(image.unread)}")
    if differences := image.differences(made_with(pipe)):
        note(f"Differences from {path}: {', '.join(differences)}")


def print_fidelity(path: Path, generated: Sequence[GeneratedImage]) -> None:
    """Prints how close a regenerated image is to the first."""
    from PIL import Image

    from DeepCache.metrics import psnr

    if len(generated) != 1:
        return
    image = generated[0].accelerated.image
    with Image.open(path) as first:
        if first.size != image.size:
            return
        fidelity = float(psnr([image], [first.convert("RGB")]))
    note(f"Compared with {path}: {'identical pixels' if math.isinf(fidelity) else f'PSNR {fidelity:.1f} dB'}")
