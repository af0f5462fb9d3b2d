"""The third tab: which settings to take for a wanted speed-up or fidelity, and the lines to copy."""

from __future__ import annotations

from typing import Any

import gradio as gr

from DeepCache.app.explorer import Explorer
from DeepCache.app.group_fields import GroupFields
from DeepCache.app.measured_group import ExploredGroup, Way
from DeepCache.app.python_lines import PLAN_FILE, command_line, python_lines
from DeepCache.app.recommendation import recommend_for_fidelity, recommend_for_speed_up
from DeepCache.app.rendering import embedded_json, render

__all__ = ["advice_tab"]

_SPEED_UP, _FIDELITY = "speed-up", "fidelity"
_WISHES = [("As near as can be, at a speed-up of", _SPEED_UP), ("As fast as can be, at a PSNR of", _FIDELITY)]
_USUAL = {_SPEED_UP: 2.0, _FIDELITY: 50.0}
_LABELS = {_SPEED_UP: "Speed-up of the U-Net, or more", _FIDELITY: "PSNR against no caching in dB, or more"}

Update = dict[Any, Any]


def advice_tab(explorer: Explorer) -> None:
    """Puts the tab together, within a `gr.Tab`.

    Args:
        explorer: the ablation to choose by.
    """
    first = _advice(explorer.groups[0], _SPEED_UP, _USUAL[_SPEED_UP])
    with gr.Row():
        fields = GroupFields.of(explorer.groups, "choose")
        wish = gr.Radio(_WISHES, value=_SPEED_UP, label="What you want", min_width=240, elem_id="wish")
        value = gr.Number(_USUAL[_SPEED_UP], label=_LABELS[_SPEED_UP], elem_id="wanted", step=0.1)
    words = gr.HTML(first[0], elem_id="advice", js_on_load=None, apply_default_css=False)
    lines = gr.Code(first[1], language="python", label="In Python", interactive=False, lines=1, elem_id="advice-lines")
    command = gr.Code(
        first[2], language="shell", label="On the command line", interactive=False, lines=1, wrap_lines=True
    )

    def on_group(guidance: float | None, title: str, wish: str, number: float | None) -> Update:
        group = fields.chosen(guidance, title)
        words_, lines_, command_ = _advice(group, wish, number)
        return {fields.title: fields.titles(group), words: words_, lines: lines_, command: command_}

    def on_wish(guidance: float | None, title: str, wish: str) -> Update:
        words_, lines_, command_ = _advice(fields.chosen(guidance, title), wish, _USUAL[wish])
        shown = gr.update(value=_USUAL[wish], label=_LABELS[wish])
        return {value: shown, words: words_, lines: lines_, command: command_}

    def on_value(guidance: float | None, title: str, wish: str, number: float | None) -> tuple[str, str, str]:
        return _advice(fields.chosen(guidance, title), wish, number)

    # The last number counts, however quickly it was typed.
    event: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "always_last"}
    group, shown = [fields.guidance, fields.title], [words, lines, command]
    wish.input(on_wish, [*group, wish], [value, *shown], **event)
    value.input(on_value, [*group, wish, value], shown, **event)
    gr.on([each.input for each in group], on_group, [*group, wish, value], [fields.title, *shown], **event)


def _advice(group: ExploredGroup, wish: str, value: float | None) -> tuple[str, str, str]:
    """What to take in words, in Python and on the command line; of what cannot be had, why."""
    try:
        if value is None:
            raise ValueError("write a number")
        recommend = recommend_for_fidelity if wish == _FIDELITY else recommend_for_speed_up
        found = recommend(group, value)
    except ValueError as error:
        return render("status.html", text=_sentence(str(error)), more="", problem=True, strip=""), "", ""
    config = found.best.config
    plan = None if config is None or config.plan is None else embedded_json(config.plan.to_dict())
    words = render("advice.html", sentences=found.sentences, plan=plan, plan_file=PLAN_FILE)
    return words, *_to_copy(group, found.best)


def _to_copy(group: ExploredGroup, way: Way) -> tuple[str, str]:
    settings = (group.model, way.config, way.steps, group.scheduler)
    # The command takes no schedule of one's own.
    untakable = way.config is not None and way.config.schedule is not None and way.config.plan is None
    command = "" if untakable else command_line(*settings, guidance=group.guidance)
    return python_lines(*settings, guidance=group.guidance), command


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
