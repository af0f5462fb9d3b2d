"""Serves the page on this machine."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from DeepCache.app.explorer import SHIPPED_ABLATION, Explorer
from DeepCache.config import DeepCacheConfig
from DeepCache.models.memory import check_offload
from DeepCache.runtime import check_runtime

if TYPE_CHECKING:
    from fastapi import FastAPI

    from DeepCache.app.render_worker import RenderWorker

__all__ = ["AppSettings", "asset", "build_app", "serve"]

_FIRST_PORT, _LAST_PORT = 7860, 7879


@dataclass(frozen=True)
class AppSettings:
    """Settings of the page.

    Args:
        models: the models that visitors can choose.
        ablation: the result of `deepcache ablate` to explore; by default one of the bundled model.
        host: the address to listen on. Any but a loopback address lets other machines in.
        port: the port; by default the first free one from 7860 to 7879.
        dtype, device, offload: as `load_pipeline` accepts them, for all models.
        runtime: runtime of the U-Net, see `DeepCache.export.use_runtime`.

    Raises:
        ValueError: `models` is empty, the port is out of range, or the offloading is not supported.
    """

    models: tuple[str, ...] = ("shapes",)
    ablation: Path = SHIPPED_ABLATION
    host: str = "127.0.0.1"
    port: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    runtime: str = "torch"
    offload: str | None = None

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("the page needs one or more models, got none")
        if self.port is not None and not 0 <= self.port <= 65535:
            raise ValueError(f"port must be between 0 and 65535, got {self.port}")
        check_runtime(self.runtime, DeepCacheConfig())
        check_offload(self.offload, self.runtime)


def serve(settings: AppSettings, on_ready: Callable[[str], None] = lambda address: None) -> NoReturn:
    """Serves the page until it is interrupted, which raises `KeyboardInterrupt`.

    Args:
        settings: settings of the page.
        on_ready: called with the address when the page can be opened.

    Raises:
        ImportError: Gradio is not installed.
        OSError: the first model or the ablation cannot be read, or the port is in use.
        ValueError, TypeError: the first model is unknown or not supported, or the file is not an ablation.
    """
    prepare_gradio()
    import uvicorn

    from DeepCache.app.guard import is_loopback
    from DeepCache.app.render_worker import RenderWorker

    with listen(settings.host, settings.port) as listening, RenderWorker(settings) as worker:
        app = build_app(worker, for_this_machine=is_loopback(listening.getsockname()[0]))
        # Every open page keeps a connection, which would never end.
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, server_header=False)
        on_ready(address(listening))
        uvicorn.Server(config).run(sockets=[listening])
    # Only Ctrl-C ends it. uvicorn usually raises this itself, but not under load.
    raise KeyboardInterrupt


def build_app(worker: RenderWorker, *, for_this_machine: bool = True) -> FastAPI:
    """The page as an ASGI application, with the first model loaded; `for_this_machine` is that of `Guard`."""
    prepare_gradio()
    import gradio as gr
    from fastapi import FastAPI

    from DeepCache.app.guard import Guard
    from DeepCache.app.page import build_page, page_theme

    explorer = Explorer.from_file(worker.settings.ablation)
    # The form shows the defaults of this model, and errors are reported before the page is opened.
    worker.load(worker.settings.models[0])
    page = build_page(worker, explorer)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, for_this_machine=for_this_machine)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=worker.settings.host,
        footer_links=[],
        run_history=False,
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=page_theme(),
        css=asset("heat_map.css", "DeepCache.report", "templates") + asset("step_strip.css") + asset("page.css"),
    )
    # Without this, Gradio reads a file of this machine that a visitor names instead of a value.
    page.has_launched = True
    return app


def asset(name: str, package: str = "DeepCache.app", folder: str = "assets") -> str:
    """A style sheet or script of the page."""
    return (files(package) / folder / name).read_text(encoding="utf-8")


def prepare_gradio() -> None:
    """Disables the telemetry of Gradio and huggingface_hub; call it before they are imported.

    Raises `ImportError` if Gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError("the page requires Gradio. Run pip install 'DeepCache[app]'") from error


def listen(host: str, port: int | None) -> socket.socket:
    """A socket at an address or name of this machine; port 0 is any free one, None the first free one from 7860."""
    try:
        family, _, _, _, (numeric, *_) = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise OSError(f"unknown host {host!r}. Choose another with --host") from error
    ports = range(_FIRST_PORT, _LAST_PORT + 1) if port is None else (port,)
    for number in ports:
        try:
            return socket.create_server((numeric, number), family=family)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise OSError(f"{host!r} is not an address of this machine. Choose another with --host") from error
            reason = os.strerror(error.errno or 0)
    where = f"port {port}" if port is not None else f"any port from {_FIRST_PORT} to {_LAST_PORT}"
    raise OSError(f"cannot listen on {where} of {host!r} ({reason}). Choose another with --port")


def address(listening: socket.socket) -> str:
    """The URL of the page."""
    host, port = listening.getsockname()[:2]
    if ip_address(host).is_unspecified:
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
