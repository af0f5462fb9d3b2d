"""`deepcache app`: a local page to try DeepCache on."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from DeepCache.cli.interruption import keep_on_interrupt
from DeepCache.cli.options import MODEL_PANEL, Device, Dtype, Offload, Runtime, Threads

__all__ = ["app_command"]

_PAGE = "Page"


def app_command(
    models: Annotated[
        list[str],
        typer.Option(
            "--model",
            "-m",
            help="A name (shapes comes with DeepCache), a folder, or owner/name on the hub; give it several times to "
            "offer several. The page draws with these and no others.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = ["shapes"],  # noqa: B006
    dtype: Dtype = "auto",
    device: Device = "auto",
    runtime: Runtime = "torch",
    offload: Offload = None,
    threads: Threads = None,
    ablation: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A result of `deepcache ablate` to explore and to choose by.",
            show_default="one of shapes",
            rich_help_panel=_PAGE,
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen at; 0.0.0.0 lets others on your network in, without a password.",
            rich_help_panel=_PAGE,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(help="Port to listen on.", show_default="the first free one from 7860", rich_help_panel=_PAGE),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page.", rich_help_panel=_PAGE)] = False,
) -> None:
    """Serve a page on this machine that draws with and without DeepCache and compares.

    It explores an ablation too, and says which settings to take. Ctrl-C ends it. Takes pip install 'DeepCache[app]'.

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
    # Before anything else imports the library of the hub, which looks but once whether it may tell that it is used.
    prepare_gradio()
    set_threads(threads)
    console = Console(stderr=True)
    note = console.status(escape(f"Loading {settings.models[0]} …"))

    def tell(address: str) -> None:
        note.stop()
        print(f"DeepCache is at {address}", flush=True)
        console.print("Ctrl-C ends it.")
        if open_browser:
            typer.launch(address)

    keep_on_interrupt()
    with note if console.is_terminal else nullcontext(), quiet_libraries():
        serve(settings, tell)
