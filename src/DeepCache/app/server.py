"""Serves the page on this machine, and nothing but the page."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from DeepCache.app.explorer import SHIPPED_ABLATION, Explorer
from DeepCache.app.loopback import is_loopback
from DeepCache.config import DeepCacheConfig
from DeepCache.models.memory import check_offload
from DeepCache.runtime import check_runtime

if TYPE_CHECKING:
    from fastapi import FastAPI

    from DeepCache.app.easel import Easel

__all__ = ["AppSettings", "build_app", "serve"]

_FIRST_PORT, _LAST_PORT = 7860, 7879
_STYLES = ("page.css", "explorer.css", "step_strip.css")


@dataclass(frozen=True)
class AppSettings:
    """What the page offers, and where.

    Args:
        models (`tuple` of `str`, defaults to `("shapes",)`):
            The models that visitors may draw with, as `load_pipeline` takes them.
        ablation (path):
            The result of `deepcache ablate` to explore; one of the model in the box by default.
        host (`str`, defaults to `"127.0.0.1"`):
            The address of this machine to listen at. Any but a loopback address lets others in.
        port (`int`, *optional*):
            The port; by default the first that is free from 7860 to 7879.
        dtype (`str`, defaults to `"auto"`):
            As `load_pipeline` takes it.
        device (`str`, defaults to `"auto"`):
            As `load_pipeline` takes it.
        runtime (`str`, defaults to `"torch"`):
            What the U-Net runs in, see `DeepCache.export.use_runtime`.
        offload (`str`, *optional*):
            As `load_pipeline` takes it.

    Raises:
        ValueError: no model is named, the port is out of its range, or the kind of offloading is unknown or does not
            go with the runtime.
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
            raise ValueError("the page needs a model to draw with: name one or more")
        if self.port is not None and not 0 <= self.port <= 65535:
            raise ValueError(f"port must be from 0 to 65535, got {self.port}")
        check_runtime(self.runtime, DeepCacheConfig())
        check_offload(self.offload, self.runtime)


def serve(settings: AppSettings, on_ready: Callable[[str], None] = lambda where: None) -> NoReturn:
    """Serves the page until it is interrupted, which raises `KeyboardInterrupt`.

    Args:
        settings: what the page offers, and where.
        on_ready: called with the address once the page can be opened.

    Raises:
        ImportError: Gradio is not installed.
        OSError: the first model or the ablation cannot be read, or the port is taken.
        ValueError, TypeError: the first model is unknown, or none that DeepCache works on; the ablation is no result.
    """
    prepare_gradio()
    import uvicorn

    from DeepCache.app.easel import Easel

    with (
        listen(settings.host, settings.port) as listening,
        Easel(
            settings.models,
            dtype=settings.dtype,
            device=settings.device,
            runtime=settings.runtime,
            offload=settings.offload,
        ) as easel,
    ):
        app = build_app(settings, easel, for_this_machine=is_loopback(listening.getsockname()[0]))
        # Pages that are open keep a connection each, which would never end by itself.
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, server_header=False)
        on_ready(address(listening))
        uvicorn.Server(config).run(sockets=[listening])
    # Only Ctrl-C ends it, which uvicorn hands on as a rule, but not under load.
    raise KeyboardInterrupt


def build_app(settings: AppSettings, easel: Easel, *, for_this_machine: bool = True) -> FastAPI:
    """The page as an ASGI application; the first model is loaded.

    Args:
        settings: what the page offers.
        easel: where pictures are drawn.
        for_this_machine: whether it answers only to the names of a loopback address.

    Raises:
        ImportError: Gradio is not installed.
        OSError: the first model or the ablation cannot be read.
        ValueError, TypeError: the first model is unknown, or none that DeepCache works on; the ablation is no result.
    """
    prepare_gradio()
    import gradio as gr
    from fastapi import FastAPI

    from DeepCache.app.guard import Guard
    from DeepCache.app.page import build_page, page_theme
    from DeepCache.app.rendering import asset

    explorer = Explorer.from_file(settings.ablation)
    # The form shows what this model generates with. What is wrong with it is reported before anybody opens the page.
    easel.load(settings.models[0])
    page = build_page(easel, explorer, settings.models)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, for_this_machine=for_this_machine)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=settings.host,
        footer_links=[],
        run_history=False,
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=page_theme(),
        css="\n".join(asset(name) for name in _STYLES),
    )
    # Only with this does Gradio refuse to read a file of this machine that a visitor names in the place of a value.
    page.has_launched = True
    return app


def prepare_gradio() -> None:
    """Keeps Gradio and the hub's library from telling others that they are used; to be called before their import.

    Raises:
        ImportError: Gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError("the page takes Gradio: pip install 'DeepCache[app]'") from error


def listen(host: str, port: int | None) -> socket.socket:
    """A socket at the address, on the first free port where none is given.

    Args:
        host: an address or a name of this machine.
        port: the port; 0 for any that is free, None for the first from 7860 on.

    Raises:
        OSError: the port is taken, or this machine has no such address.
    """
    try:
        family, _, _, _, (numeric, *_) = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise OSError(f"there is no address {host!r}; give another with --host") from error
    ports = range(_FIRST_PORT, _LAST_PORT + 1) if port is None else (port,)
    for number in ports:
        try:
            return socket.create_server((numeric, number), family=family)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise OSError(f"{host!r} is no address of this machine; give another with --host") from error
            reason = os.strerror(error.errno or 0)
    where = f"port {port}" if port is not None else f"any port from {_FIRST_PORT} to {_LAST_PORT}"
    raise OSError(f"cannot listen at {host!r} on {where} ({reason}); give another with --port")


def address(listening: socket.socket) -> str:
    """The address to open in a browser.

    Args:
        listening: what `listen` returned.
    """
    host, port = listening.getsockname()[:2]
    if ip_address(host).is_unspecified:
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
