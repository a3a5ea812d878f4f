"""What people watch while a run goes on."""

from __future__ import annotations

from transformers import Trainer


class WatchedTrainer(Trainer):
    """Progress, trackers and held-out scores."""
