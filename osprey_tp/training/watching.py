"""What people watch while a run goes on: progress, trackers, held-out scores; and what stops it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.integrations import TensorBoardCallback, is_deepspeed_zero3_enabled
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as transformers_logging

from osprey_tp.training.arguments import RunSettings
from osprey_tp.training.collator import RECORD_IDS
from osprey_tp.training.held_out import Answered, HeldOut, HeldOutScorer, Processes, Scores, undisturbed
from osprey_tp.training.loss_guard import LossGuard
from osprey_tp.training.progress import ProgressReport
from osprey_tp.training.throughput import Throughput
from osprey_tp.training.trackers import TensorBoardFolder

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from osprey_tp.modeling import OspreyTPForConditionalGeneration

LOGGED = (
    *("step", "loss", "learning_rate", "grad_norm", "tokens", "padding_share"),
    *("tokens_per_second", "samples_per_second", "peak_memory_gib"),
)
"""What an entry of the loss log holds, where it is known."""


class RestartsThroughput(TrainerCallback):
    """Takes for no part of the training what comes before its first batch is loaded."""

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to measure."""
        self.throughput.restart()


class ScoresHeldOut(TrainerCallback):
    """Asks the Trainer to evaluate after every `every` optimiser steps, and after the last."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Set what the Trainer looks at before it goes on."""
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            control.should_evaluate = True


class WatchedTrainer(Trainer):
    """A Trainer that tells how far and how fast it is, scores held-out samples, and stops where the loss goes astray.

    Attributes:
        settings: The run; whoever derives from this class sets it before `__init__`.
        whole_model: The model, not wrapped for several processes; set there too.
        held_out: What `score_while_training` was given.
    """

    settings: RunSettings
    whole_model: OspreyTPForConditionalGeneration
    held_out: HeldOut | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._throughput = Throughput(self.args.device)
        self._no_training_since = self._throughput.now()
        self._guard = LossGuard(self.settings.spike_factor, watches_gradients=self.settings.precision != "fp16")
        self._progress = ProgressReport()
        for replaced in (ProgressCallback, PrinterCallback):
            self.remove_callback(replaced)
        self.add_callback(RestartsThroughput(self._throughput))
        self.add_callback(self._progress)
        if self.pop_callback(TensorBoardCallback) is not None:
            self.add_callback(TensorBoardFolder())

    def score_while_training(self, held_out: HeldOut) -> None:
        """Score these samples every `evaluate_every` optimiser steps and after the last."""
        self.held_out = held_out
        self.add_callback(ScoresHeldOut(self.settings.evaluate_every))

    @property
    def loss_log(self) -> list[dict[str, float]]:
        """One entry for every `log_every` steps, those before a resumption too; see `LOGGED`."""
        return [
            {name: entry[name] for name in LOGGED if name in entry}
            for entry in self.state.log_history
            if "loss" in entry
        ]

    @property
    def held_out_log(self) -> list[Scores]:
        """The scores of every scoring of held-out samples, those before a resumption too, each with its step."""
        return [
            {"step": entry["step"]}
            | {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
            for entry in self.state.log_history
            if "eval_loss" in entry
        ]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; the one progress bar of the run is closed whatever happens."""
        others_shown = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()
        try:
            return super().train(*args, **kwargs)
        finally:
            self._progress.close()
            if others_shown:
                transformers_logging.enable_progress_bar()

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the Trainer's; batch and loss are noted without waiting for the device."""
        self._throughput.count(inputs["attention_mask"])
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._guard.note_batch(self.state.global_step + 1, loss, inputs.get(RECORD_IDS, ()))
        return loss

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return super()._prepare_inputs({name: value for name, value in inputs.items() if name != RECORD_IDS})

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._guard.note_gradient_norm(norm)
        return norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Look at the losses wherever the Trainer is about to wait for the device, before anything is written."""
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            logged = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
            newest_checkpoint = partial(get_last_checkpoint, str(self.args.output_dir))
            self._guard.check(logged, self.accelerator.gather, _gathered, newest_checkpoint)
        self._no_training_since = self._throughput.now()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._leave_out_of_throughput()

    def _leave_out_of_throughput(self) -> None:
        """What has been scored or saved since this was last called, in this step, is no training."""
        self._throughput.leave_out(self._no_training_since)
        self._no_training_since = self._throughput.now()

    def _save_rng_state(self, output_dir: str) -> None:
        """As the Trainer's; beside it, what this process has counted since the last entry of the loss log."""
        super()._save_rng_state(output_dir)
        self._leave_out_of_throughput()
        self._counts_file(output_dir).write_text(json.dumps(self._throughput.state()), encoding="utf-8")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As the Trainer's, which calls it before the first step of a resumed run; and counts on."""
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and self._counts_file(checkpoint).is_file():
            self._throughput.resume(json.loads(self._counts_file(checkpoint).read_text(encoding="utf-8")))

    def _counts_file(self, checkpoint: str) -> Path:
        return Path(checkpoint, f"counts_{self.args.process_index}.json")

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's; entries of the loss log say how fast the run goes, too. All processes call it."""
        if "loss" in logs:
            logs |= self._throughput.report(self.accelerator.gather)
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score the held-out samples: log the scores, show them with the first answers; training is not disturbed.

        Raises:
            ValueError: if there are none, or one of them cannot be used.
        """
        if self.held_out is None:
            raise ValueError("there are no held-out samples to score; name their folders as held_out")
        begin = time.monotonic()
        with undisturbed(self.whole_model), self.accelerator.autocast():
            scores, answers = self._scorer(self.held_out).score()
        metrics = {f"eval_{name}": value for name, value in scores.items()}
        self.log(metrics | {"eval_seconds": time.monotonic() - begin})
        if self.is_world_process_zero():
            self.held_out.show(self.held_out_log, _shown(self.held_out, answers))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _scorer(self, held_out: HeldOut) -> HeldOutScorer:
        def on_batch() -> None:
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

        processes = Processes(
            rank=self.args.process_index,
            count=self.args.world_size,
            in_step=self.args.world_size > 1 and is_deepspeed_zero3_enabled(),
            gather=_gathered,
        )
        return HeldOutScorer(
            self.whole_model,
            self.data_collator.processor,  # type: ignore[union-attr]  # a ConversationCollator
            held_out,
            self.args.per_device_train_batch_size,
            self._prepare_inputs,
            processes,
            on_batch,
        )


def _shown(held_out: HeldOut, answers: Mapping[int, tuple[str, bool | None]]) -> list[Answered]:
    samples = ((held_out.sample(place), answer) for place, answer in answers.items())
    return [Answered(sample["id"], sample["conversation"], *answer) for sample, answer in samples]


_gathered: Callable[[list[Any]], list[Any]] = gather_object
