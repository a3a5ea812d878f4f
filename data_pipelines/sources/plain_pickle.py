"""Pickles that hold nothing but lists, tuples, dictionaries, text and numbers.

A pickle is a program that may name any function and call it. Here the standard library only cuts the program into
instructions (`pickletools`); those that build plain values are carried out below, and nothing that could look up a
name, call anything or allocate by a number that the file claims is there at all.
"""

from __future__ import annotations

import codecs
import io
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from osprey_tp.outside import first_line

LARGEST_FILE = 1 << 29
"""Bytes."""

MOST_INSTRUCTIONS = 30_000_000
"""REFER's largest file has about 6 million."""

_BY_CODE = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_MALFORMED = (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError, struct.error)
_KEYS = (str, int, float, bytes, type(None))


class _Refused(Exception):
    """The pickle holds something else; the text says what."""


def load_plain_pickle(path: Path) -> Any:
    """The value in a pickle of Python 2 or 3 in any protocol; byte strings of Python 2 become text.

    Raises:
        ValueError: in one line, if the file is absent, too large, broken, or holds anything but lists, tuples,
            dictionaries, text and numbers. Nothing of it is executed in any case.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise ValueError(f"pickle {path} has {size} bytes, the limit is {LARGEST_FILE}")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"annotation file {path} does not exist") from None
    except OSError as error:
        raise ValueError(f"annotation file {path} cannot be read: {error}") from None
    try:
        return _Builder(io.BytesIO(data)).build()
    except _Refused as refused:
        raise ValueError(
            f"pickle {path} is refused: it holds {refused}, where only lists, tuples, dictionaries, text and numbers "
            "are read; nothing of it was executed"
        ) from None
    except _MALFORMED as error:
        reason = first_line(error)[:120]
        raise ValueError(f"annotation file {path} is not a whole pickle: {reason}") from None


class _Builder:
    """Carries out the instructions of one pickle on a stack of values, as `pickle` does."""

    def __init__(self, stream: io.BytesIO) -> None:
        self.stream = stream
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def build(self) -> Any:
        for _ in range(MOST_INSTRUCTIONS):
            code = self.stream.read(1)
            opcode = _BY_CODE.get(code)
            if opcode is None:
                raise ValueError(f"no instruction {code!r}" if code else "it breaks off")
            if opcode.name == "STOP":
                return self.stack.pop()
            action = _ACTIONS.get(opcode.name)
            if action is None:
                raise _Refused(self._description(opcode))
            action(self, self._argument(opcode))
        raise ValueError(f"it has more than {MOST_INSTRUCTIONS} instructions")

    def _argument(self, opcode: pickletools.OpcodeInfo) -> Any:
        if opcode.name == "STRING":
            return _quoted(self.stream.readline())
        return None if opcode.arg is None else opcode.arg.reader(self.stream)

    def _description(self, opcode: pickletools.OpcodeInfo) -> str:
        """What the instruction stands for, in the words of the error."""
        if opcode.name in ("GLOBAL", "INST"):
            return _shown(str(self._argument(opcode)).replace(" ", "."))
        if opcode.name == "STACK_GLOBAL":
            return _shown(".".join(value for value in self.stack[-2:] if isinstance(value, str)))
        if opcode.name.startswith("EXT"):
            return "an entry of the extension registry"
        if "PERSID" in opcode.name:
            return "a reference to something outside the file"
        return f"what the instruction {opcode.name} makes"

    def items(self) -> list[Any]:
        """The values since the last mark, which is taken away."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_bytes_as_text(self, value: str) -> None:
        self.stack.append(_text(value.encode("latin-1")))

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.items()

    def pop_to_mark(self, _: Any) -> None:
        self.items()

    def recall(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def remember_next(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def append(self, _: Any) -> None:
        value = self.stack.pop()
        self._extend([value])

    def appends(self, _: Any) -> None:
        items = self.items()
        self._extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def set_items(self, _: Any) -> None:
        items = self.items()
        self._update(items)

    def last_as_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError("a tuple of values that are not there")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def dictionary(self, _: Any) -> None:
        items = self.items()
        self.stack.append({})
        self._update(items)

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise TypeError(f"items for a {type(target).__name__}")
        target.extend(items)

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise TypeError(f"{len(items)} keys and values for a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, _KEYS):
                raise _Refused(f"a dictionary with a {type(key).__name__} as a key")
            target[key] = value


def _quoted(line: bytes) -> str:
    """The text of a byte string of protocol 0: in quotes, other bytes than ASCII escaped, and a newline."""
    if len(line) < 3 or line[:1] not in (b"'", b'"') or line[-2:-1] != line[:1]:
        raise ValueError("a byte string without its quotes")
    return _text(codecs.escape_decode(line[1:-2])[0])


def _text(value: bytes) -> str:
    """Python 2 did not say how its byte strings were encoded."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _shown(name: str) -> str:
    return f"the name {name[:80]!a}"


def _nothing(builder: _Builder, _: Any) -> None:
    """PROTO and FRAME say nothing that is needed here."""


_ACTIONS: dict[str, Callable[[_Builder, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _nothing),
    **dict.fromkeys(
        ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), _Builder.push
    ),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING"), _Builder.push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _Builder.push),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), _Builder.push_bytes_as_text),
    "NONE": lambda builder, _: builder.push(None),
    "NEWTRUE": lambda builder, _: builder.push(True),
    "NEWFALSE": lambda builder, _: builder.push(False),
    "MARK": _Builder.mark,
    "POP": _Builder.pop,
    "POP_MARK": _Builder.pop_to_mark,
    "DUP": lambda builder, _: builder.push(builder.stack[-1]),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Builder.recall),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Builder.remember),
    "MEMOIZE": _Builder.remember_next,
    "EMPTY_LIST": lambda builder, _: builder.push([]),
    "APPEND": _Builder.append,
    "APPENDS": _Builder.appends,
    "LIST": lambda builder, _: builder.push(builder.items()),
    "EMPTY_TUPLE": lambda builder, _: builder.push(()),
    "TUPLE": lambda builder, _: builder.push(tuple(builder.items())),
    "TUPLE1": lambda builder, _: builder.last_as_tuple(1),
    "TUPLE2": lambda builder, _: builder.last_as_tuple(2),
    "TUPLE3": lambda builder, _: builder.last_as_tuple(3),
    "EMPTY_DICT": lambda builder, _: builder.push({}),
    "DICT": _Builder.dictionary,
    "SETITEM": _Builder.set_item,
    "SETITEMS": _Builder.set_items,
}
"""Every instruction that is carried out; all others are refused."""
