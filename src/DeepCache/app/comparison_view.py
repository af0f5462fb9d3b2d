"""A drawn comparison and the way to it, as HTML."""

from __future__ import annotations

import math

from markupsafe import Markup

from DeepCache.app.easel import Comparison, Failure, Loading, News, Stopped, Waiting, WarmingUp
from DeepCache.app.rendering import embedded, embedded_picture, is_small, render
from DeepCache.app.step_strip import step_strip
from DeepCache.config import DeepCacheConfig
from DeepCache.difference_image import difference_image
from DeepCache.report.numerals import decibels, per_cent, seconds, times
from DeepCache.schedule import pattern_of
from DeepCache.text import format_bytes

__all__ = ["comparison_html", "status_html"]

_WHOLE = DeepCacheConfig(cache_interval=1)


def comparison_html(comparison: Comparison) -> str:
    """The two pictures under a slider, their difference, the figures and the steps.

    Args:
        comparison: what was drawn.

    Returns:
        HTML that holds the pictures.
    """
    drawn, original = comparison.drawn, comparison.drawn.original
    assert original is not None
    difference = difference_image(drawn.drawing.image, original.image)
    return render(
        "comparison.html",
        prompt=drawn.prompt,
        name=drawn.drawing.path.stem,
        picture=embedded(comparison.png),
        original=embedded(comparison.original_png),
        enlarged=is_small(drawn.drawing.image),
        difference=embedded_picture(difference.image),
        difference_in_words=difference.caption,
        cut_off=comparison.cut_off,
        figures=_figures(comparison),
        strip=Markup(step_strip(drawn.stats.pattern)),
    )


def status_html(news: News, elapsed: float = 0.0, cache: DeepCacheConfig = _WHOLE) -> str:
    """How far it is, in a line, and while a picture is drawn its steps.

    Args:
        news: the latest.
        elapsed: seconds since the visitor asked.
        cache: the settings that are drawn with.

    Returns:
        HTML.
    """
    match news:
        case Waiting(before=0):
            return _line("Beginning …", _seconds(elapsed))
        case Waiting(before=before):
            others = "one picture is" if before == 1 else f"{before} pictures are"
            return _line(f"Waiting: {others} drawn first.", _seconds(elapsed))
        case Loading(model=model):
            return _line(f"Loading {model} …", _seconds(elapsed))
        case WarmingUp():
            return _line("Warming up …", _seconds(elapsed))
        case Stopped():
            return _line("Cancelled.")
        case Failure(message=message):
            return _line(f"Not drawn: {message}", problem=True)
        case Comparison():
            return _line("Done.", _seconds(elapsed))
    how = "with DeepCache" if news.accelerated else "without DeepCache, to compare"
    # What was done may differ from the plan: an adaptive schedule decides on its way.
    to_come = pattern_of((cache if news.accelerated else _WHOLE).steps(news.steps))[news.step :]
    strip = step_strip(news.pattern + to_come, done=news.step)
    # What comes after the last step takes its time too.
    where = f"step {news.step} of {news.steps}" if news.step < news.steps else "finishing the picture"
    return _line(f"Drawing {how}:", f"{where}, {_seconds(elapsed)}", strip=Markup(strip))


def _seconds(elapsed: float) -> str:
    return f"{elapsed:.1f} s"


def _line(text: str, more: str = "", *, problem: bool = False, strip: str = "") -> str:
    return render("status.html", text=text, more=more, problem=problem, strip=strip)


def _figures(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Name, value and explanation of all that was measured."""
    drawn, original = comparison.drawn, comparison.drawn.original
    assert original is not None
    assert drawn.speed_up is not None
    assert drawn.psnr is not None
    stats = drawn.stats
    figures = [
        ("Without DeepCache", f"{seconds(original.seconds)} s", "the whole pipeline call"),
        ("With DeepCache", f"{seconds(drawn.drawing.seconds)} s", "the same call"),
        ("Speed-up", times(drawn.speed_up), "one run of each: the next one differs a little"),
    ]
    if stats.mac_share is not None:
        by_them = f"of the U-Net's; by them alone {times(1 / stats.mac_share)} as fast"
        figures.append(("Multiply-accumulates", per_cent(stats.mac_share), by_them))
    identical = drawn.psnr == math.inf
    figures.append(("PSNR", "identical" if identical else f"{decibels(drawn.psnr)} dB", "higher is nearer"))
    if drawn.ssim is not None:
        figures.append(("SSIM", f"{drawn.ssim:.4f}", "1 is identical"))
    kept = f"{stats.full_steps} full, {stats.shallow_steps} shallow"
    if stats.skipped_steps:
        kept += f", {stats.skipped_steps} skipped"
    figures.append(("Steps", kept, f"{format_bytes(stats.bytes_kept)} kept between them"))
    return figures
