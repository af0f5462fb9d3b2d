"""Comparisons, and the progress of a request, as HTML."""

from __future__ import annotations

import json
import math
from importlib.resources import files

from markupsafe import Markup
from PIL import Image

from DeepCache.app.python_lines import python_lines
from DeepCache.app.render_worker import Comparison, JobEvent, Message
from DeepCache.app.step_strip import kinds_of_steps, step_strip
from DeepCache.config import DeepCacheConfig
from DeepCache.difference_image import difference_image
from DeepCache.generation import GenerationSettings
from DeepCache.report.html import data_uri, image_uri, render
from DeepCache.report.numerals import decibels, per_cent, seconds, times
from DeepCache.schedule import pattern_of
from DeepCache.text import format_bytes

__all__ = ["EXAMPLE", "comparison_html", "example", "is_small", "status_html"]

EXAMPLE = GenerationSettings(
    ("a big striped red circle left of a blue square, with a yellow star below",), model="shapes"
)
"""The settings of the bundled example, and the first values of the form."""

_WHOLE = DeepCacheConfig(cache_interval=1)


def example() -> tuple[str, str, str]:
    """The bundled example: its status, its comparison and its lines of Python."""
    folder = files("DeepCache.app") / "example"
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    images = {"png": (folder / "image.png").read_bytes(), "original_png": (folder / "original.png").read_bytes()}
    comparison = Comparison(**figures["comparison"] | images)
    text = f"Example: the bundled model shapes, {EXAMPLE.steps} steps, interval {EXAMPLE.cache.cache_interval}."
    threads = "1 CPU thread" if figures["threads"] == 1 else f"{figures['threads']} CPU threads"
    status = _line(text, f"Measured with {threads}. Press Generate for your own image.", state="current")
    return status, comparison_html(comparison), python_lines(EXAMPLE)


def comparison_html(comparison: Comparison) -> str:
    """The two images under a slider, their difference, the figures and the steps; the HTML contains the images."""
    image, original = comparison.images
    difference = difference_image(image, original)
    return render(
        "comparison.html",
        "DeepCache.app",
        comparison=comparison,
        image=data_uri(comparison.png, "image/png"),
        original=data_uri(comparison.original_png, "image/png"),
        enlarged=is_small(image),
        difference=image_uri(difference.image),
        caption=difference.caption,
        figures=_figures(comparison),
        strip=Markup(step_strip(comparison.pattern)),
    )


def status_html(event: JobEvent, elapsed: float = 0.0, cache: DeepCacheConfig = _WHOLE) -> str:
    """The state of a request after some seconds, with its steps while an image is generated with these settings."""
    time = f"{elapsed:.1f} s"
    if isinstance(event, Message):
        prefix = "Not generated: " if event.state == "problem" else ""
        return _line(prefix + event.text, time if event.state == "busy" else "", state=event.state)
    if isinstance(event, Comparison):
        return _line("Done.", time, state="current")
    # An adaptive schedule decides during the run, so that the steps done may differ from the schedule.
    rest = pattern_of((cache if event.accelerated else _WHOLE).steps(event.steps))[event.step :]
    strip = step_strip(event.pattern + rest, done=event.step)
    # The VAE takes time after the last step.
    where = f"step {event.step} of {event.steps}" if event.step < event.steps else "decoding the image"
    how = "with DeepCache" if event.accelerated else "without DeepCache, for comparison"
    return _line(f"Generating {how}:", f"{where}, {time}", strip=strip)


def is_small(image: Image.Image) -> bool:
    """Whether the image is shown enlarged, pixel by pixel."""
    return image.width < 256


def _line(text: str, more: str = "", *, state: str = "busy", strip: str = "") -> str:
    return render("status.html", "DeepCache.app", text=text, more=more, state=state, strip=Markup(strip))


def _figures(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Name, value and explanation of everything that was measured."""
    figures = [
        ("Without DeepCache", f"{seconds(comparison.original_seconds)} s", "whole pipeline call"),
        ("With DeepCache", f"{seconds(comparison.seconds)} s", "the same call"),
        ("Speed-up", times(comparison.original_seconds / comparison.seconds), "one run each, varies between runs"),
    ]
    share = comparison.mac_share
    if share is not None:
        figures.append(("MACs", per_cent(share), f"multiply-accumulates of the U-Net: {times(1 / share)} fewer"))
    psnr = "identical" if comparison.psnr == math.inf else f"{decibels(comparison.psnr)} dB"
    figures.append(("PSNR", psnr, "higher is closer to the original"))
    if comparison.ssim is not None:
        figures.append(("SSIM", f"{comparison.ssim:.4f}", "1 is identical"))
    memory = f"{format_bytes(comparison.bytes_kept)} cached between steps"
    return [*figures, ("Steps", kinds_of_steps(comparison.pattern), memory)]
