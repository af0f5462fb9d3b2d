"""The real server with the bundled model, and a real browser."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed")

import uvicorn

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.app.render_worker import RenderWorker
from DeepCache.app.server import AppSettings, build_app, listen
from DeepCache.models import load_pipeline, set_scheduler
from tests.app.shown import MILLISECONDS


@dataclass
class Served:
    """The page as it is served."""

    address: str
    worker: RenderWorker
    connected_to: list[Any]

    @contextmanager
    def held(self) -> Iterator[threading.Event]:
        """Holds the worker at the first U-Net call until the event is set."""
        reached, release = threading.Event(), threading.Event()

        def wait(*_: Any) -> None:
            reached.set()
            assert release.wait(60)

        handle = self.worker.load("shapes").unet.register_forward_pre_hook(wait)
        try:
            yield release
            assert reached.is_set()
        finally:
            release.set()
            handle.remove()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    connected_to: list[Any] = []
    connect = socket.socket.connect

    def noted(self: socket.socket, address: Any) -> None:
        connected_to.append(address)
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch, RenderWorker(AppSettings(device="cpu")) as worker:
        patch.setattr(socket.socket, "connect", noted)
        listening = listen("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(build_app(worker), log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", worker, connected_to)
        server.should_exit = True
        thread.join()


@pytest.fixture
def visit(browser, served) -> Iterator[Callable[..., Any]]:
    """Opens the page as a new visitor. Requests to other servers are refused; they and messages of the console fail the
    test."""
    contexts, complaints, requests = [], [], []

    def visit(**options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(MILLISECONDS)
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else 0
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        own = served.address
        page.route(
            "**/*", lambda route: route.continue_() if route.request.url.startswith(f"{own}/") else route.abort()
        )
        page.goto(own)
        page.wait_for_selector("#generate")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []
    elsewhere = [url for url in requests if not url.startswith((f"{served.address}/", "data:", "blob:"))]
    assert elsewhere == []
    assert {address[0] for address in served.connected_to} <= {"127.0.0.1", "::1"}


@pytest.fixture(scope="session")
def generated() -> Callable[..., Image.Image]:
    """Generates an image with the bundled model, without the page."""
    pipe = load_pipeline("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)

    def generated(
        prompt: str,
        *,
        steps: int = 50,
        seed: int = 0,
        scheduler: str = "ddim",
        cache: DeepCacheConfig | None = None,
        guidance: float = 2.0,
        **call: Any,
    ) -> Image.Image:
        set_scheduler(pipe, scheduler)
        apply_deepcache(pipe, cache or DeepCacheConfig(cache_interval=1))
        generator = torch.Generator("cpu").manual_seed(seed)
        call |= {"num_inference_steps": steps, "guidance_scale": guidance, "generator": generator}
        return pipe(prompt, **call).images[0]

    return generated
