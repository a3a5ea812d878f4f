"""`/v1`: the model behind the interface that clients of OpenAI's know (`app.chat_schema` says what it takes).

```
body ─► ChatRequest ─► ChatAbout ─► work in the waiting line ─► one JSON, or events ending in [DONE]
```

A client that goes away gives up its place, or ends the making of its answer.
"""

import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from app.api_schema import first_problem, resolve_all
from app.chat_schema import ChatAbout, ChatRequest, RequestError, read_conversation
from app.generation import ContextLengthError, Outcome, generate
from app.service import Service
from app.waiting_line import LineFullError, Place, TimeLimitError
from osprey_tp.outside import parse_json

CLIENT_CLOSED_REQUEST = 499

Value = TypeVar("Value")

_logger = logging.getLogger(__name__)


class _ClientGoneError(Exception):
    """Nobody is there to read the answer."""


def chat_router(service: Service, api_key: str | None, *, closed: bool = False) -> APIRouter:
    """The routes under `/v1`.

    Args:
        service: Answers.
        api_key: That requests must carry as their bearer token; None for none.
        closed: Refuse all requests if there is no key.
    """
    router = APIRouter(prefix="/v1", include_in_schema=False)
    threads = anyio.CapacityLimiter(service.limits.waiting + 8)
    created = int(time.time())

    def guarded(handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Answers errors in OpenAI's form, those of access before all others."""

        async def guard(request: Request) -> Response:
            try:
                _require_key(request, api_key, closed)
                return await handle(request)
            except (_ClientGoneError, ClientDisconnect):
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            except Exception as error:
                status, told = _told(error)
                headers = {429: {"Retry-After": "5"}, 503: {"X-Should-Retry": "false"}}.get(status)
                return JSONResponse({"error": told}, status_code=status, headers=headers)

        return guard

    def model() -> dict[str, Any]:
        return {"id": service.name, "object": "model", "created": created, "owned_by": "osprey_tp"}

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model()]})

    async def one_model(request: Request) -> Response:
        _require_model(str(request.path_params["name"]), service.name)
        return JSONResponse(model())

    async def completions(request: Request) -> Response:
        asked = _parse(await request.body())
        _require_model(asked.model, service.name)
        about = await anyio.to_thread.run_sync(read_conversation, asked, service.limits.upload_bytes, limiter=threads)
        outcome = Outcome()
        place = service.line.run(_answer(service, about, asked, outcome), lambda ahead: "")
        answer = _Answer(service.name, outcome)
        pieces = _pieces(place, threads)
        try:
            if not asked.stream:
                text = await _unless_gone(request, _joined(pieces))
                return JSONResponse(answer.completion(text))
            first = await _unless_gone(request, anext(pieces, ""))
        except BaseException:
            place.close()
            raise
        wants_usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
        events = _events(answer, first, pieces, place, wants_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def unknown(request: Request) -> Response:
        raise RequestError(f"there is no {request.method} {request.url.path} here", status=404, code="unknown_url")

    router.add_api_route("/models", guarded(models), methods=["GET"])
    router.add_api_route("/models/{name:path}", guarded(one_model), methods=["GET"])
    router.add_api_route("/chat/completions", guarded(completions), methods=["POST"])
    router.add_api_route("/{rest:path}", guarded(unknown), methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    return router


def _require_key(request: Request, api_key: str | None, closed: bool) -> None:
    if api_key is None and not closed:
        return
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    right = api_key is not None and secrets.compare_digest(token.strip().encode(), api_key.encode())
    if scheme.lower() != "bearer" or not right:
        remedy = "send it as bearer token" if api_key is not None else "this server was started without one"
        raise RequestError(f"this needs the server's API key; {remedy}", status=401, code="invalid_api_key")


def _require_model(asked: str, served: str) -> None:
    if asked != served:
        raise RequestError(
            f"there is no model {asked[:100]!r} here; this server has {served!r}",
            status=404,
            param="model",
            code="model_not_found",
        )


def _parse(body: bytes) -> ChatRequest:
    try:
        data = parse_json(body, "the body")
    except ValueError:
        raise RequestError("the body is no JSON") from None
    if not isinstance(data, dict):
        raise RequestError("the body is no JSON object")
    try:
        return ChatRequest.model_validate({name: value for name, value in data.items() if value is not None})
    except ValidationError as error:
        param, reason = first_problem(error, data)
        known = param.partition(".")[0] in ChatRequest.model_fields
        code = None if known else "unsupported_parameter"
        reason = reason if known else "this server does not support it"
        raise RequestError(f"{param}: {reason}", param=param or None, code=code) from None


def _answer(service: Service, about: ChatAbout, asked: ChatRequest, outcome: Outcome) -> Iterator[str]:
    """The work on an answer, in pieces; empty ones let it be stopped where it has nothing to say yet."""
    tokens = service.count_tokens("\n".join(text for _, text in about.turns))
    if service.context is not None and tokens >= service.context:
        raise ContextLengthError(
            f"the texts alone have {tokens} tokens, the model reads and writes at most {service.context}; shorten them"
        )
    picture = service.pictures.get_bytes(about.picture)
    yield ""
    regions = list(resolve_all(about.regions, picture))
    session = picture.session
    yield ""
    with closing(generate(session, about.turns, regions, asked.sampling, outcome, service.context)) as pieces:  # type: ignore[type-var]
        yield from pieces


async def _pieces(place: Place[str], threads: anyio.CapacityLimiter) -> AsyncIterator[str]:
    """The pieces of text as they come, made in threads; whoever stops reading gives up the place."""
    end = None
    try:
        while True:
            item = await anyio.to_thread.run_sync(next, place, end, limiter=threads, abandon_on_cancel=True)
            if item is end:
                return
            if item:
                yield item
    finally:
        place.close()


async def _joined(pieces: AsyncIterator[str]) -> str:
    return "".join([piece async for piece in pieces])


async def _unless_gone(request: Request, value: Awaitable[Value]) -> Value:
    """The value, unless the client goes away before it is there. Raises `_ClientGoneError`."""
    found: list[Value] = []
    failed: list[Exception] = []

    async def get() -> None:
        try:
            found.append(await value)
        except Exception as error:  # taken out of the group, which would wrap it
            failed.append(error)
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(get)
        while (await request.receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()
    if failed:
        raise failed[0]
    if not found:
        raise _ClientGoneError
    return found[0]


class _Answer:
    """An answer in the forms that clients read."""

    def __init__(self, model: str, outcome: Outcome) -> None:
        self._outcome = outcome
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def completion(self, text: str) -> dict[str, Any]:
        """As a whole."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": self._outcome.finish_reason,
        }
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage}

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        """A part of it."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def last_chunk(self) -> dict[str, Any]:
        """How it ended."""
        return self.chunk({}, self._outcome.finish_reason)

    def usage_chunk(self) -> dict[str, Any]:
        """How many tokens it took."""
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage}

    @property
    def _usage(self) -> dict[str, int]:
        prompt, completion = self._outcome.prompt_tokens, self._outcome.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


async def _events(
    answer: _Answer, first: str, pieces: AsyncIterator[str], place: Place[str], wants_usage: bool
) -> AsyncIterator[str]:
    """The answer as server-sent events."""
    try:
        yield _event(answer.chunk({"role": "assistant", "content": ""}))
        if first:
            yield _event(answer.chunk({"content": first}))
        async for piece in pieces:
            yield _event(answer.chunk({"content": piece}))
        yield _event(answer.last_chunk())
        if wants_usage:
            yield _event(answer.usage_chunk())
    except Exception as error:
        yield _event({"error": _told(error)[1]})
    finally:
        place.close()
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _told(error: Exception) -> tuple[int, dict[str, Any]]:
    """The status, and what the client is told; what nobody foresaw goes to the log as well."""
    status, kind, param, code = 400, "invalid_request_error", None, None
    message = " ".join(str(error).split())
    if isinstance(error, RequestError):
        status, kind, param, code = error.status, error.kind, error.param, error.code
    elif isinstance(error, LineFullError):
        status, kind, code = 429, "rate_limit_error", "line_full"
    elif isinstance(error, TimeLimitError):
        status, kind, code = 503, "server_error", "time_limit"
    elif isinstance(error, ContextLengthError):
        param, code = "messages", "context_length_exceeded"
    elif not isinstance(error, ValueError):
        _logger.exception("a request failed", exc_info=error)
        status, kind, message = 500, "server_error", f"something went wrong ({type(error).__name__})"
    return status, {"message": message, "type": kind, "param": param, "code": code}
