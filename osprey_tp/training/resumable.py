"""A Trainer whose runs go on exactly where they were ended."""

from __future__ import annotations

from transformers import Trainer


class ResumableTrainer(Trainer):
    """Checkpoints that a killed run goes on from."""
