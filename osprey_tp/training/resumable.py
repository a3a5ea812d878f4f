"""A Trainer whose runs go on exactly where they were ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from osprey_tp.files import write_json
from osprey_tp.outside import first_line
from osprey_tp.training import ranks
from osprey_tp.training.checkpoints import clear_away, complete, keep_newest, writing_folder
from osprey_tp.training.interruption import EndedBySignal, SignalWatch, leave_signals_to_the_run
from osprey_tp.training.skipping import SkippingTrainer


class ResumableTrainer(SkippingTrainer):
    """Checkpoints that a killed run goes on from, with everything that decides what follows.

    Beyond what the Trainer of transformers keeps (weights, optimiser, schedule, random state of each process), a
    checkpoint holds the loss that was summed up since the last entry of the log, and loading data draws from a random
    state of its own: so a resumed run logs and computes what an uninterrupted one does, to the bit.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.signals = SignalWatch()
        self._is_writing = False
        self._loading: LatestIterator | None = None
        self.add_callback(StepEnd(self))

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """As the Trainer's; SIGINT and SIGTERM end it after the step, with a checkpoint.

        Raises:
            EndedBySignal: on every process, if one of them was told to end.
            OSError: if a process that loads data was ended by something else.
        """
        if ranks.rank() == 0:
            clear_away(Path(str(self.args.output_dir)))
        self.resume_skips(resume_from_checkpoint)
        with self.signals, telling_of_ended_workers(self.args.dataloader_num_workers):
            try:
                result = super().train(resume_from_checkpoint, **kwargs)
            finally:
                if self._loading is not None:
                    self._loading.end()
        if self.signals.received:
            raise EndedBySignal(self.signals.received, self.state.global_step)
        return result

    def get_train_dataloader(self) -> DataLoader:
        """As the Trainer's, with a random state of its own; its processes outlive the signals that end a run."""
        loader = super().get_train_dataloader()
        base = getattr(loader, "base_dataloader", loader)
        base.generator = torch.Generator().manual_seed(self.args.seed)
        base.worker_init_fn = partial(_begin_loading, base.worker_init_fn)
        self._loading = LatestIterator(base)
        return loader

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; nothing where the run was complete when its last checkpoint was written."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return None
        return super()._run_epoch(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)
        return str(writing_folder(Path(folder))) if self._is_writing else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the checkpoint aside, seal it, rename it, and remove those that are one too many.

        Raises:
            OSError: if it cannot be written; the ones before it are kept.
        """
        work = Path(self._get_output_dir(trial))
        if ranks.rank() == 0:
            clear_away(work)
        ranks.wait()
        self._is_writing = True
        try:
            super()._save_checkpoint(model, trial)
            complete(work, self.state.global_step, ranks.rank(), ranks.gather)
        except Exception as error:
            reason = first_line(error)
            raise OSError(
                f"checkpoint-{self.state.global_step} cannot be written to {work}: {reason}; the ones before it are "
                "kept: mend this and give the same command again"
            ) from error
        finally:
            self._is_writing = False
        if ranks.rank() == 0:
            keep_newest(work, self.args.save_total_limit or 1)

    def _save_rng_state(self, output_dir: str) -> None:
        """As the Trainer's, and what this process has summed up since the last entry of the log."""
        super()._save_rng_state(output_dir)
        summed = {
            "loss": self._tr_loss.item(),
            "logged_loss": self._total_loss_scalar,
            "logged_step": self._globalstep_last_logged,
        }
        write_json(_sums_file(output_dir), summed)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As the Trainer's, which calls it before the first step; and what was summed up since the last entry."""
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            summed = json.loads(_sums_file(checkpoint).read_text(encoding="utf-8"))
            self._tr_loss = torch.tensor(summed["loss"], dtype=self._tr_loss.dtype, device=self._tr_loss.device)
            self._total_loss_scalar = summed["logged_loss"]
            self._globalstep_last_logged = summed["logged_step"]


class StepEnd(TrainerCallback):
    """After every optimiser step: what was skipped is told, and a signal that any process has got ends the run."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the intervals of this run, not those of the one that wrote the checkpoint."""
        state.compute_steps(args, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Agree with the other processes."""
        watch = self.trainer.signals
        received, skipped = ranks.maxima([watch.received, len(self.trainer.new_skips)], args.device)
        if skipped:
            self.trainer.note_skips()
        if received:
            watch.received = received
            control.should_save = control.should_training_stop = True


class LatestIterator:
    """The iterator that a loader has made last, to be ended where a run leaves an epoch before its end.

    Left to the search for garbage, an iterator loses its queues before it can tell its processes to end, and waits five
    seconds for each of them: too long for a run that a scheduler wants to be gone.
    """

    def __init__(self, loader: DataLoader) -> None:
        self._iterator: Any = None
        make = loader._get_iterator

        def make_and_keep() -> Any:
            self._iterator = make()
            return self._iterator

        loader._get_iterator = make_and_keep  # type: ignore[method-assign]

    def end(self) -> None:
        """End its processes."""
        shut_down = getattr(self._iterator, "_shutdown_workers", None)  # there are none in a loader without processes
        self._iterator = None
        if shut_down is not None:
            shut_down()


def _sums_file(checkpoint: str) -> Path:
    return Path(checkpoint, f"summed_{ranks.rank()}.json")


@contextmanager
def telling_of_ended_workers(workers: int) -> Iterator[None]:
    """Turn torch's error about a process that loads data and is no more, which may come at any moment, into one line.

    Raises:
        OSError: with what can be done.
    """
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if not reason.startswith("DataLoader worker"):
            raise
        raise OSError(
            f"one of {workers} processes that load data has ended ({reason}), often for want of memory; give the same "
            f"command again with fewer, such as workers={workers // 2}, to go on from the newest checkpoint"
        ) from error


def _begin_loading(begin: Callable[[int], None] | None, worker: int) -> None:
    leave_signals_to_the_run()
    if begin is not None:
        begin(worker)
