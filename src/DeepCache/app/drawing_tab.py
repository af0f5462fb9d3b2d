"""The first tab: draw a prompt with and without DeepCache, and see both."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Event, Lock
from typing import Any

import gradio as gr

from DeepCache.app.comparison_view import comparison_html, status_html
from DeepCache.app.drawing_request import MOST_GUIDANCE, read_request
from DeepCache.app.easel import Comparison, Easel, Failure
from DeepCache.app.model_defaults import ModelDefaults
from DeepCache.app.python_lines import python_lines
from DeepCache.app.rendering import asset, render
from DeepCache.config import PRESETS, DeepCacheConfig
from DeepCache.models.schedulers import SCHEDULER_ALIASES
from DeepCache.schedule import BETWEEN, FORECASTS, SKIP_MODES

__all__ = ["drawing_tab"]

_EXAMPLE = "a big striped red circle left of a blue square, with a yellow star below"
_DEFAULT = DeepCacheConfig()
_OWN = "the model's own"
# The fields that a preset fills in, and what they are called in `DeepCacheConfig`.
_OF_PRESETS = {
    "interval": "cache_interval",
    "branch": "cache_branch_id",
    "between": "between",
    "forecast": "forecast",
    "skip_mode": "skip_mode",
    "threshold": "threshold",
    "guidance_reuse": "guidance_reuse",
}

Update = dict[Any, Any]


class _Visitors:
    """Who is drawn for: one picture at a time for each visitor, which none but that visitor can cancel."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._stops: dict[str, Event] = {}

    def begin(self, visitor: str) -> Event:
        """What to set to cancel the picture that this visitor asks for.

        Raises:
            ValueError: the visitor waits for one already.
        """
        with self._lock:
            if visitor in self._stops:
                raise ValueError("a picture is being drawn for you already: wait for it, or cancel it")
            return self._stops.setdefault(visitor, Event())

    def stop(self, visitor: str) -> None:
        with self._lock:
            if visitor in self._stops:
                self._stops[visitor].set()

    def end(self, visitor: str) -> None:
        with self._lock:
            del self._stops[visitor]


def drawing_tab(page: gr.Blocks, easel: Easel, models: tuple[str, ...]) -> None:
    """Puts the tab together, within a `gr.Tab`.

    Args:
        page: the page.
        easel: where pictures are drawn.
        models: those that can be drawn with, the first of which is set.
    """
    # In the order of a narrow screen; on a wide one the result stands beside the form.
    with gr.Column(elem_classes="studio"):
        with gr.Column():
            prompt = gr.Textbox(_EXAMPLE, label="Prompt", lines=2, max_lines=8, elem_id="prompt")
            with gr.Row():
                draw = gr.Button("Draw", variant="primary", min_width=90, elem_id="draw")
                cancel = gr.Button("Cancel", min_width=90, elem_id="cancel")
        with gr.Column(elem_classes="studio-result"):
            status = gr.HTML("<p>Nothing is drawn yet.</p>", elem_id="status", js_on_load=None, apply_default_css=False)
            result = gr.HTML("", elem_id="result", js_on_load=asset("wipe.js"), apply_default_css=False)
            with gr.Accordion("The same in Python", open=False, visible=False) as same:
                lines = gr.Code("", language="python", interactive=False, show_label=False, elem_id="lines")
        with gr.Column():
            settings, preset = _settings(models, easel.defaults(models[0]))
            fields = {"prompt": prompt} | settings

    visitors = _Visitors()
    outputs = [status, result, same, lines]

    def on_draw(request: gr.Request, *values: Any) -> Iterator[Update]:
        visitor = str(request.session_hash)
        try:
            wanted = read_request(**dict(zip(fields, values, strict=True)))
            stop = visitors.begin(visitor)
        except (ValueError, TypeError) as error:
            yield {status: status_html(Failure(str(error)))}
            return
        began = time.monotonic()
        try:
            for news in easel.draw(wanted, stop):
                update: Update = {status: status_html(news, time.monotonic() - began, wanted.settings.cache)}
                if isinstance(news, Comparison):
                    settings = wanted.settings
                    text = python_lines(
                        settings.model,
                        settings.cache,
                        settings.steps,
                        wanted.scheduler,
                        seed=settings.seed,
                        prompt=settings.prompts[0],
                        negative_prompt=settings.negative_prompt,
                        guidance=settings.guidance,
                        size=settings.size,
                    )
                    update |= {result: comparison_html(news), same: gr.update(visible=True), lines: text}
                yield update
        finally:
            visitors.end(visitor)

    def on_model(model: str) -> Update:
        defaults = easel.defaults(model)
        width, height = defaults.size or (None, None)
        return {fields["guidance"]: defaults.guidance, fields["width"]: width, fields["height"]: height}

    def on_cancel(request: gr.Request) -> None:
        visitors.stop(str(request.session_hash))

    # Whose turn it is, the easel says; here all may wait at once.
    event: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
    gr.on([draw.click, prompt.submit], on_draw, list(fields.values()), outputs, trigger_mode="once", **event)
    # The values of the model before are not those of this one.
    fields["model"].input(
        on_model, fields["model"], [fields[name] for name in ("guidance", "width", "height")], **event
    )
    _connect_preset(preset, fields, easel, event)
    cancel.click(on_cancel, **event)
    page.unload(on_cancel)


def _connect_preset(preset: gr.Radio, fields: dict[str, Any], easel: Easel, event: dict[str, Any]) -> None:
    """Has a preset fill in the settings that it stands for at the guidance scale with the scheduler, and changed
    settings leave it."""
    filled = {fields[name]: attribute for name, attribute in _OF_PRESETS.items()}

    def on_preset(name: str, guidance: float | None, scheduler: str, model: str) -> Update:
        if not name:
            return {preset: name}
        own = easel.defaults(model)
        cache = DeepCacheConfig.preset(
            name,
            own.guidance if guidance is None else guidance,
            SCHEDULER_ALIASES[scheduler] if scheduler else own.scheduler,
        )
        return {field: getattr(cache, attribute) for field, attribute in filled.items()}

    gr.on(
        [preset.input, fields["guidance"].change, fields["scheduler"].change],
        on_preset,
        [preset, fields["guidance"], fields["scheduler"], fields["model"]],
        [preset, *filled],
        # A change while the one before is answered counts too.
        trigger_mode="always_last",
        **event,
    )
    # In the browser: an answer of the server might come after another preset has been chosen.
    gr.on([field.input for field in filled], None, None, preset, js="() => ''", **event)


def _settings(models: tuple[str, ...], defaults: ModelDefaults) -> tuple[dict[str, Any], gr.Radio]:
    """The other fields by the name that `read_request` has for them, with the values of the first model; and the field
    of the preset."""
    fields: dict[str, Any] = {
        "negative_prompt": gr.Textbox(
            "",
            label="Negative prompt",
            info="What the image should not show; needs guidance above 1",
            max_lines=4,
            elem_id="negative_prompt",
        ),
        "model": gr.Dropdown(list(models), value=models[0], label="Model", interactive=len(models) > 1),
    }
    width, height = defaults.size or (None, None)
    fields["guidance"] = gr.Number(
        defaults.guidance,
        label="Guidance scale",
        info=f"0 to {MOST_GUIDANCE}; 1 or less turns guidance off",
        placeholder=_OWN,
        step=0.5,
        elem_id="guidance",
    )
    with gr.Row():
        fields["width"] = gr.Number(width, label="Width", placeholder=_OWN, step=8, min_width=90, elem_id="width")
        fields["height"] = gr.Number(height, label="Height", placeholder=_OWN, step=8, min_width=90, elem_id="height")
    with gr.Row():
        fields["steps"] = gr.Number(50, label="Steps", min_width=90, elem_id="steps")
        fields["seed"] = gr.Number(0, label="Seed", min_width=90, elem_id="seed")
    fields["scheduler"] = gr.Dropdown(
        [(_OWN, ""), *((name, name) for name in SCHEDULER_ALIASES)], value="", label="Scheduler"
    )
    with gr.Group():
        preset = gr.Radio(
            [("custom", ""), *((name, name) for name in PRESETS)],
            value="",
            label="Preset",
            info="Sets the fields below for the guidance scale and scheduler, from closest to the original to fastest",
        )
        with gr.Row():
            fields["interval"] = gr.Number(
                _DEFAULT.cache_interval,
                label="Interval",
                info="Steps from one full step to the next",
                min_width=130,
                elem_id="interval",
            )
            fields["branch"] = gr.Number(
                _DEFAULT.cache_branch_id,
                label="Branch",
                info="0 is the shallowest skip branch",
                min_width=130,
                elem_id="branch",
            )
        fields["between"] = gr.Radio(
            list(BETWEEN),
            value=_DEFAULT.between,
            label="Steps between full ones",
            info="At a skipped step no layer of the U-Net runs, and its prediction is forecast",
        )
        fields["forecast"] = gr.Radio(
            [("none (re-use)" if name == "none" else name, name) for name in FORECASTS],
            value=_DEFAULT.forecast,
            label="Forecast",
            info="limited is for high guidance scales too; linear and quadratic for low ones; response is for skipped "
            "steps, best at 5 or more with DPM++",
        )
        fields["skip_mode"] = gr.Radio(
            list(SKIP_MODES),
            value=_DEFAULT.skip_mode,
            label="Full steps are spread",
            info="adaptive: a step is full where the forecasts would become too wrong, and the interval is the most "
            "steps from one to the next",
        )
        fields["threshold"] = gr.Number(
            _DEFAULT.threshold,
            label="Threshold of adaptive",
            info="How large the expected error of a forecast may become, as a share; larger is faster",
            step=0.05,
            elem_id="threshold",
        )
        fields["guidance_reuse"] = gr.Checkbox(
            False,
            label="Guidance reuse",
            info="Shallow steps run only the half of the guided batch with the prompt; needs guidance above 1",
        )
        with gr.Accordion("A plan of deepcache tune instead", open=False):
            fields["plan"] = gr.HTML(
                "",
                html_template=render("plan.html"),
                js_on_load=asset("plan.js"),
                apply_default_css=False,
                elem_id="plan",
            )
    return fields, preset
