"""The Explore tab: an ablation, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from markupsafe import Markup

from DeepCache.app.comparison_view import is_small
from DeepCache.app.explorer import Choice, ExploredGroup, Explorer
from DeepCache.app.server import asset
from DeepCache.app.step_strip import step_strip
from DeepCache.config import DeepCacheConfig
from DeepCache.report.heat_map import HeatMap, Kind
from DeepCache.report.html import image_uri, render

__all__ = ["GroupFields", "explore_tab"]

Update = dict[Any, Any]

_DEFAULT = DeepCacheConfig()


class GroupFields:
    """Two fields that select a group. The guidance scale is visible if there are several.

    Args:
        groups: the groups, of which the first is selected.
        name: start of the element id of the field of the guidance scale.
    """

    def __init__(self, groups: Sequence[ExploredGroup], name: str) -> None:
        self.groups, first = groups, groups[0]
        scales = list(dict.fromkeys(group.guidance for group in groups))
        named: list[Any] = [("none" if scale is None else f"{scale:g}", scale) for scale in scales]
        self.guidance = gr.Dropdown(
            named,
            value=scales[0],
            label="Guidance scale",
            visible=len(scales) > 1,
            min_width=120,
            elem_id=f"{name}-guidance",
        )
        self.title = gr.Dropdown(
            self._titles(first.guidance), value=first.title, label="Scheduler and steps", min_width=240
        )

    def selected(self, guidance: float | None, title: str) -> ExploredGroup:
        """The group with these values of the fields; if the scale has no such title, its first group."""
        groups = [group for group in self.groups if group.guidance == guidance]
        return next((group for group in groups if group.title == title), groups[0])

    def update(self, group: ExploredGroup) -> Update:
        """Shows the titles at the guidance scale of a group."""
        return {self.title: gr.update(choices=self._titles(group.guidance), value=group.title)}

    def _titles(self, guidance: float | None) -> list[str]:
        return [group.title for group in self.groups if group.guidance == guidance]


def explore_tab(explorer: Explorer) -> None:
    """Adds the content of the tab."""
    groups = [group for group in explorer.groups if group.heat_maps]
    gr.HTML(
        render("explored.html", "DeepCache.app", group=explorer.groups[0], guidance=_guidance(explorer), maps=groups)
    )
    if not groups:
        return
    group, heat_map = groups[0], _first_map(groups[0])
    with gr.Row():
        fields = GroupFields(groups, "explore")
        kind = gr.Dropdown(
            list(group.heat_maps), value=heat_map.kind.title, label="Forecast and schedule", min_width=240
        )
    first = _first_label(heat_map)
    table = gr.HTML(heat_map.html(first), elem_id="grid", js_on_load=asset("grid.js"), apply_default_css=False)
    details = gr.HTML(
        choice_html(explorer.choose(group, first)), elem_id="choice", js_on_load=None, apply_default_css=False
    )

    def shown(group: ExploredGroup, heat_map: HeatMap) -> Update:
        label = _first_label(heat_map)
        return {table: heat_map.html(label), details: choice_html(explorer.choose(group, label))}

    def on_group(guidance: float | None, title: str, kind_title: str) -> Update:
        group = fields.selected(guidance, title)
        heat_map = group.heat_maps.get(kind_title) or _first_map(group)
        choices = gr.update(choices=list(group.heat_maps), value=heat_map.kind.title)
        return fields.update(group) | {kind: choices} | shown(group, heat_map)

    def on_kind(guidance: float | None, title: str, kind_title: str) -> Update:
        group = fields.selected(guidance, title)
        return shown(group, group.heat_maps[kind_title])

    def on_cell(guidance: float | None, title: str, kind_title: str, event: gr.EventData) -> str:
        group = fields.selected(guidance, title)
        cell = group.heat_maps[kind_title].cells[event.interval, event.branch]
        return choice_html(explorer.choose(group, cell["label"]))

    selected = [fields.guidance, fields.title, kind]
    # The last choice counts, however quickly it follows the previous one.
    event: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "always_last"}
    gr.on(
        [fields.guidance.input, fields.title.input], on_group, selected, [fields.title, kind, table, details], **event
    )
    kind.input(on_kind, selected, [table, details], **event)
    # With "always_last", Gradio would repeat the call for the cell that was clicked first.
    table.select(on_cell, selected, details, **(event | {"trigger_mode": "multiple"}))


def _guidance(explorer: Explorer) -> str:
    scales = [f"{scale:g}" for scale in explorer.guidance_scales if scale is not None]
    return f" at guidance {', '.join(scales)}" if scales else ""


def _first_map(group: ExploredGroup) -> HeatMap:
    """The heat map of the default settings of DeepCache, if it was measured."""
    default = group.heat_maps.get(Kind.of(_DEFAULT.to_dict()).title)
    return default or next(iter(group.heat_maps.values()))


def _first_label(heat_map: HeatMap) -> str:
    cells = heat_map.cells
    cell = cells.get((_DEFAULT.cache_interval, _DEFAULT.cache_branch_id)) or next(iter(cells.values()))
    return str(cell["label"])


def choice_html(choice: Choice) -> str:
    """The images and figures of settings."""
    return render(
        "choice.html",
        "DeepCache.app",
        choice=choice,
        is_small=is_small,
        image_uri=image_uri,
        strip=Markup(step_strip(choice.cell["pattern"])),
    )
