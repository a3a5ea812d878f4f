"""Asks a model every question, one picture at a time, and keeps each answer on the disk as soon as it is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from eval.predictions import Prediction, PredictionLog
from eval.questions import RegionQuestion, shuffled_regions

if TYPE_CHECKING:
    from osprey_tp.tiling import Tiling

PREDICTIONS_FILE = "predictions.jsonl"
CONTROL_FILE = "predictions_shuffled.jsonl"
GREEDY: Mapping[str, Any] = {"do_sample": False, "num_beams": 1}


class Session(Protocol):
    """What is needed of an `osprey_tp.sessions.ImageSession`."""

    height: int
    width: int

    def ask(self, regions: Sequence[Any], question: str, **options: Any) -> list[str]:
        """One answer a region."""
        ...


class Describer(Protocol):
    """What is needed of an `osprey_tp.sessions.RegionDescriber`."""

    def open(self, image: Any) -> Session:
        """Encode the picture once."""
        ...


@dataclass(frozen=True)
class Asking:
    """How to ask: the question with its `<mask>`, regions a batch, longest answer in tokens, the tiling (for sizes)."""

    question: str
    batch_size: int
    max_new_tokens: int
    tiling: Tiling | None = None


@dataclass(frozen=True)
class _Control:
    """Where answers about shuffled regions go, and the seed of the shuffling."""

    log: PredictionLog
    seed: int


@dataclass(frozen=True)
class _Pending:
    """A question that has no answer yet, and the question whose region is shown for it."""

    question: RegionQuestion
    shown: RegionQuestion
    log: PredictionLog


def ask_all(
    questions: Sequence[RegionQuestion],
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
        questions: those of one picture side by side, as `collect_questions` returns them.
        describer: the model.
        out: folder of the results.
        asking: question, batch size, longest answer, tiling.
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
                for answered in _ask_picture(plan, describer, asking):
                    bar.update(answered)


def _pending(
    questions: list[RegionQuestion], wanted: set[str], log: PredictionLog, control: _Control | None
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


def _ask_picture(plan: list[_Pending], describer: Describer, asking: Asking) -> Iterator[int]:
    """Ask what is pending about one picture, in batches; yields how many answers each batch brought."""
    if not plan:
        return
    first = plan[0].question
    session = describer.open(first.image_path)
    for item in plan:
        if (session.height, session.width) != (item.question.height, item.question.width):
            raise ValueError(
                f"{item.question.image} is {session.height}x{session.width} pixels, its record says "
                f"{item.question.height}x{item.question.width} (region {item.question.id}); prepare the data again"
            )
    for start in range(0, len(plan), asking.batch_size):
        batch = plan[start : start + asking.batch_size]
        answers = session.ask(
            [item.shown.segmentation for item in batch],
            asking.question,
            batch_size=asking.batch_size,
            max_new_tokens=asking.max_new_tokens,
            **GREEDY,
        )
        if len(answers) != len(batch):
            raise ValueError(f"{len(batch)} regions, {len(answers)} answers (first region {batch[0].question.id})")
        predictions = [_prediction(item, answer, asking) for item, answer in zip(batch, answers, strict=True)]
        for log in dict.fromkeys(item.log for item in batch):
            log.append([made for made, item in zip(predictions, batch, strict=True) if item.log is log])
        yield len(batch)


def _prediction(item: _Pending, answer: str, asking: Asking) -> Prediction:
    question = item.question
    return Prediction(
        id=question.id,
        prediction=answer,
        question=asking.question,
        references=question.references,
        image=question.image,
        area_share=question.area_share,
        region_cells=None if asking.tiling is None else question.cells(asking.tiling),
        shown_region=None if item.shown is question else item.shown.id,
    )
