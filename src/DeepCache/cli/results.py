"""The table at the end of `deepcache generate`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from DeepCache.text import format_bytes

if TYPE_CHECKING:
    from DeepCache.generation import GeneratedImage

__all__ = ["print_results"]


def print_results(images: Sequence[GeneratedImage], written: Sequence[Path], *, as_json: bool = False) -> None:
    """Prints what the images cost and how faithful they are, and the files that were written.

    Args:
        images: the images.
        written: the files.
        as_json: whether to print them as a JSON object.
    """
    if as_json:
        found = {"images": [_for_programs(image) for image in images], "files": [str(path) for path in written]}
        print(json.dumps(found, indent=2))
        return
    console = Console(markup=False)
    if images:
        console.print(_table(images))
        console.print(
            "\nMACs: the U-Net's multiply-accumulates, as a share of those without DeepCache.\n"
            "kept: memory that holds the deep feature between steps.\n",
            style="dim",
            highlight=False,
            soft_wrap=True,
        )
    for path in written:
        # Never wrapped, so that a path can be copied.
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)


def _for_programs(image: GeneratedImage) -> dict[str, Any]:
    stats, original = image.stats, image.original
    found = {
        "prompt": image.prompt,
        "seed": image.seed,
        "file": str(image.drawing.path),
        "seconds": image.drawing.seconds,
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


def _table(images: Sequence[GeneratedImage]) -> Table:
    columns: dict[str, tuple[Callable[[GeneratedImage], float | None], Callable[[float], str]]] = {
        "seconds": (lambda image: image.drawing.seconds, "{:.2f} s".format),
        "full": (lambda image: image.stats.full_steps, "{:.0f}".format),
        "shallow": (lambda image: image.stats.shallow_steps, "{:.0f}".format),
        "skipped": (lambda image: image.stats.skipped_steps, "{:.0f}".format),
        "MACs": (lambda image: image.stats.mac_share, "{:.1%}".format),
        "kept": (lambda image: image.stats.bytes_kept, format_bytes),
    }
    if not any(image.stats.skipped_steps for image in images):
        del columns["skipped"]
    if images[0].original is not None:
        columns = {
            "original": (lambda image: image.original.seconds if image.original else None, "{:.2f} s".format),
            "DeepCache": columns.pop("seconds"),
            "speed-up": (lambda image: image.speed_up, "{:.2f}×".format),
            **columns,
            "PSNR": (lambda image: image.psnr, _show_psnr),
            "SSIM": (lambda image: image.ssim, "{:.4f}".format),
        }
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for name in ("seed", *columns):
        table.add_column(name, justify="right", no_wrap=True)
    for image in images:
        values = {name: value(image) for name, (value, _) in columns.items()}
        table.add_row(
            str(image.seed),
            *("–" if value is None else columns[name][1](value) for name, value in values.items()),
        )
    if len(images) > 1:
        table.add_section()
        table.add_row("mean", *(_mean(images, value, show) for value, show in columns.values()))
    return table


def _mean(
    images: Sequence[GeneratedImage],
    value: Callable[[GeneratedImage], float | None],
    show: Callable[[float], str],
) -> str:
    known = [found for image in images if (found := value(image)) is not None]
    return show(fmean(known)) if known else "–"


def _show_psnr(value: float) -> str:
    return "identical" if value == math.inf else f"{value:.1f} dB"
