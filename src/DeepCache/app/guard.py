"""Stands before Gradio: answers what the page asks for and nothing else, and keeps the browser from asking others."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from DeepCache.app.loopback import is_loopback

__all__ = ["Guard"]

# What the page asks for. Gradio answers more: it takes files, hands them out and fetches them from elsewhere.
_ANSWERED = re.compile(
    r"/(config|theme\.css|manifest\.json|favicon\.ico|robots\.txt|(static|assets|svelte)/.*"
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

    Args:
        app: the application behind it.
        for_this_machine: whether only requests to a loopback address, and from pages of one, are answered. Else any page
            on the web could have pictures drawn here, or give this machine a name of its own and read what it answers.
    """

    def __init__(self, app: ASGIApp, for_this_machine: bool) -> None:
        self._app = app
        self._for_this_machine = for_this_machine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answer: ASGIApp = self._app
        if scope["type"] == "http":
            request = Request(scope)
            url, origin = request.url, urlsplit(request.headers.get("origin", str(request.url)))
            if self._for_this_machine and not (is_loopback(url.hostname or "") and is_loopback(origin.hostname or "")):
                answer = Response("This page is for its own machine.", status_code=400)
            elif _ANSWERED.fullmatch(url.path) is None:
                answer = Response("There is nothing here.", status_code=404)
        await answer(scope, receive, send_with_headers)
