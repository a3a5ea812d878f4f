"""MATLAB files of version 5, as far as annotations need them: structures, text and arrays of numbers.

They are read here because a broken or hostile file must end in a rejection. scipy's reader, which the tests compare
this one with, trusts what the file claims: it allocates for text that is not there, and some files end the process.
The format is that of MathWorks' "MAT-File Format", level 5.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.sources.reader import Unusable
from osprey_tp.outside import first_line

LARGEST_FILE = 1 << 26
LARGEST_CONTENT = 1 << 29
"""Bytes, packed and unpacked."""

MOST_STRUCTURES = 100_000

Value = Any
"""An array of numbers as numpy's, text as `str`, an array of structures as a list of dictionaries of values."""

_HEADER, _TAG = 128, 8
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_STRUCTURE_CLASS, _TEXT_CLASS, _NUMBER_CLASSES = 2, 4, range(6, 16)
_DEEPEST = 16
_REASON = "MATLAB file cannot be read"


def load_matlab(path: Path) -> dict[str, Value]:
    """The variables of a MATLAB file of version 5 by their names.

    Raises:
        Unusable: if the file is missing, too large, broken, or holds anything but structures, text and numbers.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise Unusable(_REASON, f"it has more than {LARGEST_FILE} bytes")
        data = path.read_bytes()
        order = {b"IM": "<", b"MI": ">"}.get(data[126:_HEADER])
        if not data.startswith(b"MATLAB 5.0") or order is None:
            raise Unusable(_REASON, "it is not of version 5")
        return _Reader(order).variables(memoryview(data)[_HEADER:])
    except (OSError, ValueError, struct.error, zlib.error, MemoryError) as error:
        raise Unusable(_REASON, first_line(error)) from None


class _Reader:
    """Reads elements: a tag with the kind and the size, and a body of other elements or of numbers."""

    def __init__(self, order: str) -> None:
        self.order = order
        self.left = LARGEST_CONTENT

    def variables(self, data: memoryview) -> dict[str, Value]:
        found: dict[str, Value] = {}
        for kind, body in self.elements(data):
            inner = self.elements(self.unpacked(body)) if kind == _COMPRESSED else [(kind, body)]
            found.update(self.matrix(*element) for element in inner)
        return found

    def elements(self, data: memoryview) -> list[tuple[int, memoryview]]:
        """Kind and body of each element; small ones lie within their tag, all but packed ones end on eight bytes."""
        elements = []
        place = 0
        while place < len(data):
            kind, size = struct.unpack_from(self.order + "II", data, place)
            start, following = place + _TAG, place + _TAG + (size if kind == _COMPRESSED else -(-size // _TAG) * _TAG)
            if kind >> 16:
                kind, size = kind & 0xFFFF, kind >> 16
                start, following = place + 4, place + _TAG
            if start + size > len(data):
                raise ValueError("it breaks off")
            elements.append((kind, data[start : start + size]))
            place = following
        return elements

    def unpacked(self, body: memoryview) -> memoryview:
        stream = zlib.decompressobj()
        content = stream.decompress(body, self.left)
        if stream.unconsumed_tail:
            raise ValueError(f"it unpacks to more than {LARGEST_CONTENT} bytes")
        self.left -= len(content)
        return memoryview(content)

    def matrix(self, kind: int, body: memoryview, depth: int = 0) -> tuple[str, Value]:
        """Name and value of a matrix."""
        if kind != _MATRIX or depth > _DEEPEST:
            raise ValueError(f"it holds an element of kind {kind} at depth {depth}")
        if not body:
            return "", np.empty((0, 0))
        head, *parts = self.elements(body)
        if head[0] != _UINT32 or [part for part, _ in parts[:2]] != [_INT32, _INT8]:
            raise ValueError("a matrix has no flags, shape and name")
        content = struct.unpack_from(self.order + "I", head[1])[0] & 0xFF
        shape = tuple(int(side) for side in np.frombuffer(parts[0][1], self.order + "i4"))
        if min(shape, default=-1) < 0:
            raise ValueError(f"an array claims the shape {shape}")
        name = bytes(parts[1][1]).decode("latin-1")
        if content == _STRUCTURE_CLASS:
            return name, self.structures(shape, parts[2:], depth)
        if content == _TEXT_CLASS:
            return name, self.text(shape, parts[2:])
        if content in _NUMBER_CLASSES:
            return name, self.numbers(shape, parts[2:])
        raise ValueError(f"it holds an array of class {content}, where structures, text and numbers are read")

    def structures(self, shape: tuple[int, ...], parts: list[tuple[int, memoryview]], depth: int) -> list[Value]:
        if [kind for kind, _ in parts[:2]] != [_INT32, _INT8]:
            raise ValueError("a structure has no names of fields")
        (length,) = struct.unpack_from(self.order + "i", parts[0][1])
        written = bytes(parts[1][1])
        if length < 1 or len(written) % length:
            raise ValueError("a structure has no names of fields")
        names = [written[start : start + length].split(b"\0")[0] for start in range(0, len(written), length)]
        count, values = math.prod(shape), parts[2:]
        if count > MOST_STRUCTURES or count * len(names) != len(values):
            raise ValueError(f"an array of structures claims the shape {shape}, but has {len(values)} values")
        read = iter([self.matrix(kind, body, depth + 1)[1] for kind, body in values])
        return [{name.decode("latin-1"): next(read) for name in names} for _ in range(count)]

    def text(self, shape: tuple[int, ...], parts: list[tuple[int, memoryview]]) -> str:
        """The text of one row; "" where there is none."""
        kind, body = parts[0] if parts else (_INT8, memoryview(b""))
        if kind not in _ENCODINGS or math.prod(shape[:-1]) > 1:
            raise ValueError(f"a text claims the shape {shape} and the kind {kind}")
        if bool(body) != bool(math.prod(shape)):
            raise ValueError(f"a text claims the shape {shape}, but has {len(body)} bytes")
        encoding = _ENCODINGS[kind]
        if encoding in ("utf-16", "utf-32"):
            encoding += "-le" if self.order == "<" else "-be"
        return bytes(body).decode(encoding)

    def numbers(self, shape: tuple[int, ...], parts: list[tuple[int, memoryview]]) -> np.ndarray:
        """The real part of an array."""
        kind, body = parts[0] if parts else (_INT8, memoryview(b""))
        if kind not in _NUMBERS:
            raise ValueError(f"an array has numbers of the kind {kind}")
        return np.frombuffer(body, self.order + _NUMBERS[kind]).reshape(shape, order="F")
