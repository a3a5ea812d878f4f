"""MATLAB files of version 5, checked before scipy reads them.

scipy executes nothing of such a file, but it allocates what the file claims: a zip bomb, or a text of 2**31 characters
that is not there. Here every element is unpacked and walked first, under limits.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path
from typing import Any

from data_pipelines.sources.reader import Unusable

LARGEST_FILE = 1 << 26
LARGEST_CONTENT = 1 << 29
"""Bytes, packed and unpacked."""

MOST_ELEMENTS = 100_000
"""Of an array of structures, or of text."""

_HEADER, _TAG = 128, 8
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_STRUCT, _TEXT, _NUMBERS = 2, 4, range(6, 16)
_DEEPEST = 16
_REASON = "MATLAB file cannot be read"


def load_matlab(path: Path) -> dict[str, Any]:
    """The variables of a MATLAB file of version 5, as `scipy.io.loadmat` gives them.

    Raises:
        Unusable: if the file is missing, too large, broken, or holds anything but structures, text and numbers.
    """
    from scipy.io import loadmat

    try:
        if path.stat().st_size > LARGEST_FILE:
            raise Unusable(_REASON, f"it has more than {LARGEST_FILE} bytes")
        content = _checked(path.read_bytes())
        variables: dict[str, Any] = loadmat(io.BytesIO(content))
    except Unusable:
        raise
    except Exception as error:
        raise Unusable(_REASON, (str(error) or type(error).__name__).splitlines()[0]) from None
    return variables


def require_scipy(source: str) -> None:
    """Raise the error that names what to install, before anything is read.

    Raises:
        ValueError: if scipy is missing.
    """
    try:
        import scipy.io  # noqa: F401
    except ImportError:
        raise ValueError(f"source {source} needs scipy for MATLAB files: pip install 'osprey_tp[data]'") from None


def _checked(data: bytes) -> bytes:
    """The file with its elements unpacked, all of them walked."""
    if len(data) < _HEADER or not data.startswith(b"MATLAB 5.0"):
        raise Unusable(_REASON, "it is not of version 5")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise Unusable(_REASON, "it does not say its byte order")
    unpacked = [data[:_HEADER]]
    left = LARGEST_CONTENT
    for kind, body, raw in _elements(data[_HEADER:], order):
        if kind == _COMPRESSED:
            raw = _unpacked(body, left)
            left -= len(raw)
            for inner, matrix, _ in _elements(raw, order):
                _walk(inner, matrix, order)
        else:
            _walk(kind, body, order)
        unpacked.append(raw)
    return b"".join(unpacked)


def _unpacked(body: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj()
    content = stream.decompress(body, limit)
    if stream.unconsumed_tail:
        raise Unusable(_REASON, f"it unpacks to more than {LARGEST_CONTENT} bytes")
    return content


def _elements(data: bytes, order: str) -> list[tuple[int, bytes, bytes]]:
    """Kind, body, and tag with body of each element; bodies are padded to eight bytes except compressed ones."""
    elements = []
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from(order + "II", data, place)
        start, step = place + _TAG, size if kind == _COMPRESSED else -(-size // _TAG) * _TAG
        if kind >> 16:
            kind, size = kind & 0xFFFF, kind >> 16
            start, step = place + 4, 4
        if start + size > len(data):
            raise Unusable(_REASON, "it breaks off")
        elements.append((kind, data[start : start + size], data[place : start + step]))
        place = start + step
    return elements


def _walk(kind: int, body: bytes, order: str, depth: int = 0) -> None:
    """Refuse a matrix that is no structure, text or numbers, or that claims more elements than it can have."""
    if kind != _MATRIX or depth > _DEEPEST:
        raise Unusable(_REASON, f"it holds an element of kind {kind} at depth {depth}")
    if not body:
        return
    parts = _elements(body, order)
    kinds = [part for part, _, _ in parts[:3]]
    if kinds != [_UINT32, _INT32, _INT8]:
        raise Unusable(_REASON, f"a matrix begins with elements of the kinds {kinds}")
    (flags,) = struct.unpack_from(order + "I", parts[0][1])
    shape = struct.unpack(f"{order}{len(parts[1][1]) // 4}i", parts[1][1])
    count = math.prod(shape)
    content = flags & 0xFF
    if min(shape, default=-1) < 0 or (content in (_STRUCT, _TEXT) and count > MOST_ELEMENTS):
        raise Unusable(_REASON, f"an array claims the shape {shape}")
    if content == _STRUCT:
        for inner, matrix, _ in parts[5:]:
            _walk(inner, matrix, order, depth + 1)
    elif content != _TEXT and content not in _NUMBERS:
        raise Unusable(_REASON, f"it holds an array of class {content}, where structures, text and numbers are read")
