"""How fast a run goes, how much of it is padding, and how much memory it takes."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

GIBIBYTE = 2**30


class Throughput:
    """Counts tokens, places and samples between two logs, and the time they took.

    Counting waits for nothing: what only the device knows (how many tokens a mask marks) is summed there and read when
    the Trainer logs, which waits for the device anyway.

    Args:
        device: Of the batches.
        clock: Seconds that never go back.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self.device = device
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Begin a new span of time, with nothing counted."""
        self._tokens = torch.zeros((), dtype=torch.int64, device=self.device)
        self._places = self._samples = 0
        self._since = self._clock()

    def count(self, attention_mask: Tensor) -> None:
        """Count a batch by its mask (B, N), 1 at tokens and 0 at padding."""
        self._tokens += attention_mask.sum().to(self.device)
        self._places += attention_mask.numel()
        self._samples += attention_mask.shape[0]

    def state(self) -> dict[str, float]:
        """What this process has counted since the last report, in values that JSON can hold."""
        seconds = self._clock() - self._since
        return {"tokens": int(self._tokens), "places": self._places, "samples": self._samples, "seconds": seconds}

    def resume(self, state: dict[str, float]) -> None:
        """Count on from a `state`."""
        self._tokens = torch.tensor(int(state["tokens"]), device=self.device)
        self._places, self._samples = int(state["places"]), int(state["samples"])
        self._since = self._clock() - state["seconds"]

    def now(self) -> float:
        """The clock's seconds, for `leave_out`."""
        return self._clock()

    def leave_out(self, begin: float) -> None:
        """Take the time since `begin` for no part of the training: what has been scored or saved in it was no step."""
        now = self._clock()
        self._since = now if self._since >= begin else self._since + now - begin

    def report(self, gather: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """What happened since the last report, of all processes together; every one of them must call this.

        Args:
            gather: Puts the rows (1, 4) of all processes into one tensor (processes, 4).

        Returns:
            tokens; padding_share of all places; tokens_per_second; samples_per_second; peak_memory_gib, the most that
            one process ever held: of its GPU, or resident where it computes on the CPU.
        """
        counts = [self._places, self._samples, peak_memory(self.device)]
        own = torch.cat([self._tokens[None], torch.tensor(counts, dtype=torch.int64, device=self.device)])
        seconds = self._clock() - self._since
        rows = gather(own[None])
        tokens, places, samples, _ = rows.sum(dim=0).tolist()
        self.restart()
        return {
            "tokens": tokens,
            "padding_share": 1 - tokens / places if places else 0.0,
            "tokens_per_second": tokens / seconds,
            "samples_per_second": samples / seconds,
            "peak_memory_gib": int(rows[:, 3].max()) / GIBIBYTE,
        }


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most: allocated on its GPU, or resident where it computes on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
