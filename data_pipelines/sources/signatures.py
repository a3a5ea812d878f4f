"""What a file that is not the expected JSON looks like, told from its first bytes, and which source reads it.

The formats of JSON files are told apart by `data_pipelines.sources.formats`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_pipelines.sources.formats import Outline, named_with_source, recognise

_HEAD = 512
_LONGEST_FIRST_LINE = 1 << 24
"""Characters."""

_REFER = "a pickle, as REFER's refs(unc).p that `refcoco`, `refcoco+` and `refcocog` read"
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"MATLAB 5.0", "a MATLAB file; give the folder of such files to `pascal-part`"),
    (b"MATLAB 7.3", "a MATLAB 7.3 file, which no source reads"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, which no source reads"),
    (b"\xff\xd8\xff", "a JPEG picture, not annotations"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture, not annotations"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"ARROW1", "an Arrow file, which no source reads"),
    (b"PAR1", "a Parquet file, which no source reads"),
    (b"SQLite format 3\x00", "an SQLite database, which no source reads"),
    (b"%PDF-", "a PDF document, not annotations"),
)
_PICKLE_PROTOCOLS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_PICKLE_TEXT_STARTS = (b"(lp", b"(dp", b"(lq", b"]q", b"}q", b"(i", b"(c", b"cos\n", b"cposix\n", b"c__builtin__\n")


def is_pickle(path: Path) -> bool:
    """Whether the file begins like a pickle, of any protocol."""
    head = _head(path)
    return head.startswith(_PICKLE_PROTOCOLS) or head.startswith(_PICKLE_TEXT_STARTS)


def starts_with_list(path: Path) -> bool:
    """Whether the first character of a text file opens a JSON list."""
    return _head(path).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def first_line(path: Path) -> Any:
    """The JSON value in the first line of a file, None if that line holds none by itself."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return json.loads(file.readline(_LONGEST_FIRST_LINE))
    except (OSError, ValueError, RecursionError):
        return None


def looks_like(path: Path) -> str | None:
    """What a file that is no text, or a folder, looks like and what to do with it; None if nothing is known."""
    if path.is_dir():
        if next(path.glob("*.mat"), None) is not None:
            return "a folder of MATLAB files, use `pascal-part`"
        return "a folder, where a file is expected"
    if is_pickle(path):
        return _REFER
    head = _head(path)
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    return None


def json_lines_of(path: Path) -> str | None:
    """What a file with one JSON object a line holds and what to do with it; None if it is none."""
    value = first_line(path)
    if not isinstance(value, dict):
        return None
    found = recognise(Outline({"": "list"}, {"": set(value)}))
    return f"JSON Lines of {named_with_source(found)}" if found else "JSON Lines, one object a line"


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError:
        return b""
