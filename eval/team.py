"""Several processes that share one evaluation, as torchrun and accelerate start them.

They meet in the key-value store that the launcher names (MASTER_ADDR, MASTER_PORT) and need no process group: nothing
waits inside a collective operation for a process that is gone. Every process gives a sign of life now and then; who
waits for another one notices its failure at once, and its death after `PATIENCE` seconds.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Any

PATIENCE = 60.0
"""Seconds without a sign of life after which a process counts as dead."""

JOINING = 300.0
"""Seconds that all processes have to start."""

KEPT = "answers so far are kept, and the same command goes on from there with any number of processes"
POLL = 0.1
SIGNS_IN_PATIENCE = 10


class TeammateLost(OSError):
    """Another process of the evaluation failed."""


class TeammateGone(TeammateLost):
    """Another process of the evaluation is gone; nothing can be shared with it any more."""


class Team:
    """This process among those that share an evaluation; alone by default. Use it as a context manager.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None, patience: float = PATIENCE) -> None:
        self.rank, self.size, self.patience = rank, size, patience
        self._store = store
        self._ended = threading.Event()
        if store is not None:
            self.sign_of_life(0)
            threading.Thread(target=self._give_signs, daemon=True).start()

    @classmethod
    def from_environment(cls, patience: float = PATIENCE) -> Team:
        """The team that RANK and WORLD_SIZE describe; alone without them.

        Raises:
            ValueError: they are no numbers, or MASTER_ADDR and MASTER_PORT are missing.
            TeammateGone: the others did not start in time.
        """
        try:
            rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        except ValueError:
            raise ValueError("RANK and WORLD_SIZE must be whole numbers; start with torchrun") from None
        if size == 1:
            return cls()
        if not 0 <= rank < size:
            raise ValueError(f"RANK is {rank}, WORLD_SIZE is {size}; ranks are counted from 0")
        from torch.distributed import DistError, rendezvous

        try:
            store = next(rendezvous("env://", rank, size, timeout=timedelta(seconds=JOINING)))[0]
        except DistError as error:
            raise TeammateGone(f"process {rank} of {size} did not meet the others: {_first_line(error)}") from error
        return cls(rank, size, store, patience)

    @property
    def first(self) -> bool:
        """Whether this process gathers the answers, scores and reports."""
        return self.rank == 0

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Work that all do together; the others are told if it fails here."""
        step = Step(self, name)
        try:
            yield step
        except TeammateLost:
            raise
        except BaseException as error:
            step.tell("failed", f"{type(error).__name__}: {error}")
            raise

    def set(self, key: str, value: str) -> None:
        """Leave a value for the others."""
        if self._store is not None:
            self._ask(lambda store: store.set(key, value))

    def get(self, key: str) -> str | None:
        """A value, or None as long as it is not there."""
        if self._store is None:
            return None
        found: str | None = self._ask(lambda store: store.get(key).decode() if store.check([key]) else None)
        return found

    def add(self, key: str, amount: int) -> int:
        """Add to a common count; returns the sum so far. Alone there is none: the amount comes back."""
        return amount if self._store is None else int(self._ask(lambda store: store.add(key, amount)))

    def sign_of_life(self, number: int) -> None:
        """Show the others that this process lives."""
        self.set(f"alive/{self.rank}", str(number))

    def _ask(self, operation: Callable[[Any], Any]) -> Any:
        try:
            return operation(self._store)
        except RuntimeError as error:
            raise TeammateGone(
                f"process {self.rank} of {self.size} lost the others, the first of them may have ended; {KEPT}"
            ) from error

    def _give_signs(self) -> None:
        number = 0
        while not self._ended.wait(self.patience / SIGNS_IN_PATIENCE):
            number += 1
            try:
                self.sign_of_life(number)
            except TeammateLost:
                return  # the main thread notices when it next talks to the others

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()


@dataclass
class Step:
    """Work of a team, with messages of its own; made by `Team.step`."""

    team: Team
    name: str
    _signs: dict[int, tuple[str | None, float]] = field(default_factory=dict)

    def tell(self, what: str, text: str = "") -> None:
        """Tell the others that this process got as far as `what`."""
        self.team.set(f"{self.name}/{what}/{self.team.rank}", text)

    def add(self, what: str, amount: int) -> int:
        """Add to a count of the whole team; returns the sum so far, alone the amount."""
        return self.team.add(f"{self.name}/{what}", amount)

    def wait_for(self, what: str, ranks: Iterable[int], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until all of these processes told `what`; `meanwhile` runs several times a second.

        Raises:
            TeammateLost: one of them failed.
            TeammateGone: one of them gave no sign of life for too long.
        """
        pending = {rank for rank in ranks if rank != self.team.rank}
        now = time.monotonic()
        self._signs = dict.fromkeys(pending, (None, now))
        while pending:
            pending = {rank for rank in pending if self.team.get(f"{self.name}/{what}/{rank}") is None}
            for rank in pending:
                self._check(rank)
            meanwhile()
            if pending:
                time.sleep(POLL)

    def _check(self, rank: int) -> None:
        who = f"process {rank} of {self.team.size}"
        reason = self.team.get(f"{self.name}/failed/{rank}")
        if reason is not None:
            raise TeammateLost(f"{who} failed: {' '.join(reason.split())}; {KEPT}")
        sign, (before, since) = self.team.get(f"alive/{rank}"), self._signs[rank]
        if sign != before:
            self._signs[rank] = (sign, time.monotonic())
        elif time.monotonic() - since > self.team.patience:
            raise TeammateGone(f"{who} has given no sign of life for {self.team.patience:g} s; {KEPT}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
