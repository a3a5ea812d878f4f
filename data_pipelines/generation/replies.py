"""Every reply that an endpoint gave, kept for good: a file of JSON lines that is only ever appended to.

```
{"key": "9f2c...", "id": "coco:139", "request": {"model": ..., "messages": [...]}, "response": {"choices": [...], ...}}
```

`key` is a hash of the exact request, so that nothing is asked, and paid for, twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from osprey_tp.outside import parse_json

CHARACTERS_A_TOKEN = 4
"""A rough figure for English text, where nobody counts the tokens."""


@dataclass(frozen=True)
class ChatRequest:
    """One request of a chat endpoint.

    Attributes:
        id: What it is asked for; it names the request in messages and is no part of it.
        body: What is sent: model, messages, and parameters such as `max_tokens`.
    """

    id: str
    body: Mapping[str, Any]

    @property
    def key(self) -> str:
        """SHA-256 of the body: equal requests have equal keys."""
        text = json.dumps(self.body, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    @property
    def estimated_prompt_tokens(self) -> int:
        """Roughly how many tokens the messages are."""
        return sum(len(_plain_text(message.get("content"))) for message in self.body["messages"]) // CHARACTERS_A_TOKEN


@dataclass(frozen=True)
class Reply:
    """What an endpoint answered, as it came: the JSON object of a chat completion."""

    response: Mapping[str, Any]

    @property
    def text(self) -> str:
        """What the model wrote; "" if it wrote nothing."""
        return _plain_text(self.response["choices"][0]["message"].get("content"))

    @property
    def finish_reason(self) -> str:
        """Why the model stopped: "stop", "length", "content_filter", or "" if the endpoint does not say."""
        return str(self.response["choices"][0].get("finish_reason") or "")

    def tokens(self, kind: str = "total_tokens") -> int | None:
        """The endpoint's count of `total_tokens`, `prompt_tokens` or `completion_tokens`; None if it gave none."""
        usage = self.response.get("usage")
        found = usage.get(kind) if isinstance(usage, dict) else None
        return found if isinstance(found, int) and not isinstance(found, bool) else None


def is_completion(response: Any) -> bool:
    """Whether a decoded response is a chat completion that `Reply` can read."""
    if not isinstance(response, dict) or not isinstance(response.get("choices"), list) or not response["choices"]:
        return False
    choice = response["choices"][0]
    return isinstance(choice, dict) and isinstance(choice.get("message"), dict)


class ReplyLog:
    """The file of replies, opened by one process at a time; use it as a context manager.

    Only where each reply stands is held in memory. A last line that was cut off by a kill is dropped on opening.

    Attributes:
        tokens: What all replies together cost; estimated where the endpoint gave no count.

    Raises:
        ValueError: if another process has the file open, or a line of it is not a reply.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.tokens = 0
        self._places: dict[str, int] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            self._lock()
            self._read_all()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ReplyLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, request: ChatRequest) -> bool:
        return request.key in self._places

    def get(self, request: ChatRequest) -> Reply | None:
        """The reply to that very request, None if there is none yet."""
        place = self._places.get(request.key)
        if place is None:
            return None
        self._file.seek(place)
        return Reply(json.loads(self._file.readline())["response"])

    def append(self, request: ChatRequest, response: Mapping[str, Any]) -> None:
        """Write one reply down; when this returns, it is on the disk.

        Raises:
            OSError: naming the file, if it cannot be written; it is then as it was.
        """
        line = {"key": request.key, "id": request.id, "request": request.body, "response": response}
        end = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(json.dumps(line).encode("ascii") + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), end)
            raise OSError(
                f"{self.path} cannot be written: {error.strerror}; the replies so far are kept: mend this and give the "
                "same command again"
            ) from error
        self._note(request.key, end, request.body, response)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{self.path} is in use by another run; wait for its end") from None

    def _read_all(self) -> None:
        self._file.seek(0)
        place = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                os.ftruncate(self._file.fileno(), place)
                break
            self._read_line(number, line, place)
            place += len(line)

    def _read_line(self, number: int, line: bytes, place: int) -> None:
        try:
            entry = parse_json(line, f"line {number}")
            key, request, response = entry["key"], entry["request"], entry["response"]
        except (ValueError, KeyError, TypeError):
            key, request, response = None, None, None
        if not isinstance(key, str) or not _is_body(request) or not is_completion(response):
            raise ValueError(f"{self.path}: line {number} is not a reply; take the line out to have it asked again")
        self._note(key, place, request, response)

    def _note(self, key: str, place: int, body: Mapping[str, Any], response: Mapping[str, Any]) -> None:
        self._places[key] = place
        reply = Reply(response)
        counted = reply.tokens()
        if counted is None:
            counted = ChatRequest("", body).estimated_prompt_tokens + len(reply.text) // CHARACTERS_A_TOKEN
        self.tokens += counted


def _is_body(request: Any) -> bool:
    """Whether a decoded request has messages, whatever they say."""
    messages = request.get("messages") if isinstance(request, dict) else None
    return isinstance(messages, list) and all(isinstance(message, dict) for message in messages)


def _plain_text(content: Any) -> str:
    """The text of a message's content: a text, or a list of parts of which some are text."""
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""
