"""Who asks what when several processes share an evaluation, and how their answers come together.

```
out/predictions.jsonl          what is answered already; read only while several processes work
out/predictions.rank0.jsonl    what process 0 answers, and so on; gathered and removed when all are done
```
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from eval.predictions import Prediction, PredictionLog, line_of
from osprey_tp.files import write_text

Item = TypeVar("Item")


def share_of(plans: Sequence[list[Item]], rank: int, size: int) -> list[list[Item]]:
    """The pictures that process `rank` of `size` asks about, in order; shares hold about as many questions each.

    The picture with most questions goes first, each to the process that has least so far.
    """
    loads = [(0, number) for number in range(size)]
    mine = []
    for place in sorted(range(len(plans)), key=lambda place: (-len(plans[place]), place)):
        load, number = heapq.heappop(loads)
        heapq.heappush(loads, (load + len(plans[place]), number))
        if number == rank:
            mine.append(place)
    return [plans[place] for place in sorted(mine)]


def part_of(path: Path, rank: int) -> Path:
    """The file of one process beside the common one."""
    return path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


def gather(path: Path, order: Sequence[str]) -> None:
    """Move the answers of all parts into `path`, in the order of question ids; without parts, only put it in order.

    A kill at any moment loses and repeats nothing: parts go when the whole is on the disk, and an answer that is in
    both counts once.

    Raises:
        ValueError: a file is broken, or still being written by another process.
    """
    parts = sorted(path.parent.glob(f"{path.stem}.rank*{path.suffix}"))
    if not parts and not path.exists():
        return
    with ExitStack() as stack:
        logs = [stack.enter_context(PredictionLog(file)) for file in (path, *parts)]
        found: dict[str, Prediction] = {}
        for log in logs:
            found = log.predictions | found
        places = {key: place for place, key in enumerate(order)}
        ordered = sorted(found, key=lambda key: places.get(key, len(places)))
        if parts or ordered != list(found):
            write_text(path, "".join(line_of(found[key]) for key in ordered))
        for part in parts:
            part.unlink()
