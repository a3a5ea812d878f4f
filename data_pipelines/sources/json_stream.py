"""JSON files of any size, one element at a time, in memory for the longest element alone.

The elements are decoded by the standard library; only the commas between them are read here. A streaming parser that
counts its way through every level (ijson) is slower on annotation files, and the paths that it keeps grow with the
square of the nesting, so that a small hostile file exhausts the memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from data_pipelines.sources.signatures import json_lines_of, looks_like
from osprey_tp.outside import first_line

_PIECE = 1 << 20
_LONGEST_ELEMENT = 1 << 26
"""Characters; a larger element is taken for a file that is broken."""

_WHITE_SPACE = " \t\n\r"
_AFTER_A_VALUE = frozenset(_WHITE_SPACE + ",]}")


class Item(NamedTuple):
    """Part of a JSON file.

    Attributes:
        key: The member of the top-level object that it belongs to; "" where the top level is a list.
        value: One element of a list, or the whole value of a member that is no list.
        listed: Whether it is an element of a list.
    """

    key: str
    value: Any
    listed: bool


def stream_json(path: Path) -> Iterator[Item]:
    """The parts of a JSON file in their order; lists at the top, or directly below, come element by element.

    An empty list comes as one item that is not listed, with the value `[]`.

    Raises:
        ValueError: in one line, if the file is absent or not JSON.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _Reader(file).items()
    except FileNotFoundError:
        raise ValueError(f"annotation file {path} does not exist") from None
    except RecursionError:
        raise ValueError(f"annotation file {path} cannot be read as JSON: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"annotation file {path} cannot be read as JSON: {_reason(error, looks_like(path) or json_lines_of(path))}"
        ) from None


def stream_json_lines(path: Path) -> Iterator[Any]:
    """The values of a file with one JSON value a line; empty lines are passed over.

    Raises:
        ValueError: naming the line, if the file is absent or a line is not JSON.
    """
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                number += 1
                if line.strip():
                    yield json.loads(line)
    except FileNotFoundError:
        raise ValueError(f"annotation file {path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = _reason(error, looks_like(path))
        raise ValueError(f"annotation file {path}, line {number}, cannot be read as JSON: {reason}") from None


def _reason(error: Exception, found: str | None) -> str:
    """What is wrong with a file, after what it was found to be where that is something else."""
    reason = first_line(error)
    return reason if found is None else f"this looks like {found} ({reason})"


class _Reader:
    """Walks over the text of a file with a window that holds at least the element being read."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._window = ""
        self._place = 0
        self._passed = 0
        self._decoder = json.JSONDecoder()

    def items(self) -> Iterator[Item]:
        first = self._next()
        if first == "[":
            yield from self._list("")
        elif first == "{":
            yield from self._members()
        else:
            yield Item("", self._value(), False)
        if self._next():
            raise ValueError(f"more follows after its end, at character {self._passed + self._place}")

    def _members(self) -> Iterator[Item]:
        self._place += 1
        if self._next() == "}":
            self._place += 1
            return
        while True:
            if self._next() != '"':
                raise ValueError(f"a key is missing at character {self._passed + self._place}")
            key = self._value()
            self._skip(":")
            if self._next() == "[":
                yield from self._list(key)
            else:
                yield Item(key, self._value(), False)
            if self._skip(",}") == "}":
                return

    def _list(self, key: str) -> Iterator[Item]:
        self._place += 1
        if self._next() == "]":
            self._place += 1
            yield Item(key, [], False)
            return
        while True:
            self._next()
            yield Item(key, self._value(), True)
            if self._skip(",]") == "]":
                return

    def _value(self) -> Any:
        """Decode the value that starts at the place, reading on until all of it is in the window."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._window, self._place)
            except json.JSONDecodeError as error:
                if len(self._window) - self._place > _LONGEST_ELEMENT or not self._read_on():
                    raise ValueError(f"{error.msg} at character {self._passed + error.pos}") from None
                continue
            is_whole = isinstance(value, (str, list, dict)) or self._window[end : end + 1] in _AFTER_A_VALUE
            if is_whole or len(self._window) - self._place > _LONGEST_ELEMENT:
                self._place = end
                return value
            length = end - self._place
            if not self._read_on():
                self._place += length
                return value

    def _skip(self, expected: str) -> str:
        """Step over one of the expected characters and return it."""
        found = self._next()
        if not found or found not in expected:
            wanted = " or ".join(repr(character) for character in expected)
            raise ValueError(f"{wanted} is missing at character {self._passed + self._place}")
        self._place += 1
        return found

    def _next(self) -> str:
        """The next character that is no white space, without stepping over it; "" at the end."""
        while True:
            while self._place < len(self._window) and self._window[self._place] in _WHITE_SPACE:
                self._place += 1
            if self._place < len(self._window):
                return self._window[self._place]
            if not self._read_on():
                return ""

    def _read_on(self) -> bool:
        """Widen the window to twice what is left of it at least; False at the end of the file."""
        left = self._window[self._place :]
        piece = self._file.read(max(_PIECE, len(left)))
        self._passed += self._place
        self._window, self._place = left + piece, 0
        return bool(piece)
