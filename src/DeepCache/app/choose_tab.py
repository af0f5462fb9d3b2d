"""The Choose tab: settings for a speed-up or fidelity, and the code to copy."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import gradio as gr

from DeepCache.app.explore_tab import GroupFields
from DeepCache.app.explorer import Cell, ExploredGroup, Explorer, config_of
from DeepCache.app.python_lines import PLAN_FILE, command_line, example_prompt, python_lines
from DeepCache.app.recommendation import recommend
from DeepCache.generation import GenerationSettings
from DeepCache.report.heat_map import IDENTICAL
from DeepCache.report.html import data_uri, render
from DeepCache.report.numerals import decibels, times

__all__ = ["choose_tab"]

_GOALS = [("The highest fidelity at a speed-up of", "speed-up"), ("The highest speed at a PSNR of", "fidelity")]
_USUAL = {"speed-up": 2.0, "fidelity": 50.0}
_LABELS = {"speed-up": "Smallest speed-up of the U-Net", "fidelity": "Smallest PSNR against no caching, dB"}

Update = dict[Any, Any]


def choose_tab(explorer: Explorer) -> None:
    """Adds the content of the tab."""
    first = _advice(explorer.groups[0], "speed-up", _USUAL["speed-up"])
    with gr.Row():
        fields = GroupFields(explorer.groups, "choose")
        goal = gr.Radio(_GOALS, value="speed-up", label="Goal", min_width=240, elem_id="goal")
        value = gr.Number(_USUAL["speed-up"], label=_LABELS["speed-up"], elem_id="wanted", step=0.1)
    chart = gr.HTML(first[0], elem_id="chart", js_on_load=None, apply_default_css=False)
    words = gr.HTML(first[1], elem_id="advice", js_on_load=None, apply_default_css=False)
    lines = gr.Code(first[2], language="python", label="In Python", interactive=False, lines=1, elem_id="advice-lines")
    command = gr.Code(
        first[3], language="shell", label="On the command line", interactive=False, lines=1, wrap_lines=True
    )
    shown = [chart, words, lines, command]

    def on_change(guidance: float | None, title: str, goal: str, number: float | None) -> Update:
        group = fields.selected(guidance, title)
        return fields.update(group) | dict(zip(shown, _advice(group, goal, number), strict=True))

    def on_goal(guidance: float | None, title: str, goal: str) -> Update:
        usual = gr.update(value=_USUAL[goal], label=_LABELS[goal])
        return on_change(guidance, title, goal, _USUAL[goal]) | {value: usual}

    # The last number counts, however quickly it was typed.
    event: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "always_last"}
    group, outputs = [fields.guidance, fields.title], [fields.title, *shown]
    goal.input(on_goal, [*group, goal], [value, *outputs], **event)
    gr.on([value.input, *(each.input for each in group)], on_change, [*group, goal, value], outputs, **event)


def _advice(group: ExploredGroup, goal: str, value: float | None) -> tuple[str, str, str, str]:
    """The chart, and the recommended settings in words, in Python and on the command line; or why there are none."""
    try:
        if value is None:
            raise ValueError("the number is empty")
        found = recommend(group, goal, value)
    except ValueError as error:
        text = f"{str(error)[:1].upper()}{str(error)[1:]}."
        status = render("status.html", "DeepCache.app", text=text, more="", state="problem", strip="")
        return _chart(group), status, "", ""
    config, plan = config_of(found.best), None
    if config.plan is not None:
        text = json.dumps(config.plan.to_dict(), indent=2, ensure_ascii=False)
        plan = data_uri(text.encode(), "application/json")
    words = render("advice.html", "DeepCache.app", sentences=found.sentences, plan=plan, plan_file=PLAN_FILE)
    settings = GenerationSettings(
        prompts=(example_prompt(group.model),),
        model=group.model,
        steps=found.best["steps"],
        guidance=group.guidance,
        cache=config,
        scheduler=group.scheduler,
    )
    # The command has no option for an explicit schedule.
    has_command = config.schedule is None or config.plan is not None
    return (
        _chart(group, found.best),
        words,
        python_lines(settings),
        command_line(settings) if has_command else "",
    )


def _chart(group: ExploredGroup, best: Cell | None = None) -> str:
    """PSNR and speed-up of all settings that a scale can show."""
    cells = [cell for cell in group.cells if cell["psnr"]["mean"] < IDENTICAL]
    speed_ups, psnrs = [1 / cell["mac_share"] for cell in cells], [cell["psnr"]["mean"] for cell in cells]
    x_ticks, y_ticks = _ticks(speed_ups), _ticks(psnrs)
    points = []
    for cell, speed_up, psnr in zip(cells, speed_ups, psnrs, strict=True):
        kind = "best" if cell is best else "cached" if cell["method"] == "DeepCache" else "fewer"
        title = f"{cell['label']}: {times(speed_up)}, {decibels(psnr)} dB"
        points.append((kind, _place(speed_up, x_ticks), _place(psnr, y_ticks), title))
    return render(
        "chart.html",
        "DeepCache.app",
        x_title="speed-up of the U-Net by MACs",
        y_title="PSNR in dB",
        x_ticks=[(f"{tick:g}×", _place(tick, x_ticks)) for tick in x_ticks],
        y_ticks=[(f"{tick:g}", _place(tick, y_ticks)) for tick in y_ticks],
        points=sorted(points, key=lambda point: point[0] == "best"),
        best=best,
    )


def _ticks(values: Sequence[float]) -> list[float]:
    """About six round numbers that enclose the values."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    step = next((step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if (high - low) / step <= 6), 100)
    return [round(number * step, 1) for number in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _place(value: float, ticks: Sequence[float]) -> float:
    """The place on the scale in per cent."""
    return round(100 * (value - ticks[0]) / ((ticks[-1] - ticks[0]) or 1), 2)
