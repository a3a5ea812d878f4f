"""One piece of model work at a time, over all users, in order of arrival.

```
line.run(work, waiting) ─► Place: waiting(2), waiting(1), then the items of the work
                           ends with the work, with an error or with `close`: then the next in the line begins
```
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

_logger = logging.getLogger(__name__)


class LineFullError(ValueError):
    """Too many requests wait already."""


class TimeLimitError(ValueError):
    """A request has worked for longer than it may."""


class LineClosedError(ValueError):
    """The server is being stopped."""


class WaitingLine:
    """The line before the model; safe to use from several threads.

    Work must not wait in the line itself: it would wait for its own end.

    Args:
        longest: Requests that may wait, besides the one at work.
        seconds: That a request may work, counted from the beginning of its work. It is stopped between two items of
            its work, never inside the making of one.
        heartbeat: Seconds after which a waiting request is told its place again though nothing has changed, so that
            whoever reads it can leave.

    Raises:
        ValueError: if a limit leaves nothing to do.
    """

    def __init__(self, longest: int, seconds: float, heartbeat: float = 1.0) -> None:
        if longest < 0:
            raise ValueError(f"a line of {longest} requests cannot be; give 0 or more")
        if not seconds > 0:
            raise ValueError(f"a limit of {seconds:g} seconds leaves no time to answer; give more than 0")
        self.longest, self.seconds, self.heartbeat = longest, seconds, heartbeat
        self._changed = threading.Condition()
        self._requests: deque[_Request[Any]] = deque()  # the first is at work
        self._closed = False

    def run(self, work: Iterator[Item], waiting: Callable[[int], Item]) -> "Place[Item]":
        """An iterator of `waiting(requests ahead)`, while there are any, and then of the work's items.

        The place in the line is taken with the first `next`. It is given up, and `work` closed if it can be, when the
        work ends or fails, when the iterator is closed, from any thread, and when nobody holds the iterator any more.

        Raises:
            LineFullError: from the first `next`, if `longest` requests wait already.
            TimeLimitError: from a later `next`, if the work took longer than `seconds`. A request that nobody reads on
                loses its turn after the same time if others wait.
        """
        return Place(_Request(self, work, waiting))

    def close(self, patience: float = 20.0) -> bool:
        """Ends what is at work and what waits, and refuses what comes.

        A process must not leave while a thread is inside the model, so the item that is being made is waited for.

        Args:
            patience: Seconds to wait for it at most.

        Returns:
            Whether all work has ended.
        """
        with self._changed:
            self._closed = True
            requests = list(self._requests)
        for request in requests:
            request.close()
        with self._changed:
            return self._changed.wait_for(lambda: not self._requests, patience)

    @property
    def waiting(self) -> int:
        """Requests that wait, the one at work not counted."""
        return max(0, len(self._requests) - 1)

    @property
    def busy(self) -> bool:
        """Whether a request is at work."""
        return bool(self._requests)

    @property
    def stuck(self) -> bool:
        """Whether the request at work has been making one item until after its time."""
        with self._changed:
            return bool(self._requests) and self._requests[0].is_stuck

    def _enter(self, request: "_Request[Any]") -> None:
        with self._changed:
            if self._closed:
                raise LineClosedError("the server is being stopped")
            if len(self._requests) > self.longest:
                raise LineFullError(f"the line is full: {len(self._requests)} requests are before this; try again soon")
            self._requests.append(request)

    def _leave(self, request: "_Request[Any]") -> None:
        with self._changed:
            if request in self._requests:
                self._requests.remove(request)
                self._changed.notify_all()


class Place(Iterator[Item], Generic[Item]):
    """A place in a `WaitingLine`; made by `WaitingLine.run`. The line does not hold it, so that it can be dropped."""

    def __init__(self, request: "_Request[Item]") -> None:
        self._request = request

    def __next__(self) -> Item:
        """The next item; blocks until there is one."""
        return self._request.next_item()

    def close(self) -> None:
        """Gives up the place and ends the work. A `next` that another thread is in ends with `StopIteration`."""
        self._request.close()

    def __del__(self) -> None:
        """A place that nobody holds is given up."""
        self._request.close()


class _Request(Generic[Item]):
    """What the line knows of a place. All but `_work` is read and changed under the line's lock."""

    def __init__(self, line: WaitingLine, work: Iterator[Item], waiting: Callable[[int], Item]) -> None:
        self._line, self._work, self._waiting = line, work, waiting
        self._entered = False
        self._told: int | None = None  # requests ahead, as told last
        self._deadline: float | None = None  # by time.monotonic(); None before the work begins
        self._in_use = False  # a thread makes an item of the work or closes it
        self._closed = False
        self._late = False

    @property
    def is_stuck(self) -> bool:
        return self._in_use and self._deadline is not None and time.monotonic() > self._deadline

    def next_item(self) -> Item:
        try:
            if not self._entered and not self._closed:
                self._entered = True
                self._line._enter(self)
            ahead = self._wait()
            return self._waiting(ahead) if ahead else self._work_on()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with self._line._changed:
            self._closed = True
            self._line._changed.notify_all()
            if self._in_use:  # by a thread that will close the work, or does so now
                return
            self._in_use = True
        try:
            close = getattr(self._work, "close", None)
            if close is not None:
                close()
        except Exception:
            _logger.exception("the work of a request failed when it was closed")
        finally:
            self._line._leave(self)

    def _wait(self) -> int:
        """Requests ahead, once that number has changed or after a heartbeat; 0 as soon as it is this one's turn."""
        changed = self._line._changed
        heartbeat = time.monotonic() + self._line.heartbeat
        while True:
            with changed:
                self._require_open()
                ahead = self._line._requests.index(self)
                left = heartbeat - time.monotonic()
                if ahead == 0:
                    self._begin()
                    return 0
                if ahead != self._told or left <= 0:
                    self._told = ahead
                    return ahead
                first = self._line._requests[0]
                patience = first._seconds_unread()
                first._late = patience == 0
                if patience != 0:
                    changed.wait(left if patience is None else min(left, patience))
                    continue
            first.close()

    def _begin(self) -> None:
        """Enters the work, for the first time or again."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._line.seconds
        self._late = time.monotonic() >= self._deadline
        self._require_open()
        self._in_use = True

    def _work_on(self) -> Item:
        try:
            item = next(self._work)
        finally:
            with self._line._changed:
                self._in_use = False
        self._require_open()
        return item

    def _require_open(self) -> None:
        if self._late:
            self._late = False
            raise TimeLimitError(f"the answer took longer than {self._line.seconds:g} seconds and was stopped")
        if self._closed:
            raise StopIteration

    def _seconds_unread(self) -> float | None:
        """For how long this may still lie between two items without being read on; None while a thread is at it."""
        if self._in_use or self._deadline is None:
            return None
        return max(0.0, self._deadline - time.monotonic())
