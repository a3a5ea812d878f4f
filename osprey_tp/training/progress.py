"""What is seen of a run while it goes on: one bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, TextIO

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ProgressReport(TrainerCallback):
    """One bar in the first process; where its stream is no terminal, one line for every entry of the loss log.

    Args:
        stream: Where to write; standard error, as it is when training begins, by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._bar: tqdm[Any] | None = None
        self._shows = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        self._shows = state.is_world_process_zero
        self._begin, self._first = time.monotonic(), state.global_step
        if not self._shows:
            return
        self._out = self._stream or sys.stderr
        if self._out.isatty():
            self._bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc="training",
                unit="step",
                dynamic_ncols=True,
                file=self._out,
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar on."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the figures of an entry of the loss log."""
        if logs is None or "loss" not in logs or not self._shows:
            return
        elapsed = time.monotonic() - self._begin
        left = elapsed / max(1, state.global_step - self._first) * (state.max_steps - state.global_step)
        figures = f"{figures_of(logs)}, ends {clock_in(left)}"
        if self._bar is not None:
            self._bar.set_postfix_str(figures)
            return
        times = f"{tqdm.format_interval(elapsed)}<{tqdm.format_interval(left)}"
        self._say(f"training: {state.global_step}/{state.max_steps} [{times}] {figures}")

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say that held-out samples are scored, as the bar stands still meanwhile."""
        if self._bar is not None:
            self._bar.set_description("scoring held-out samples")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Say how the held-out samples scored."""
        if not self._shows:
            return
        if self._bar is not None:
            self._bar.set_description("training")
        self._say(f"held out, step {state.global_step}: {scores_of(metrics or {})}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Leave the bar as it is, and the cursor on the line below."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _say(self, line: str) -> None:
        """Write a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(line, file=self._out)
        else:
            self._out.write(line + "\n")
            self._out.flush()


def figures_of(logs: Mapping[str, float]) -> str:
    """An entry of the loss log in words."""
    words = [f"loss {logs['loss']:.4g}"]
    if "tokens_per_second" in logs:
        words += [
            f"{logs['tokens_per_second']:,.0f} tokens/s",
            f"{logs['samples_per_second']:.3g} samples/s",
            f"padding {100 * logs['padding_share']:.1f}%",
            f"peak {logs['peak_memory_gib']:.1f} GiB",
        ]
    return ", ".join(words)


def scores_of(metrics: Mapping[str, float]) -> str:
    """The scores of held-out samples in words."""
    words = [f"loss {metrics['eval_loss']:.4g}"] if "eval_loss" in metrics else []
    if "eval_exact_match" in metrics:
        share, count = 100 * metrics["eval_exact_match"], metrics["eval_short_answers"]
        words.append(f"{share:.1f}% of {count:.0f} short answers exact")
    return ", ".join(words)


def clock_in(seconds: float) -> str:
    """The time of day in so many seconds, with the day if that is another: `14:32`, `Tue 02:10`, `3 Jun 02:10`."""
    now = datetime.now()
    then = now + timedelta(seconds=seconds)
    if then.date() == now.date():
        return then.strftime("%H:%M")
    return then.strftime("%a %H:%M") if then - now < timedelta(days=6) else f"{then.day} {then.strftime('%b %H:%M')}"
