"""A grid of interval by branch as a table of HTML."""

from __future__ import annotations

import math
from html import escape

from DeepCache.app.measured_group import Grid
from DeepCache.report.fidelity import IDENTICAL
from DeepCache.report.numerals import per_cent

__all__ = ["SHADES", "grid_html"]

SHADES = 9
"""How many colours a grid has: the classes `shade-0`, the lowest PSNR of the group, to `shade-8` in `explorer.css`."""


def grid_html(grid: Grid, chosen: str = "") -> str:
    """A grid as an accessible table of HTML, each cell a button coloured by its PSNR; the styles are in `explorer.css`.

    Args:
        grid: the grid.
        chosen: the label of the cell that is marked as chosen.

    Returns:
        The table as HTML.

    Example:
        >>> from DeepCache.app.explorer import SHIPPED_ABLATION, Explorer
        >>> grid = Explorer.from_file(SHIPPED_ABLATION).groups[0].grids[0]
        >>> html = grid_html(grid, chosen="I=3 B=0")
        >>> html.count("<button"), html.count('aria-pressed="true"')
        (12, 1)
    """
    caption = f"PSNR against no caching and share of the U-Net's multiply-accumulates: {grid.kind.title}"
    columns = "".join(f'<th scope="col">Interval {interval}</th>' for interval in grid.intervals)
    rows = "".join(
        f'<tr><th scope="row">Branch {branch}</th>'
        + "".join(f"<td>{_button(grid, interval, branch, chosen)}</td>" for interval in grid.intervals)
        + "</tr>"
        for branch in grid.branches
    )
    return (
        f'<div class="ablation-grid"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr><td></td>{columns}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _button(grid: Grid, interval: int, branch: int, chosen: str) -> str:
    way = grid.cells.get((interval, branch))
    if way is None:
        return '<span class="not-measured">not measured</span>'
    pressed = "true" if way.label == chosen else "false"
    psnr = "identical" if way.psnr >= IDENTICAL else f"{way.psnr:.1f} dB"
    front = '<small class="front">Pareto front</small>' if way.front else ""
    return (
        f'<button type="button" class="shade-{_shade(way.psnr, grid.psnr_range)}" data-interval="{interval}" '
        f'data-branch="{branch}" aria-pressed="{pressed}"><span class="for-readers">Interval {interval}, branch '
        f"{branch}: </span><b>{psnr}</b> <small>{escape(per_cent(way.mac_share))}</small> {front}</button>"
    )


def _shade(psnr: float, psnr_range: tuple[float, float]) -> int:
    low, high = psnr_range
    # One shade for all where there is no range.
    return min(SHADES - 1, math.floor(SHADES * (psnr - low) / ((high - low) or math.inf)))
