"""`deepcache app`: a local page to try DeepCache."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from DeepCache.cli.console import note
from DeepCache.cli.interruption import keep_on_interrupt
from DeepCache.cli.options import Device, Dtype, Offload, Runtime, Threads, model_option

_page_option = partial(typer.Option, rich_help_panel="Page")


def app_command(
    models: list[str] = model_option(
        ["shapes"],
        "--model",
        "-m",
        help="shapes (bundled), a folder, or owner/name on the Hugging Face Hub. Can be repeated; the page offers "
        "these models only.",
    ),
    dtype: Dtype = "auto",
    device: Device = "auto",
    runtime: Runtime = "torch",
    offload: Offload = None,
    threads: Threads = None,
    ablation: Path | None = _page_option(
        None, metavar="FILE", help="Result of `deepcache ablate` to explore.", show_default="a result for shapes"
    ),
    host: str = _page_option(
        "127.0.0.1", help="Address to listen on; 0.0.0.0 lets others on your network in, without a password."
    ),
    port: int | None = _page_option(None, help="Port to listen on.", show_default="the first free port from 7860"),
    open_browser: bool = _page_option(False, "--open", help="Open the page in a browser."),
) -> None:
    """Serve a page on this machine that generates images with and without DeepCache and compares them.

    It also explores the result of an ablation, and recommends settings. Ctrl-C stops it. Requires
    pip install 'DeepCache[app]'.

    Example: deepcache app --open
    """
    from DeepCache.app import AppSettings, serve
    from DeepCache.app.explorer import SHIPPED_ABLATION
    from DeepCache.app.server import prepare_gradio
    from DeepCache.cli.loading import quiet_libraries, set_threads

    settings = AppSettings(
        models=tuple(dict.fromkeys(models)),
        ablation=SHIPPED_ABLATION if ablation is None else ablation,
        host=host,
        port=port,
        dtype=dtype,
        device=device,
        runtime=runtime,
        offload=offload,
    )
    # Before huggingface_hub is imported, which reads only once that telemetry is disabled.
    prepare_gradio()
    set_threads(threads)
    console = Console(stderr=True)
    status = console.status(escape(f"Loading {settings.models[0]} …"))

    def on_ready(address: str) -> None:
        status.stop()
        print(f"DeepCache is at {address}", flush=True)
        note("Press Ctrl-C to stop.")
        if open_browser:
            typer.launch(address)

    keep_on_interrupt()
    with status if console.is_terminal else nullcontext(), quiet_libraries():
        serve(settings, on_ready)
