"""Where the numbers of a run are sent: TensorBoard, by default, or the trackers of transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

TENSORBOARD_FOLDER = "tensorboard"


def require_trackers(names: Sequence[str]) -> None:
    """Raise ValueError, naming it and the remedy, for the first tracker that is not installed."""
    for name in names:
        if name != "none" and importlib.util.find_spec(name) is None:
            raise ValueError(f"report_to names {name}, which is not installed; pip install {name}, or report_to=none")


class TensorBoardFolder(TensorBoardCallback):
    """TensorBoard's events in `tensorboard/` of the folder of checkpoints.

    A run that goes on from a checkpoint tells TensorBoard to forget what was logged after it.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the events' file in the first process."""
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / TENSORBOARD_FOLDER
            self.logging_dir = str(folder)
            self.tb_writer = self._SummaryWriter(log_dir=self.logging_dir, purge_step=state.global_step + 1)
        super().on_train_begin(args, state, control, **kwargs)
