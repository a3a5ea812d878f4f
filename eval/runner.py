"""Asks a model every question, one picture at a time, and keeps each answer on the disk as soon as it is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from eval.asking import ASKERS, Asking, Describer, Shown
from eval.predictions import PredictionLog
from eval.questions import Question, shuffled_regions
from eval.tasks import Task

PREDICTIONS_FILE = "predictions.jsonl"
CONTROL_FILE = "predictions_shuffled.jsonl"


@dataclass(frozen=True)
class _Control:
    """Where answers about shuffled regions go, and the seed of the shuffling."""

    log: PredictionLog
    seed: int


@dataclass(frozen=True)
class _Pending(Shown):
    """A question that has no answer yet."""

    log: PredictionLog


def ask_all(
    task: Task,
    questions: Sequence[Question],
    describer: Describer,
    out: Path,
    asking: Asking,
    *,
    limit: int | None = None,
    shuffle_seed: int | None = None,
    progress: bool = True,
) -> None:
    """Answer every question, or the first `limit` of them, that `out` does not hold yet.

    Answers go to `predictions.jsonl`. With `shuffle_seed`, the same questions are asked once more with regions
    shuffled within each picture (`predictions_shuffled.jsonl`); questions whose picture has no other region are left
    out there. Each picture is opened once for both.

    Args:
        task: says how to ask.
        questions: those of one picture side by side, as `collect_questions` returns them.
        describer: the model.
        out: folder of the results.
        asking: batch size, longest answer, tiling, decoding.
        limit: how many questions; those left out still take part in the shuffling of their picture.
        shuffle_seed: seed of the control; None for no control.
        progress: show regions/s and the time left on stderr.

    Raises:
        ValueError: a picture has another size than its record says, or the session gave another number of answers
            than it was asked for. Answers so far are kept.
    """
    from tqdm import tqdm

    with ExitStack() as stack:
        log = stack.enter_context(PredictionLog(out / PREDICTIONS_FILE))
        control = None
        if shuffle_seed is not None:
            control = _Control(stack.enter_context(PredictionLog(out / CONTROL_FILE)), shuffle_seed)
        wanted = {question.id for question in questions[:limit]}
        by_picture = groupby(questions, key=lambda question: question.image)
        plans = [_pending(list(group), wanted, log, control) for _, group in by_picture]
        total = sum(len(plan) for plan in plans)
        with tqdm(total=total, unit="region", desc="asking", disable=not progress, smoothing=0.1) as bar:
            for plan in plans:
                for answered in _ask_picture(task, plan, describer, asking):
                    bar.update(answered)


def _pending(
    questions: list[Question], wanted: set[str], log: PredictionLog, control: _Control | None
) -> list[_Pending]:
    """What is still to be asked about one picture."""
    asked = [question for question in questions if question.id in wanted]
    pending = [_Pending(question, question, log) for question in asked if question.id not in log]
    if control is not None:
        shown = shuffled_regions(questions, control.seed)
        pending += [
            _Pending(question, shown[question.id], control.log)
            for question in asked
            if question.id in shown and question.id not in control.log
        ]
    return pending


def _ask_picture(task: Task, plan: list[_Pending], describer: Describer, asking: Asking) -> Iterator[int]:
    """Ask what is pending about one picture, in batches; yields how many answers each batch brought."""
    if not plan:
        return
    first = plan[0].question
    session = describer.open(first.image_path, task.overview)
    for item in plan:
        if (session.height, session.width) != (item.question.height, item.question.width):
            raise ValueError(
                f"{item.question.image} is {session.height}x{session.width} pixels, its record says "
                f"{item.question.height}x{item.question.width} (question {item.question.id}); prepare the data again"
            )
    for start in range(0, len(plan), asking.batch_size):
        batch = plan[start : start + asking.batch_size]
        predictions = ASKERS[task.asker](session, batch, asking)
        for log in dict.fromkeys(item.log for item in batch):
            log.append([made for made, item in zip(predictions, batch, strict=True) if item.log is log])
        yield len(batch)
