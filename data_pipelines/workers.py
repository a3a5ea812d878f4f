"""The same function over many tasks, in one process or several, with the results in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection, parent_process
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class ProcessEnded(OSError):
    """A process ended before its time."""


def map_in_order(
    function: Callable[[Task], Result], tasks: Iterable[Task], processes: int
) -> Generator[Result, None, None]:
    """`function(task)` for every task, in order; at most two tasks a process are under way or waiting to be taken.

    Raises:
        ValueError: if there is not at least one process.
        ProcessEnded: if a process ends before its time.
    """
    if processes < 1:
        raise ValueError(f"the number of processes is {processes}; it must be at least 1")
    if processes == 1:
        yield from map(function, tasks)
        return
    rest = iter(tasks)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=follow_parent) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            waiting.extend(pool.submit(function, task) for task in islice(rest, 2 * processes))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(function, task) for task in islice(rest, 1))
        except BrokenProcessPool:
            raise ProcessEnded(
                "a process ended before its time, perhaps for lack of memory; run the command again with fewer than "
                f"{processes} processes"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def follow_parent() -> None:
    """End this worker process when the process that started it is gone, however that ended."""
    parent = parent_process()
    if parent is None:
        return

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
