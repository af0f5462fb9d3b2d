"""The Generate tab: an image with and without DeepCache."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from threading import Event
from typing import Any

import gradio as gr

from DeepCache.app.comparison_view import EXAMPLE, comparison_html, example, status_html
from DeepCache.app.form import MAX_GUIDANCE, read_settings
from DeepCache.app.python_lines import python_lines
from DeepCache.app.render_worker import STARTING, Comparison, Message, RenderWorker
from DeepCache.app.server import asset
from DeepCache.config import PRESETS, DeepCacheConfig
from DeepCache.models.schedulers import SCHEDULER_ALIASES
from DeepCache.report.html import render
from DeepCache.schedule import BETWEEN, FORECASTS, SKIP_MODES

__all__ = ["generate_tab"]

_DEFAULT = DeepCacheConfig()
_OWN = "the model's own"
# The fields that a preset sets, and their names in `DeepCacheConfig`.
_PRESET_FIELDS = {"interval": "cache_interval", "branch": "cache_branch_id"} | {
    name: name for name in ("between", "forecast", "skip_mode", "threshold", "guidance_reuse")
}

Update = dict[Any, Any]


def generate_tab(page: gr.Blocks, worker: RenderWorker) -> None:
    """Adds the content of the tab."""
    first_status, first_result, first_lines = example()
    # In the order of a narrow screen; on a wide one the result is beside the form.
    with gr.Column(elem_classes="studio"):
        with gr.Column():
            prompt = gr.Textbox(EXAMPLE.prompts[0], label="Prompt", lines=2, max_lines=8, elem_id="prompt")
            with gr.Row():
                button = gr.Button("Generate", variant="primary", min_width=90, elem_id="generate")
                cancel = gr.Button("Cancel", interactive=False, min_width=90, elem_id="cancel")
        with gr.Column(elem_classes="studio-result"):
            status = gr.HTML(first_status, elem_id="status", js_on_load=None, apply_default_css=False)
            result = gr.HTML(first_result, elem_id="result", js_on_load=asset("wipe.js"), apply_default_css=False)
            with gr.Accordion("The same in Python", open=False):
                lines = gr.Code(first_lines, language="python", interactive=False, show_label=False, elem_id="lines")
        with gr.Column():
            settings, preset = _settings(worker)
            fields = {"prompt": prompt} | settings

    # One request per visitor, which no other visitor can cancel.
    requests: dict[str, Event] = {}

    def on_generate(request: gr.Request, *values: Any) -> Iterator[Update]:
        visitor, stop = str(request.session_hash), Event()
        idle = {cancel: gr.update(interactive=False)}
        try:
            wanted = read_settings(dict(zip(fields, values, strict=True)))
            if requests.setdefault(visitor, stop) is not stop:
                raise ValueError("one of your images is being generated already. Wait for it, or cancel it")
        except (ValueError, TypeError) as error:
            yield {status: status_html(Message(str(error), "problem"))} | (idle if visitor not in requests else {})
            return
        start = time.monotonic()
        try:
            for event in worker.run(wanted, stop):
                update: Update = {status: status_html(event, time.monotonic() - start, wanted.cache)}
                if isinstance(event, Comparison):
                    update |= {result: comparison_html(event), lines: python_lines(wanted)}
                yield update
        finally:
            del requests[visitor]
        yield idle

    def on_cancel(request: gr.Request) -> None:
        if stop := requests.get(str(request.session_hash)):
            stop.set()

    def on_model(model: str) -> Update:
        defaults = worker.defaults(model)
        width, height = defaults.size or (None, None)
        return {fields["guidance"]: defaults.guidance, fields["width"]: width, fields["height"]: height}

    # The worker has its own queue; here any number can wait at once.
    event: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
    pressed = [button.click, prompt.submit]
    # In the browser, so that the page responds before the server does.
    busy = f"() => [{json.dumps(status_html(STARTING))}, {{__type__: 'update', interactive: true}}]"
    gr.on(pressed, None, None, [status, cancel], js=busy, **event)
    outputs = [status, result, lines, cancel]
    gr.on(pressed, on_generate, list(fields.values()), outputs, trigger_mode="once", **event)
    model_fields = [fields[name] for name in ("guidance", "width", "height")]
    fields["model"].input(on_model, fields["model"], model_fields, **event)
    _connect_preset(preset, fields, worker, event)
    # A disabled button cannot keep the focus.
    cancel.click(on_cancel, js="() => document.querySelector('#generate').focus()", **event)
    page.unload(on_cancel)


def _connect_preset(preset: gr.Radio, fields: dict[str, Any], worker: RenderWorker, event: dict[str, Any]) -> None:
    """A preset sets its fields for the guidance scale and scheduler; editing one of them makes the preset custom."""
    preset_fields = {fields[name]: attribute for name, attribute in _PRESET_FIELDS.items()}

    def on_preset(name: str, guidance: float | None, scheduler: str, model: str) -> Update:
        if not name:
            return {preset: name}
        own = worker.defaults(model)
        scale = own.guidance if guidance is None else guidance
        cache = DeepCacheConfig.preset(name, scale, SCHEDULER_ALIASES[scheduler] if scheduler else own.scheduler)
        return {field: getattr(cache, attribute) for field, attribute in preset_fields.items()}

    gr.on(
        [preset.input, fields["guidance"].change, fields["scheduler"].change],
        on_preset,
        [preset, fields["guidance"], fields["scheduler"], fields["model"]],
        [preset, *preset_fields],
        # A change during the previous one counts too.
        trigger_mode="always_last",
        **event,
    )
    # In the browser: a response of the server could arrive after another preset was chosen.
    gr.on([field.input for field in preset_fields], None, None, preset, js="() => ''", **event)


def _settings(worker: RenderWorker) -> tuple[dict[str, Any], gr.Radio]:
    """The other fields by their names in `read_settings`, with the defaults of the first model; and the preset."""
    models = worker.settings.models
    defaults = worker.defaults(models[0])
    width, height = defaults.size or (None, None)
    fields: dict[str, Any] = {
        "negative_prompt": gr.Textbox(
            "",
            label="Negative prompt",
            info="What the image should not show; requires guidance above 1",
            max_lines=4,
            elem_id="negative_prompt",
        ),
        "model": gr.Dropdown(list(models), value=models[0], label="Model", interactive=len(models) > 1),
        "guidance": gr.Number(
            defaults.guidance,
            label="Guidance scale",
            info=f"0 to {MAX_GUIDANCE}; 1 or less disables guidance",
            placeholder=_OWN,
            step=0.5,
            elem_id="guidance",
        ),
    }

    def number(name: str, value: float | None, min_width: int = 90, **options: Any) -> None:
        fields[name] = gr.Number(value, label=name.capitalize(), min_width=min_width, elem_id=name, **options)

    def choice(name: str, choices: list[Any], label: str, info: str) -> None:
        fields[name] = gr.Radio(choices, value=getattr(_DEFAULT, name), label=label, info=info)

    with gr.Row():
        number("width", width, placeholder=_OWN, step=8)
        number("height", height, placeholder=_OWN, step=8)
    with gr.Row():
        number("steps", EXAMPLE.steps)
        number("seed", EXAMPLE.seed)
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
            number("interval", _DEFAULT.cache_interval, 130, info="Steps from one full step to the next")
            number("branch", _DEFAULT.cache_branch_id, 130, info="0 is the shallowest skip branch")
        choice(
            "between",
            list(BETWEEN),
            "Steps between full steps",
            "A skipped step runs no layer of the U-Net; its prediction is forecast",
        )
        choice(
            "forecast",
            [("none (re-use)" if name == "none" else name, name) for name in FORECASTS],
            "Forecast",
            "limited also suits high guidance scales, linear and quadratic low ones; response is for skipped steps, "
            "best at guidance 5 or more with DPM++",
        )
        choice(
            "skip_mode",
            list(SKIP_MODES),
            "Schedule of full steps",
            "adaptive: a step is full if the error of forecasts would become too large; the interval is the maximum",
        )
        number(
            "threshold",
            _DEFAULT.threshold,
            info="For adaptive: the largest expected relative error of a forecast; larger is faster",
            step=0.05,
        )
        fields["guidance_reuse"] = gr.Checkbox(
            False,
            label="Guidance reuse",
            info="Shallow steps run only the half of the guided batch with the prompt; requires guidance above 1",
        )
        with gr.Accordion("Use a plan of deepcache tune", open=False):
            fields["plan"] = gr.HTML(
                "",
                html_template=render("plan.html", "DeepCache.app"),
                js_on_load=asset("plan.js"),
                apply_default_css=False,
                elem_id="plan",
            )
    return fields, preset
