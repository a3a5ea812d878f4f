"""Asking an OpenAI-compatible chat endpoint many things: several at once, again after a failure, within a budget.

```
requests ─► known in the ReplyLog? ─► within the budget? ─► at most `concurrency` in flight
    ─► 429, 5xx, time-out, lost connection: wait as told or longer each time, ask again ─► ReplyLog, on disk at once
```

Example:
    >>> requests = [ChatRequest(name, {"model": "judge", "messages": messages}) for name, messages in questions]
    >>> with ReplyLog("judge.replies.jsonl") as replies:
    ...     outcome = ask(requests, Endpoint("http://127.0.0.1:8000/v1"), replies, Budget(requests=1000))
    ...     outcome.require_all()
    ...     texts = [replies.get(request).text for request in requests]
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from data_pipelines.generation.connection import Connection, Failure
from data_pipelines.generation.replies import ChatRequest, ReplyLog

LONGEST_RETRY_AFTER = 600.0
"""Seconds: an endpoint that asks to wait longer is taken to have failed."""

PATIENCE = 10
"""So many requests in a row without a reply, and nothing more is asked."""


class EndpointError(ValueError):
    """The endpoint did not answer everything it was asked; what it answered is kept."""


@dataclass(frozen=True)
class Endpoint:
    """Where a language model is served, and how patiently it is asked.

    Attributes:
        base_url: The address up to `/chat/completions`, usually ending in `/v1`.
        key_variable: The environment variable that holds the key. The key itself is never written anywhere.
        concurrency: Most requests in flight.
        timeout: Seconds that one attempt may take.
        attempts: How often a request is tried.
        first_wait: Seconds before the second attempt; each further wait is twice as long, up to `longest_wait`.
    """

    base_url: str
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 120.0
    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        address = urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.netloc:
            raise ValueError(f"{self.base_url!r} is not the address of an endpoint, such as http://127.0.0.1:8000/v1")
        if address.username or address.password:
            raise ValueError("the address of the endpoint holds a password; put the key into an environment variable")
        for name in ("concurrency", "timeout", "attempts"):
            if getattr(self, name) <= 0:
                raise ValueError(f"the endpoint's {name} is {getattr(self, name)}; it must be above 0")

    def key(self) -> str:
        """The key, from the environment.

        Raises:
            ValueError: naming the variable, if it is not set.
        """
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise ValueError(
                f"the environment variable {self.key_variable} holds no key for {self.base_url}; set it, to any word "
                "if the endpoint wants none"
            )
        return key


@dataclass(frozen=True)
class Budget:
    """The most that all replies of a log may cost together, those of earlier runs included. None: no limit."""

    tokens: int | None = None
    requests: int | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "requests"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"the budget of {name} is {value}; it must be at least 1")


@dataclass
class Outcome:
    """What became of the requests.

    Attributes:
        known: Requests whose reply was there before.
        answered: Requests that were answered now.
        refused: Key of each request that the endpoint refused as such (too long, filtered) -> what it said.
        failed: Key of each request that got no answer -> why.
        left: Requests that were not tried.
        stopped: Why nothing more was asked; "" if everything was.
    """

    known: int = 0
    answered: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left: int = 0
    stopped: str = ""

    def require_all(self) -> None:
        """Raise unless every request was answered or refused.

        Raises:
            EndpointError: with what stood in the way and what is left.
        """
        if not self.failed and not self.left:
            return
        why = self.stopped or next(iter(self.failed.values()))
        unanswered = len(self.failed) + self.left
        kept = self.known + self.answered
        raise EndpointError(f"{why}; {kept} replies are kept, {unanswered} requests are left: run it again to go on")


def ask(
    requests: Iterable[ChatRequest],
    endpoint: Endpoint,
    replies: ReplyLog,
    budget: Budget | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Outcome:
    """Ask everything that `replies` has no reply to yet. Every reply is in `replies` as soon as it is there.

    Args:
        requests: Taken one by one as there is room, so that they need not all be in memory. Equal ones are asked once.
        endpoint: Whom to ask.
        replies: Where the replies are and go.
        budget: Asking stops before it would be exceeded; a request counts as its estimated prompt and its
            `max_tokens` until its reply says what it cost. Attempts that failed are not counted.
        progress: Called for every request that is done with.

    Returns:
        What became of the requests; failures are told there and not raised.

    Raises:
        ValueError: if the key is missing.
        OSError: if a reply cannot be written.
    """
    return asyncio.run(_Asking(endpoint, replies, budget or Budget(), progress).run(requests))


class _Asking:
    """One run of `ask`."""

    def __init__(self, endpoint: Endpoint, replies: ReplyLog, budget: Budget, progress: Callable[[], object]) -> None:
        self.endpoint = endpoint
        self.replies = replies
        self.budget = budget
        self.progress = progress
        self.outcome = Outcome()
        self._tokens_in_flight: dict[str, int] = {}
        self._unanswered_in_a_row = 0
        self._given_up = asyncio.Event()
        self._not_before = 0.0

    async def run(self, requests: Iterable[ChatRequest]) -> Outcome:
        """As `ask`."""
        running: set[asyncio.Task[None]] = set()
        async with Connection(self.endpoint.base_url, self.endpoint.key(), self.endpoint.timeout) as connection:
            try:
                for request in requests:
                    if self._is_settled(request):
                        self.outcome.known += 1
                        self.progress()
                    elif request.key not in self._tokens_in_flight:
                        running = await self._room(request, running)
                        self._launch(connection, request, running)
                await _until(asyncio.ALL_COMPLETED, running)
            finally:
                for task in running:
                    task.cancel()
        return self.outcome

    def _is_settled(self, request: ChatRequest) -> bool:
        return request in self.replies or request.key in self.outcome.refused

    async def _room(self, request: ChatRequest, running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
        """Wait until one more request may be sent, or nothing more will be. Returns what still runs."""
        while running and not self.outcome.stopped:
            if len(running) < self.endpoint.concurrency and not self._over_budget(request):
                break
            running = await _until(asyncio.FIRST_COMPLETED, running)
        return running

    def _launch(self, connection: Connection, request: ChatRequest, running: set[asyncio.Task[None]]) -> None:
        self.outcome.stopped = self.outcome.stopped or self._over_budget(request)
        if self.outcome.stopped:
            self.outcome.left += 1
            return
        self._tokens_in_flight[request.key] = _most_tokens(request)
        running.add(asyncio.create_task(self._settle(connection, request)))

    def _over_budget(self, request: ChatRequest) -> str:
        """Why the budget does not allow this request on top of those in flight; "" if it does."""
        requests, tokens = self.budget.requests, self.budget.tokens
        if requests is not None and len(self.replies) + len(self._tokens_in_flight) >= requests:
            return f"the budget of {requests} requests is used up"
        expected = sum(self._tokens_in_flight.values()) + _most_tokens(request)
        if tokens is not None and self.replies.tokens + expected > tokens:
            return f"the budget of {tokens} tokens is too small for more ({self.replies.tokens} are spent)"
        return ""

    async def _settle(self, connection: Connection, request: ChatRequest) -> None:
        """Get a reply and keep it, or note why there is none."""
        try:
            response = await self._reply(connection, request)
            self.replies.append(request, response)
            self.outcome.answered += 1
            self._unanswered_in_a_row = 0
        except Failure as failure:
            self._note(request, failure)
        finally:
            del self._tokens_in_flight[request.key]
            self.progress()

    async def _reply(self, connection: Connection, request: ChatRequest) -> dict[str, Any]:
        wait = self.endpoint.first_wait
        for attempt in range(1, self.endpoint.attempts + 1):
            await self._sleep(self._not_before - asyncio.get_running_loop().time())
            try:
                return await connection.send(request.body)
            except Failure as failure:
                last_chance = attempt == self.endpoint.attempts or failure.retry_after > LONGEST_RETRY_AFTER
                if failure.kind != "passing" or last_chance or self._given_up.is_set():
                    raise
                self._not_before = max(self._not_before, asyncio.get_running_loop().time() + failure.retry_after)
                await self._sleep(wait * random.uniform(0.5, 1.0))
                wait = min(2 * wait, self.endpoint.longest_wait)
        raise AssertionError("the last attempt either returns or raises")

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but not longer than there is hope."""
        if seconds > 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._given_up.wait(), seconds)

    def _note(self, request: ChatRequest, failure: Failure) -> None:
        self._unanswered_in_a_row += 1
        if failure.kind == "request":
            self.outcome.refused[request.key] = str(failure)
        else:
            self.outcome.failed[request.key] = str(failure)
        if failure.kind == "endpoint" or self._unanswered_in_a_row >= PATIENCE:
            self.outcome.stopped = self.outcome.stopped or str(failure)
            self._given_up.set()


async def _until(when: str, running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Wait for the first or for all of the tasks, and return those that still run."""
    if not running:
        return running
    done, still_running = await asyncio.wait(running, return_when=when)
    for task in done:
        task.result()
    return still_running


def _most_tokens(request: ChatRequest) -> int:
    """What the request may cost: its estimated prompt and the longest reply that it allows."""
    limit = request.body.get("max_completion_tokens", request.body.get("max_tokens", 0))
    return request.estimated_prompt_tokens + int(limit)
