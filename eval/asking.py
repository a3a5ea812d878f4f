"""Ways to ask: from questions about open pictures to predictions.

An *asker* takes the model and a batch of questions, each with the session of its picture. `ASKERS` holds them by name;
tasks name one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from eval.predictions import Prediction
from eval.questions import Question
from eval.sampling import Sampling

if TYPE_CHECKING:
    from osprey_tp.tiling import Tiling

MOST_PICTURE_BYTES = 2 << 30
"""Of the pictures that are open at a time, unless it is known how much the device has."""

GREEDY: Mapping[str, Any] = MappingProxyType({"do_sample": False, "num_beams": 1})


class Session(Protocol):
    """What is needed of an `osprey_tp.sessions.ImageSession`."""

    height: int
    width: int

    def ask_groups(self, groups: Sequence[Sequence[Any]], questions: Sequence[str], **options: Any) -> list[str]:
        """One answer a group of regions."""
        ...

    def score(
        self, texts: Sequence[str], regions: Sequence[Any], question: str, *, batch_size: int, per_token: bool = False
    ) -> Any:
        """(regions, texts) log-likelihoods."""
        ...


class Describer(Protocol):
    """What is needed of an `osprey_tp.describer.RegionDescriber`."""

    def open_many(self, images: Sequence[Any], overview: str = ...) -> Sequence[Session]:
        """Encode every picture once."""
        ...

    def ask_many(self, questions: Sequence[Any], **options: Any) -> list[str]:
        """One answer to each `osprey_tp.sessions.RegionQuestion`."""
        ...

    def bytes_of(self, height: int, width: int) -> int:
        """What an open picture of this size holds."""
        ...


@dataclass
class Room:
    """What the device has turned out to have room for.

    Attributes:
        most: questions at a time.
    """

    most: int = sys.maxsize


@dataclass(frozen=True)
class Asking:
    """How to ask.

    Attributes:
        batch_size: questions asked at a time.
        max_new_tokens: longest answer.
        tiling: of the model, for sizes in cells; None where it is not known.
        decoding: options of `generate`.
        sampling: how answers are drawn instead; None for `decoding` as it is.
        room: found out while asking.
        most_picture_bytes: of pictures that are open at a time; one is always.
    """

    batch_size: int
    max_new_tokens: int
    tiling: Tiling | None = None
    decoding: Mapping[str, Any] = field(default_factory=lambda: GREEDY)
    sampling: Sampling | None = None
    room: Room = field(default_factory=Room)
    most_picture_bytes: int = MOST_PICTURE_BYTES

    def options(self, batch: Sequence[Shown]) -> dict[str, Any]:
        """Options of `generate` for one batch, which has to be generated at once."""
        if self.sampling is None:
            return dict(self.decoding)
        return dict(self.decoding) | self.sampling.options([item.key for item in batch])


@dataclass(frozen=True)
class Shown:
    """A question, and the question whose regions are shown for it: itself, or another one in the control."""

    question: Question
    shown: Question

    @property
    def key(self) -> str:
        """What sampling depends on beside its seed."""
        return self.question.id if self.shown is self.question else f"{self.question.id} shown {self.shown.id}"


@dataclass(frozen=True)
class Posed:
    """A question with the session that it is asked of."""

    session: Session
    item: Shown


Asker = Callable[[Describer, Sequence[Posed], Asking], list[Prediction]]


def ask_for_answers(describer: Describer, posed: Sequence[Posed], asking: Asking) -> list[Prediction]:
    """The model's own words for each question.

    Raises:
        ValueError: there came another number of answers than was asked for.
    """
    answers = _greedy_answers(describer, posed, asking) if asking.sampling is None else _drawn_answers(posed, asking)
    if len(answers) != len(posed):
        raise ValueError(f"{len(posed)} questions, {len(answers)} answers (first question {posed[0].item.question.id})")
    return [prediction_of(one.item, answer, asking) for one, answer in zip(posed, answers, strict=True)]


def _greedy_answers(describer: Describer, posed: Sequence[Posed], asking: Asking) -> list[str]:
    """Answers to questions about any pictures, in shared batches."""
    from osprey_tp.sessions import RegionQuestion

    questions: list[Any] = [
        RegionQuestion(one.session, one.item.shown.regions, one.item.question.text)  # type: ignore[arg-type]
        for one in posed
    ]
    return describer.ask_many(
        questions, batch_size=asking.batch_size, max_new_tokens=asking.max_new_tokens, **asking.decoding
    )


def _drawn_answers(posed: Sequence[Posed], asking: Asking) -> list[str]:
    """Answers that are drawn, picture by picture: `generate` is told whose draws it makes, a batch at a time."""
    from osprey_tp.describer import MOST_COPIES

    most = min(asking.batch_size, MOST_COPIES)
    answers: list[str] = []
    for session, items in by_picture(posed):
        for start in range(0, len(items), most):
            batch = items[start : start + most]
            answers += session.ask_groups(
                [item.shown.regions for item in batch],
                [item.question.text for item in batch],
                batch_size=most,
                max_new_tokens=asking.max_new_tokens,
                **asking.options(batch),
            )
    return answers


def by_picture(posed: Sequence[Posed]) -> Iterator[tuple[Session, list[Shown]]]:
    """The sessions, each with its questions, in order."""
    for _, group in groupby(posed, key=lambda one: id(one.session)):
        of_picture = list(group)
        yield of_picture[0].session, [one.item for one in of_picture]


def prediction_of(item: Shown, answer: str, asking: Asking, scores: Sequence[float] = ()) -> Prediction:
    """What is written down about an answer."""
    question = item.question
    return Prediction(
        id=question.id,
        prediction=answer,
        question=question.text,
        references=question.references,
        image=question.image,
        area_share=question.area_share,
        region_cells=None if asking.tiling is None else question.cells(asking.tiling),
        shown_region=None if item.shown is question else item.shown.id,
        scores=tuple(scores),
    )


def _rank_candidates(describer: Describer, posed: Sequence[Posed], asking: Asking) -> list[Prediction]:
    from eval.candidates import rank_candidates

    return [made for session, items in by_picture(posed) for made in rank_candidates(session, items, asking)]


def _choose_regions(describer: Describer, posed: Sequence[Posed], asking: Asking) -> list[Prediction]:
    from eval.grounding import choose_regions

    return [made for session, items in by_picture(posed) for made in choose_regions(session, items, asking)]


ASKERS: dict[str, Asker] = {"answers": ask_for_answers, "candidates": _rank_candidates, "regions": _choose_regions}
