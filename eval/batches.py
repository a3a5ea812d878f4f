"""Batches of questions that become smaller where the GPU has no room for them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from eval.asking import Asking

Item = TypeVar("Item")
Made = TypeVar("Made")


def in_batches(
    items: Sequence[Item], asking: Asking, ask: Callable[[Sequence[Item], Asking], list[Made]]
) -> Iterator[tuple[Sequence[Item], list[Made]]]:
    """Ask batch by batch; one that the GPU has no room for is asked in halves, as are all after it.

    Args:
        items: what is asked.
        asking: says how many at a time; notes in `asking.room` what there is room for.
        ask: one answer an item.

    Yields:
        Each batch with its answers.
    """
    first = 0
    while first < len(items):
        size = min(asking.batch_size, asking.room.most)
        batch = items[first : first + size]
        made = _tried(batch, replace(asking, batch_size=size), ask)
        if made is None:
            asking.room.most = len(batch) // 2
            _say(f"no memory for {len(batch)} questions at a time; going on with {asking.room.most}")
        else:
            yield batch, made
            first += len(batch)


def _tried(
    batch: Sequence[Item], asking: Asking, ask: Callable[[Sequence[Item], Asking], list[Made]]
) -> list[Made] | None:
    """The answers; None if there is no room for them, but there may be for half. What was computed is let go of."""
    try:
        return ask(batch, asking)
    except RuntimeError as error:
        if len(batch) == 1 or not _is_want_of_memory(error):
            raise
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


@contextmanager
def telling_of_memory() -> Iterator[None]:
    """Turn torch's error about a full GPU into one line.

    Raises:
        OSError: in its place.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_want_of_memory(error):
            raise
        reason = str(error).split(". ")[0].strip()
        raise OSError(
            f"no memory is left on the GPU, even for one question ({reason}); answers so far are kept: give the same "
            "command again with --dtype bfloat16, on a larger GPU, or with --device cpu"
        ) from error


def _is_want_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _say(text: str) -> None:
    """A line of its own on stderr, above a progress bar that is there."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
