"""Signals that end a run: the step is finished, a checkpoint is written, and the program says how to go on."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class EndedBySignal(Exception):
    """A run has been asked to end and has written a checkpoint.

    Attributes:
        number: Of the signal.
        step: Optimiser steps that are done.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name} after step {step}")
        self.number = number
        self.step = step

    @property
    def exit_code(self) -> int:
        """0 for SIGTERM, with which schedulers end what they will start again; 130 for SIGINT, as shells have it."""
        return 0 if self.number == signal.SIGTERM else 128 + self.number


class SignalWatch:
    """While it is open, SIGINT and SIGTERM are noted; a second SIGINT ends the program at once.

    Outside the main thread, where Python handles no signals, it notes nothing.

    Attributes:
        received: Number of the first signal, 0 before.
    """

    def __init__(self) -> None:
        self.received = 0
        self._process = os.getpid()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> SignalWatch:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # forked from the run, such as a process that loads data
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number


def leave_signals_to_the_run() -> None:
    """In a process that loads data: outlive the signals that a terminal or a scheduler sends to all of a run at once.

    The run needs it until its step is done. Only a SIGTERM from the run itself ends it.
    """
    run = os.getppid()

    def end_when_the_run_says_so() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
            pass
        os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=end_when_the_run_says_so, daemon=True).start()
