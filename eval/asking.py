"""Ways to ask a session: from questions about one picture to predictions.

An *asker* takes a session and a batch of questions about its picture. `ASKERS` holds them by name; tasks name one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from eval.predictions import Prediction
from eval.questions import Question
from eval.sampling import Sampling

if TYPE_CHECKING:
    from osprey_tp.tiling import Tiling

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

    def open(self, image: Any, overview: str = ...) -> Session:
        """Encode the picture once."""
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
    """

    batch_size: int
    max_new_tokens: int
    tiling: Tiling | None = None
    decoding: Mapping[str, Any] = field(default_factory=lambda: GREEDY)
    sampling: Sampling | None = None
    room: Room = field(default_factory=Room)

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


Asker = Callable[[Session, Sequence[Shown], Asking], list[Prediction]]


def ask_for_answers(session: Session, batch: Sequence[Shown], asking: Asking) -> list[Prediction]:
    """The model's own words for each question.

    Raises:
        ValueError: the session gave another number of answers than it was asked for.
    """
    answers = session.ask_groups(
        [item.shown.regions for item in batch],
        [item.question.text for item in batch],
        batch_size=asking.batch_size,
        max_new_tokens=asking.max_new_tokens,
        **asking.options(batch),
    )
    if len(answers) != len(batch):
        raise ValueError(f"{len(batch)} questions, {len(answers)} answers (first question {batch[0].question.id})")
    return [prediction_of(item, answer, asking) for item, answer in zip(batch, answers, strict=True)]


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


def _rank_candidates(session: Session, batch: Sequence[Shown], asking: Asking) -> list[Prediction]:
    from eval.candidates import rank_candidates

    return rank_candidates(session, batch, asking)


def _choose_regions(session: Session, batch: Sequence[Shown], asking: Asking) -> list[Prediction]:
    from eval.grounding import choose_regions

    return choose_regions(session, batch, asking)


ASKERS: dict[str, Asker] = {"answers": ask_for_answers, "candidates": _rank_candidates, "regions": _choose_regions}
