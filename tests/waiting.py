"""Waiting for what a test means, not for a while."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], told: str = "it never came", seconds: float = 60) -> None:
    """Raises AssertionError, with what is `told`, if the condition is not true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, told
        time.sleep(0.01)
