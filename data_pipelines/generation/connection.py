"""One attempt at one request of a chat endpoint, and what its failure means."""

from __future__ import annotations

import asyncio
import email.utils
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from data_pipelines.generation.replies import is_completion
from osprey_tp.outside import parse_json

if TYPE_CHECKING:
    from openai import APIStatusError

FailureKind = Literal["passing", "request", "endpoint"]
"""`passing`: another attempt may succeed; `request`: this request is not taken; `endpoint`: none will be."""

_PASSING = frozenset({408, 409, 425, 429})
_OF_THE_REQUEST = frozenset({400, 413, 422})
_LONGEST_MESSAGE = 300


class Failure(Exception):
    """Why an attempt brought no reply; `retry_after` are the seconds that the endpoint asks to wait, or 0."""

    def __init__(self, kind: FailureKind, what: str, retry_after: float = 0.0) -> None:
        super().__init__(what)
        self.kind = kind
        self.retry_after = retry_after


class Connection:
    """A client of the endpoint at `base_url`; use it as an asynchronous context manager.

    Args:
        base_url: The address up to `/chat/completions`.
        key: Sent with every request, and taken out of every message of a failure.
        timeout: Seconds for one attempt from the first byte sent to the last one read.
    """

    def __init__(self, base_url: str, key: str, timeout: float) -> None:
        try:
            from openai import AsyncOpenAI
        except ImportError:
            raise ValueError("to ask an endpoint, install openai: pip install osprey_tp[generate]") from None
        self._base_url = base_url
        self._key = key
        self._timeout = timeout
        self._client = AsyncOpenAI(api_key=key, base_url=base_url, timeout=timeout, max_retries=0)

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()

    async def send(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The chat completion that answers `body`, as the endpoint sent it.

        Raises:
            Failure: if there is none.
        """
        from openai import APIConnectionError, APIStatusError

        parameters = {name: value for name, value in body.items() if name not in ("model", "messages")}
        completions = self._client.chat.completions.with_raw_response
        try:
            raw = await asyncio.wait_for(
                completions.create(model=body["model"], messages=body["messages"], extra_body=parameters),
                self._timeout,
            )
        except asyncio.TimeoutError:
            raise Failure("passing", f"{self._base_url} gave no answer within {self._timeout:g} s") from None
        except APIStatusError as error:
            raise self._failure_of_status(error) from None
        except APIConnectionError as error:
            reason = self._clean(str(error.__cause__ or error) or type(error.__cause__).__name__)
            raise Failure("passing", f"{self._base_url} cannot be reached: {reason}") from None
        return self._completion(raw.http_response.text)

    def _completion(self, text: str) -> dict[str, Any]:
        try:
            response = parse_json(text, "the answer")
        except ValueError:
            response = None
        if not is_completion(response):
            what = f"{self._base_url} sent something else than a chat completion: {self._clean(text)!r}"
            raise Failure("passing", what)
        return dict(response)

    def _failure_of_status(self, error: APIStatusError) -> Failure:
        status = error.status_code
        what = f"{self._base_url} answered {status}: {self._clean(error.message)}"
        if status in _OF_THE_REQUEST:
            return Failure("request", what)
        if error.code == "insufficient_quota" or not (status in _PASSING or status >= 500):
            return Failure("endpoint", what)
        return Failure("passing", what, retry_after(error.response.headers))

    def _clean(self, message: str) -> str:
        """A message in one line of bounded length that does not hold the key."""
        return " ".join(message.replace(self._key, "***").split())[:_LONGEST_MESSAGE]


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds to wait as the header `Retry-After` says, in seconds or as a date; 0 if it says nothing."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        date = email.utils.parsedate_tz(value)
        seconds = email.utils.mktime_tz(date) - time.time() if date else 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
