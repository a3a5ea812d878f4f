"""SIGTERM as an exception, so that a command closes what is open and says how to go on before it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM
"""What shells report of a program that SIGTERM ended."""


class Terminated(KeyboardInterrupt):
    """The process has got SIGTERM; like Ctrl-C it is no error, and passes by what handles errors."""


@contextmanager
def sigterm_raised() -> Iterator[None]:
    """While it is open, SIGTERM raises `Terminated` in the main thread; from another thread it changes nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Terminated
