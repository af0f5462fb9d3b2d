"""The second tab: an ablation to explore, cell by cell."""

from __future__ import annotations

from typing import Any

import gradio as gr
from markupsafe import Markup

from DeepCache.app.explorer import Choice, Explorer, Sample
from DeepCache.app.grid_table import grid_html
from DeepCache.app.group_fields import GroupFields
from DeepCache.app.measured_group import ExploredGroup, Grid, Kind, Way
from DeepCache.app.rendering import asset, embedded_picture, is_small, render
from DeepCache.app.step_strip import step_strip
from DeepCache.config import DeepCacheConfig
from DeepCache.report.numerals import decibels

__all__ = ["explorer_tab"]

Update = dict[Any, Any]


def explorer_tab(explorer: Explorer) -> None:
    """Puts the tab together, within a `gr.Tab`.

    Args:
        explorer: the ablation.
    """
    groups = [group for group in explorer.groups if group.grids]
    gr.HTML(render("explored.html", explorer=explorer, guidance=_guidance(explorer), grids=bool(groups)))
    if not groups:
        return
    group = groups[0]
    grid = _first_grid(group)
    with gr.Row():
        fields = GroupFields.of(groups, "explore")
        kind_title = gr.Dropdown(
            [each.kind.title for each in group.grids],
            value=grid.kind.title,
            label="Forecast and schedule",
            min_width=240,
        )
    table = gr.HTML(_table(grid), elem_id="grid", js_on_load=asset("grid.js"), apply_default_css=False)
    details = gr.HTML(_first_choice(explorer, group, grid), elem_id="choice", js_on_load=None, apply_default_css=False)

    def on_group(guidance: float | None, title: str, kind_title: str) -> Update:
        group = fields.chosen(guidance, title)
        titles = [grid.kind.title for grid in group.grids]
        grid = group.grid(kind_title) if kind_title in titles else _first_grid(group)
        return {
            fields.title: fields.titles(group),
            kind: gr.update(choices=titles, value=grid.kind.title),
            table: _table(grid),
            details: _first_choice(explorer, group, grid),
        }

    def on_kind(guidance: float | None, title: str, kind_title: str) -> Update:
        group = fields.chosen(guidance, title)
        grid = group.grid(kind_title)
        return {table: _table(grid), details: _first_choice(explorer, group, grid)}

    def on_cell(guidance: float | None, title: str, kind_title: str, event: gr.EventData) -> str:
        group = fields.chosen(guidance, title)
        way = group.grid(kind_title).way(event.interval, event.branch)
        return _choice(explorer.choose(group, way.label))

    kind, chosen = kind_title, [fields.guidance, fields.title, kind_title]
    # The last choice counts, however quickly it comes after the one before.
    event: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "always_last"}
    gr.on([fields.guidance.input, fields.title.input], on_group, chosen, [fields.title, kind, table, details], **event)
    kind.input(on_kind, chosen, [table, details], **event)
    # With "always_last" Gradio would call it again with the cell that was clicked first; in turn, the last one stays.
    table.select(on_cell, chosen, details, **(event | {"trigger_mode": "multiple"}))


def _guidance(explorer: Explorer) -> str:
    """At which guidance scales, for the end of a clause."""
    scales = [f"{scale:g}" for scale in explorer.guidance_scales if scale is not None]
    return f" at guidance {', '.join(scales)}" if scales else ""


def _first_grid(group: ExploredGroup) -> Grid:
    """That of DeepCache's own defaults, where it was measured."""
    usual = Kind.of(DeepCacheConfig())
    return next((grid for grid in group.grids if grid.kind == usual), group.grids[0])


def _first_way(grid: Grid) -> Way:
    default = DeepCacheConfig()
    return grid.cells.get((default.cache_interval, default.cache_branch_id), next(iter(grid.cells.values())))


def _table(grid: Grid) -> str:
    return grid_html(grid, chosen=_first_way(grid).label)


def _first_choice(explorer: Explorer, group: ExploredGroup, grid: Grid) -> str:
    return _choice(explorer.choose(group, _first_way(grid).label))


def _choice(choice: Choice) -> str:
    samples = [
        {"prompt": sample.prompt, "pictures": _pictures(choice, sample), "words": _words(sample)}
        for sample in choice.samples
    ]
    strip = Markup(step_strip(choice.way.pattern))
    enlarged = any(is_small(sample.cached) for sample in choice.samples)
    return render("choice.html", choice=choice, samples=samples, enlarged=enlarged, strip=strip)


def _pictures(choice: Choice, sample: Sample) -> list[tuple[str, str]]:
    """The pictures of a prompt, each with what it is."""
    found = [("No caching", sample.original), ("DeepCache", sample.cached)]
    if sample.fewer_steps is not None and choice.fewer_steps is not None:
        found.append((choice.fewer_steps.label, sample.fewer_steps))
    return [(name, embedded_picture(picture)) for name, picture in found]


def _words(sample: Sample) -> str:
    if sample.psnr is None:
        return ""
    fewer = "" if sample.fewer_steps_psnr is None else f", fewer steps {decibels(sample.fewer_steps_psnr)} dB"
    return f"DeepCache {decibels(sample.psnr)} dB{fewer}"
