"""What the processes of a run tell each other; a run of one process talks to itself."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def gather(value: Value) -> list[Value]:
    """The values of all processes in the order of ranks, on each of them; all have to call it."""
    if not is_distributed():
        return [value]
    values: list[Value | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def wait() -> None:
    """Go on when all processes have come here."""
    gather(None)


def maxima(values: list[int], device: torch.device) -> list[int]:
    """The greatest value at each place over all processes, on each of them; all have to call it.

    Args:
        values: As many on every process.
        device: One that the process group can send from.
    """
    if not is_distributed():
        return values
    tensor = torch.tensor(values, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    greatest: list[int] = tensor.tolist()
    return greatest
