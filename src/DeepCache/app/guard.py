"""Restricts Gradio to the requests of the page, and the browser to this server."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["MAX_BODY", "Guard", "is_loopback"]

MAX_BODY = 5_000_000
"""Bytes of a request: a plan, whose characters may have four bytes each, and the other fields."""

# The requests of the page. Gradio has more: uploads, downloads, and a proxy.
_ALLOWED = re.compile(
    r"/(config|theme\.css|manifest\.json|favicon\.ico|(static|assets)/.*"
    r"|gradio_api/(info|startup-events|queue/(join|data)|cancel|reset|heartbeat/.*))?"
)
# Gradio's page contains scripts and styles, and builds functions from text. It must not reach any other server.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """ASGI middleware. Refuses requests from other pages, which could generate images here.

    Args:
        app: the application.
        for_this_machine: whether to answer only requests to a loopback address. Otherwise a page on the web could give
            this machine a host name of its own, and read the answers.
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

        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message if received <= MAX_BODY else {"type": "http.disconnect"}

        headers = Headers(scope=scope)
        answer: ASGIApp = self._app
        if not self._is_own(headers.get("host", ""), headers.get("origin")):
            answer = Response("Only this page may send requests.", status_code=400)
        elif _ALLOWED.fullmatch(scope["path"]) is None:
            answer = Response("Not found.", status_code=404)
        await answer(scope, receive_limited, send_with_headers)

    def _is_own(self, host: str, origin: str | None) -> bool:
        try:
            own, other = urlsplit(f"//{host}"), urlsplit(origin or f"http://{host}")
        except ValueError:
            return False
        return other.netloc == host and not (self._for_this_machine and not is_loopback(own.hostname or ""))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
