"""Changes to files: single bytes of any file, and values of files of JSON, so that what is changed is still read."""

import copy
import json
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

Change = Callable[[bytes], bytes]

HOSTILE_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    0.5,
    255,
    2**31 - 1,
    2**31,
    2**32,
    2**63 - 1,
    2**63,
    2**64,
    10**400,
    -(10**400),
    1e308,
    -1e308,
    5e-324,
    float("nan"),
    float("inf"),
    "",
    " ",
    "\0",
    "\ud800",
    "0" * 5000,
    "../../etc/passwd",
    "/etc/passwd",
    "a" * 300,
    "line\nline",
    "<region0>",
    "<region1>",
    "<region" + "9" * 30 + ">",
    "<mask>",
    "<image>",
    [],
    {},
    [[]],
    [{}],
    [None],
    [1, "1"],
    [0, 0, 1, 1],
    {"box": [0, 0, 1, 1]},
    {"size": [4, 5], "counts": [0, 20]},
    {"size": [4, 5], "counts": "0"},
    {"mask": "/dev/zero"},
)
HOSTILE_BYTES = (
    b"\0",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\0\0\x80",
    b'"',
    b"[" * 2000,
    b"\n",
    b"-1",
)
_DEEP = 5000


def change_json(data: bytes, source: random.Random) -> bytes:
    """The same JSON with one to four of its values replaced, removed, doubled or nested; other bytes as they are."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data
    for _ in range(source.randint(1, 4)):
        document = _change_value(document, source)
    try:
        return json.dumps(document).encode()
    except (ValueError, RecursionError):
        return data


def _change_value(document: Any, source: random.Random) -> Any:
    places = list(_places(document))
    if not places:
        return copy.deepcopy(source.choice(HOSTILE_VALUES))
    holder, key = source.choice(places)
    kind = source.randrange(10)
    if kind < 6:
        holder[key] = copy.deepcopy(source.choice(HOSTILE_VALUES))
    elif kind == 6:
        del holder[key]
    elif kind == 7:
        other, place = source.choice(places)
        holder[key] = json.loads(json.dumps(other[place])) if place in _keys(other) else None
    elif kind == 8 and isinstance(holder, list):
        holder += [holder[key]] * source.choice((1, 2, 300))
    elif isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        with suppress(OverflowError):
            holder[key] = holder[key] + source.choice((-1, 1, 0.5, 1e6))
    elif isinstance(holder[key], str):
        holder[key] = change_bytes(holder[key].encode("utf-8", "replace"), source).decode("latin-1")[:5000]
    else:
        holder[key] = [holder[key]]
    return document


def _places(value: Any) -> Any:
    """Every (holder, key) below a value."""
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        for key in _keys(holder):
            yield holder, key
            waiting.append(holder[key])


def _keys(holder: Any) -> Sequence[Any]:
    return list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()


def change_bytes(data: bytes, source: random.Random) -> bytes:
    """One to eight places of a file overwritten, cut out, doubled or cut off."""
    changed = bytearray(data)
    for _ in range(source.randint(1, 8)):
        place = source.randrange(len(changed) + 1)
        length = source.choice((1, 1, 2, 4, 16, 64))
        match source.randrange(7):
            case 0:
                changed[place : place + 1] = bytes([source.randrange(256)])
            case 1:
                changed[place : place + length] = source.randbytes(length)
            case 2:
                chosen = source.choice(HOSTILE_BYTES)
                changed[place : place + len(chosen)] = chosen
            case 3:
                del changed[place : place + length]
            case 4:
                changed[place:place] = changed[place : place + length]
            case 5:
                del changed[place if source.random() < 0.2 else len(changed) :]
            case _:
                if place < len(changed):
                    changed[place] ^= 1 << source.randrange(8)
    return bytes(changed)


def deeply_nested() -> list[bytes]:
    """JSON that recursion cannot follow."""
    return [b"[" * _DEEP + b"]" * _DEEP, b'{"a":' * _DEEP + b"1" + b"}" * _DEEP]
