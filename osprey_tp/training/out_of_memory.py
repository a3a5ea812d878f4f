"""A GPU without room for a step: which settings to change, so that the run can go on from where it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from osprey_tp.training.arguments import RunSettings


@contextmanager
def telling_what_to_change(settings: RunSettings) -> Iterator[None]:
    """Turn torch's error into one line that names the settings to change.

    Raises:
        OSError: in its place.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0].strip().rstrip(".")
        raise OSError(
            f"no memory is left on the GPU ({reason}); give the same command again with {advice(settings)}: it goes on "
            "from the newest checkpoint"
        ) from error


def advice(settings: RunSettings) -> str:
    """Settings that need less memory, the cheapest first; the first two change no result but by rounding."""
    ways = []
    if not settings.gradient_checkpointing:
        ways.append("gradient_checkpointing=true")
    if settings.batch_size > 1:
        smaller = max(part for part in range(1, settings.batch_size) if settings.batch_size % part == 0)
        more = settings.gradient_accumulation * settings.batch_size // smaller
        ways.append(f"batch_size={smaller} gradient_accumulation={more}")
    if not ways:
        ways.append("more processes, and with deepspeed=scripts/configs/deepspeed/zero3.json and resume=never")
    return ", or ".join(ways)
