"""Which samples a process sees, in an order that any number of processes shares and that a run can go on from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Indices (epoch, place) of the places 0, 1, ... of an epoch; the data set knows which sample stands at each.

    The index carries the epoch, so that a data set in a worker process, a persistent one too, needs no other word of
    it. The places come in global batches of `batch_size * world_size`, of which rank r takes the r-th part: together,
    in the order of ranks, the processes see the places in order, whatever their number. The last global batch is
    completed from the beginning of the epoch, so every rank gets the same number of samples and every place is seen.

    Args:
        samples: Samples in an epoch.
        batch_size: Samples that a rank takes in turn.
        rank: Number of this process.
        world_size: Number of processes.

    Raises:
        ValueError: for a number below 1, or a rank that does not exist.
    """

    def __init__(self, samples: int, batch_size: int = 1, rank: int = 0, world_size: int = 1) -> None:
        if min(samples, batch_size, world_size) < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"no sampler for rank {rank} of {world_size}, {samples} samples in batches of {batch_size}"
            )
        self.samples = samples
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._position = 0

    @property
    def global_batch(self) -> int:
        """Samples that all ranks together take in turn."""
        return self.batch_size * self.world_size

    @property
    def padded(self) -> int:
        """Samples that all ranks together see in an epoch."""
        return -(-self.samples // self.global_batch) * self.global_batch

    def __len__(self) -> int:
        """Samples that this rank sees in an epoch."""
        return self.padded // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The rest of the epoch; what `load_state_dict` set holds for the first iteration alone."""
        start, self._position = self._position, 0
        for batch in range(start, self.padded, self.global_batch):
            first = batch + self.rank * self.batch_size
            for place in range(first, first + self.batch_size):
                yield self.epoch, place % self.samples

    def set_epoch(self, epoch: int) -> None:
        """Take the order of another epoch from the next iteration on."""
        self.epoch = epoch

    def state_dict(self, batches: int) -> dict[str, Any]:
        """The position after so many of this rank's batches of the current epoch, for any number of ranks.

        The loop counts the batches that it has used; the sampler cannot, because a loader asks it ahead of time.
        """
        return {"epoch": self.epoch, "position": batches * self.global_batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position of a sampler of equal global batches.

        Raises:
            ValueError: if the position lies inside a global batch or beyond the epoch.
        """
        epoch, position = state["epoch"], state["position"]
        if position % self.global_batch or not 0 <= position <= self.padded:
            raise ValueError(
                f"sample {position} of an epoch of {self.padded} is not where a global batch of {self.global_batch} "
                "begins"
            )
        self.epoch, self._position = epoch, position
