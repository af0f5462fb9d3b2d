"""Stands before Gradio: answers what the page asks for and nothing else, and keeps the browser from asking others."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from DeepCache.app.loopback import is_loopback

__all__ = ["LARGEST_BODY", "Guard"]

LARGEST_BODY = 5_000_000
"""The bytes of a request: a plan, in which every character may be four of them, and a little more."""

# What the page asks for. Gradio answers more: it takes files, hands them out and fetches them from elsewhere.
_ANSWERED = re.compile(
    r"/(config|theme\.css|manifest\.json|favicon\.ico|(static|assets)/.*"
    r"|gradio_api/(info|startup-events|queue/(join|data)|cancel|reset|heartbeat/.*))?"
)
# Gradio's page has scripts and styles in it and makes functions of text; what it may not do is ask anybody else.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """ASGI middleware.

    Requests from the pages of others are refused: they could have pictures drawn here.

    Args:
        app: the application behind it.
        for_this_machine: whether only requests to a loopback address are answered. Else any page on the web could give
            this machine a name of its own, and read what it answers.
    """

    def __init__(self, app: ASGIApp, for_this_machine: bool) -> None:
        self._app = app
        self._for_this_machine = for_this_machine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        taken = 0

        async def receive_no_more() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            return message if taken <= LARGEST_BODY else {"type": "http.disconnect"}

        headers = Headers(scope=scope)
        answer: ASGIApp = self._app
        if not self._is_ours(headers.get("host", ""), headers.get("origin")):
            answer = Response("This page answers to itself alone.", status_code=400)
        elif _ANSWERED.fullmatch(scope["path"]) is None:
            answer = Response("There is nothing here.", status_code=404)
        await answer(scope, receive_no_more, send_with_headers)

    def _is_ours(self, host: str, origin: str | None) -> bool:
        try:
            own, other = urlsplit(f"//{host}"), urlsplit(origin or f"http://{host}")
        except ValueError:
            return False
        return other.netloc == host and not (self._for_this_machine and not is_loopback(own.hostname or ""))
