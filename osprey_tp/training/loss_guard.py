"""A run whose loss is no number, or far above what it was, stops and names the records that did it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

MEDIAN_OVER = 50
"""Logged losses whose median is the usual loss."""

FEWEST_LOGGED = 5
"""Logged losses before there is a usual loss."""


class RunStoppedError(ValueError):
    """All processes stop together, for a reason that all of them know."""


@dataclass
class WatchedStep:
    """What is known of an optimiser step, on the device.

    Attributes:
        number: From 1.
        loss: This process's loss, summed over the batches of gradient accumulation.
        records: Ids of this process's records.
        gradient_norm: Of the whole model, before clipping.
    """

    number: int
    loss: Tensor
    records: list[str] = field(default_factory=list)
    gradient_norm: Tensor | float = 0.0


class LossGuard:
    """Keeps loss and records of every step until they are looked at.

    Looking needs the numbers on the host, and so waits for the device. The Trainer waits for it whenever it logs,
    scores or saves, so that is when the steps since the last time are looked at, before a checkpoint is written. A
    step without any of these waits for nothing.

    Args:
        spike_factor: A loss this many times the usual one stops the run; 0 lets every finite loss pass.
        watches_gradients: Whether a gradient norm that is no number stops the run. Not under fp16, where loss scaling
            meets such gradients in the ordinary course and leaves the step out.
    """

    def __init__(self, spike_factor: float, watches_gradients: bool) -> None:
        self.spike_factor = spike_factor
        self.watches_gradients = watches_gradients
        self._steps: list[WatchedStep] = []

    def note_batch(self, step: int, loss: Tensor, records: Sequence[str]) -> None:
        """Note a batch of optimiser step `step`; `loss` () stays on its device."""
        loss = loss.detach().float()
        if self._steps and self._steps[-1].number == step:
            self._steps[-1].loss = self._steps[-1].loss + loss
            self._steps[-1].records.extend(records)
        else:
            self._steps.append(WatchedStep(step, loss, list(records)))

    def note_gradient_norm(self, norm: Tensor | float | None) -> None:
        """Note the gradient norm of the newest step."""
        if self._steps and norm is not None:
            self._steps[-1].gradient_norm = norm

    def check(
        self,
        logged: Sequence[float],
        gather: Callable[[Tensor], Tensor],
        gather_objects: Callable[[list[str]], list[str]],
        newest_checkpoint: Callable[[], str | None],
    ) -> None:
        """Look at all steps since the last check; every process must call this, and all come to the same end.

        Args:
            logged: The losses logged before, oldest first.
            gather: Puts the rows (1, n) of all processes into one tensor (processes, n).
            gather_objects: Puts the lists of all processes one behind the other.
            newest_checkpoint: Finds the checkpoint that the error names; asked only if there is one to raise.

        Raises:
            RunStoppedError: for the first step whose loss or gradient norm is no number, or whose loss is a spike.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return
        norms = [torch.as_tensor(step.gradient_norm, dtype=torch.float32).to(step.loss.device) for step in steps]
        rows = gather(torch.stack([*(step.loss for step in steps), *norms])[None])
        losses, worst_norms = rows[:, : len(steps)].mean(dim=0).tolist(), rows[:, len(steps) :].amax(dim=0).tolist()
        usual = usual_loss(logged)
        for step, loss, norm in zip(steps, losses, worst_norms, strict=True):
            fault = self._fault(step.number, loss, norm, usual)
            if fault:
                records = gather_objects(step.records)
                raise RunStoppedError(
                    f"{fault}; records of its batch: {', '.join(records)}; newest checkpoint: "
                    f"{newest_checkpoint() or 'none yet'}; look at these records, or start anew with a lower "
                    "learning_rate or max_gradient_norm"
                )

    def _fault(self, number: int, loss: float, norm: float, usual: float | None) -> str | None:
        if not math.isfinite(loss):
            return f"step {number} has the loss {loss}"
        # DeepSpeed gives -1 for a norm that is no number.
        if self.watches_gradients and not (math.isfinite(norm) and norm >= 0):
            shown = norm if norm != -1 else math.nan
            return f"step {number} has gradients of norm {shown}, with the loss {loss:.4g}"
        if self.spike_factor and usual is not None and loss > self.spike_factor * usual:
            return (
                f"step {number} has the loss {loss:.4g}, more than {self.spike_factor:g} (spike_factor) times "
                f"{usual:.4g}, the median of the losses logged before"
            )
        return None


def usual_loss(logged: Sequence[float]) -> float | None:
    """The median of the last `MEDIAN_OVER` logged losses; None while there are fewer than `FEWEST_LOGGED`."""
    return median(logged[-MEDIAN_OVER:]) if len(logged) >= FEWEST_LOGGED else None
