"""Serving: the page, its programming interfaces, who may use them, how much may be sent, and an orderly end.

```
Gradio's own server ── /                       the page
                     ├ /gradio_api/...         the page's events, and `app.api` for gradio_client
                     ├ /v1/...                 `app.chat_completions`
                     └ /health                 whether the model answers
```
"""

import secrets
import signal
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
import gradio as gr
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect

from app.api import add_api
from app.chat_completions import chat_router
from app.interface import STYLE, THEME
from app.memory import return_free_memory
from app.service import Service

EVICTION_SECONDS = 60.0  # between two looks for pictures that nobody asks for
JSON_BYTES = 8 << 20  # that a request may have besides a picture

Messages = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Messages]]
Send = Callable[[Messages], Awaitable[None]]


@dataclass(frozen=True)
class Access:
    """Who may use the app.

    Attributes:
        users: (name, password) pairs for the page and gradio_client; none lets everybody in.
        api_key: Bearer token for `/v1`. Without one, `/v1` is open if the page is, and closed if the page is not.
    """

    users: tuple[tuple[str, str], ...] = ()
    api_key: str | None = None


class BodyLimit:
    """Refuses what is sent beyond a number of bytes, with status 413, before it fills the memory."""

    def __init__(self, app: Callable[..., Awaitable[None]], most_bytes: int) -> None:
        self._app, self._most_bytes = app, most_bytes

    async def __call__(self, scope: Messages, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._most_bytes:
            await self._refuse(scope, receive, send)
            return
        received, started = 0, False

        async def limited_receive() -> Messages:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._most_bytes:
                raise ClientDisconnect  # as if there were no more to read
            return message

        async def noted_send(message: Messages) -> None:
            nonlocal started
            if received <= self._most_bytes:
                started = True
                await send(message)

        try:
            await self._app(scope, limited_receive, noted_send)
        except Exception:
            if received <= self._most_bytes:
                raise
        if received > self._most_bytes and not started:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Messages, receive: Receive, send: Send) -> None:
        message = f"the request is larger than the limit of {self._most_bytes} bytes"
        told = {"message": message, "type": "invalid_request_error", "param": None, "code": "request_too_large"}
        response = JSONResponse({"error": told, "detail": message}, status_code=413, headers={"Connection": "close"})
        await response(scope, receive, send)


def start(
    blocks: gr.Blocks, service: Service, access: Access | None = None, *, host: str, port: int, share: bool = False
) -> str:
    """Serves the page and everything beside it in threads of their own, and returns the address.

    Raises `OSError` if the port is taken, or if there is to be a public link and none can be had.
    """
    access = access or Access()
    add_api(blocks, service)
    limits = service.limits
    most_bytes = limits.upload_bytes * 4 // 3 + JSON_BYTES  # a picture in base64 is a third larger
    _, address, public = blocks.queue().launch(
        server_name=host,
        server_port=port,
        auth=list(access.users) or None,
        share=share,
        theme=THEME,
        css=STYLE,
        quiet=True,
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        max_file_size=limits.upload_bytes,
        max_threads=limits.waiting + 8,
        prevent_thread_lock=True,
        app_kwargs={
            "routes": [*health_router(service, access).routes, *chat_routes(service, access)],
            "middleware": [Middleware(BodyLimit, most_bytes=most_bytes)],
        },
    )
    if share and not public:
        blocks.close(verbose=False)
        raise OSError("cannot make a public link; this machine must reach gradio.live, or serve without --share")
    return str(public or address)


def serve(blocks: gr.Blocks, service: Service) -> None:
    """Goes on until the process is told to stop (SIGTERM, Ctrl-C); then ends what is at work and stops serving."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(EVICTION_SECONDS):
        service.pictures.evict_idle()
        return_free_memory()
    service.line.close()
    blocks.close(verbose=False)


def chat_routes(service: Service, access: Access) -> list[Any]:
    """The routes under `/v1`."""
    return list(chat_router(service, access.api_key, closed=bool(access.users)).routes)


def health_router(service: Service, access: Access) -> APIRouter:
    """`GET /health`: status 200 if the model answers, 503 if not. Where there is a lock, only those who have the API
    key are told more than that.
    """
    router = APIRouter(include_in_schema=False)

    async def health(request: Request) -> JSONResponse:
        answers, facts = await anyio.to_thread.run_sync(service.health)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
        known = access.api_key is not None and secrets.compare_digest(token, access.api_key.encode())
        if (access.users or access.api_key) and not known:
            facts = {"status": facts["status"]}
        return JSONResponse(facts, status_code=200 if answers else 503)

    router.add_api_route("/health", health, methods=["GET"])
    return router
