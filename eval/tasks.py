"""The evaluation tasks. A task says what is asked about a region, what the right answers are, and how they are scored.

To add a task, write which questions come from a record, and enter it in `TASKS`. New kinds of scores go to
`eval.metrics.SCORERS`, new ways of asking to `eval.asking.ASKERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eval.grounding import about_each_expression
from eval.open_questions import open_questions
from eval.questions import Question, region_question
from eval.segmentation import about_each_segment
from osprey_tp.prompts import (
    CATEGORY_QUESTION,
    DETAILED_DESCRIPTION_QUESTION,
    DOTTED_OVERVIEW,
    OPEN_VOCABULARY_QUESTION,
    OVERVIEW,
    SHORT_DESCRIPTION_QUESTION,
)

if TYPE_CHECKING:
    from data_pipelines.records import RegionRecord


NEEDS: dict[str, str] = {
    "judge": "a judge: an OpenAI-compatible endpoint (--judge URL --judge-model NAME)",
    "references": "reference answers (--references FILE)",
    "contexts": "what the pictures show, in words, for the judge (--contexts FILE)",
    "java": "a Java runtime, for METEOR",
    "sentence-bert": "a SentenceBERT folder, for Semantic Similarity (--sentence-bert DIR)",
}
"""What a task may need or use beside a model and data, and how that is said to people."""

QuestionMaker = Callable[["RegionRecord", Path, str], Iterator[Question]]
"""Record, file of its picture, text of the question -> what is asked."""


VERBATIM = "verbatim"
"""The kind of tasks whose answers no profile normalises."""


@dataclass(frozen=True)
class Task:
    """One evaluation task.

    Attributes:
        name: as on the command line.
        summary: one line for `python -m eval list`.
        question: asked of every region, with one `<mask>`; "" where each record brings its own.
        max_new_tokens: longest answer, in tokens.
        kind: which rules of a profile normalise the answers; `VERBATIM` for none.
        questions: what is asked of a record; nothing leaves the record out.
        scorers: keys of `eval.metrics.SCORERS`.
        headline: the measure by which answers are ordered in the report.
        needed: what the data must hold, for the message when it does not.
        asker: key of `eval.asking.ASKERS`: how a session is asked.
        overview: the sentence between the picture and every question.
        needs: what the task needs beside a model and data, keys of `NEEDS`.
        uses: what the task does more with, keys of `NEEDS`.
        asked_with_references: what is asked besides where a file gives the right answers.
        settings: what options of the command changed about it, for `run.json` and `metrics.json`.
        can_shuffle: whether the region-blind control means something.
    """

    name: str
    summary: str
    question: str
    max_new_tokens: int
    kind: Literal["category", "caption", "verbatim"]
    questions: QuestionMaker
    scorers: tuple[str, ...]
    headline: str
    needed: str
    asker: str = "answers"
    overview: str = OVERVIEW
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    asked_with_references: QuestionMaker | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    can_shuffle: bool = True


def about_each_region(references: Callable[[RegionRecord, int], tuple[str, ...]]) -> QuestionMaker:
    """One question about every region that has references (record and index of the region from 0 -> right answers)."""

    def questions(record: RegionRecord, image_path: Path, text: str) -> Iterator[Question]:
        for index in range(len(record.regions)):
            right = references(record, index)
            if right:
                yield region_question(record, index, image_path, text, right)

    return questions


def each_of(*makers: QuestionMaker) -> QuestionMaker:
    """What all of the makers ask of a record."""

    def questions(record: RegionRecord, image_path: Path, text: str) -> Iterator[Question]:
        for maker in makers:
            yield from maker(record, image_path, text)

    return questions


def name_references(record: RegionRecord, index: int) -> tuple[str, ...]:
    """The region's name."""
    name = record.regions[index].name.strip()
    return (name,) if name else ()


def description_references(record: RegionRecord, index: int) -> tuple[str, ...]:
    """The answers to the source's own question about the region: a user's turn that is its reference alone.

    A last question that nobody has answered has no answers.
    """
    asked = f"<region{index + 1}>"
    answers = [
        answer.text.strip()
        for question, answer in zip(record.turns[::2], record.turns[1::2], strict=False)
        if question.text.strip() == asked
    ]
    return tuple(dict.fromkeys(answer for answer in answers if answer))


def _pope_questions(record: RegionRecord, image_path: Path, text: str) -> Iterator[Question]:
    from eval.pope import pope_questions

    return pope_questions(record, image_path, text)


def _dlc_questions(record: RegionRecord, image_path: Path, text: str) -> Iterator[Question]:
    from eval.dlc_bench import dlc_questions

    return dlc_questions(record, image_path, text)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="referring-classification",
            summary="name the category of each region: Semantic IoU, exact match, Semantic Similarity, attributes",
            question=CATEGORY_QUESTION,
            max_new_tokens=32,
            kind="category",
            questions=about_each_region(name_references),
            scorers=("words", "attributes", "semantic_similarity"),
            headline="semantic_iou",
            needed="regions with a name",
            uses=("sentence-bert",),
        ),
        Task(
            name="region-caption",
            summary="describe each region in a short phrase: METEOR, CIDEr, BLEU, ROUGE-L, Semantic Similarity",
            question=SHORT_DESCRIPTION_QUESTION,
            max_new_tokens=64,
            kind="caption",
            questions=about_each_region(description_references),
            scorers=("captions", "semantic_similarity"),
            headline="CIDEr",
            needed="turns that describe a region: the user's <region1> alone, answered by the description",
            uses=("java", "sentence-bert"),
        ),
        Task(
            name="description",
            summary="describe each region in detail; a judge rates answer and reference: relative score",
            question=DETAILED_DESCRIPTION_QUESTION,
            max_new_tokens=512,
            kind="verbatim",
            questions=about_each_region(description_references),
            asked_with_references=open_questions,
            scorers=("ratings",),
            headline="relative_score",
            needed="descriptions of regions (the user's <region1> alone, answered), or open questions and references",
            needs=("judge",),
            uses=("references", "contexts"),
        ),
        Task(
            name="ferret-bench",
            summary="answer open questions about regions; a judge rates answer and reference: relative score",
            question="",
            max_new_tokens=512,
            kind="verbatim",
            questions=open_questions,
            scorers=("ratings",),
            headline="relative_score",
            needed="questions about regions that nobody has answered, as in Ferret-Bench",
            needs=("judge", "references"),
            uses=("contexts",),
        ),
        Task(
            name="dlc-bench",
            summary="describe each region in detail; a judge answers questions from that: positive, negative, average",
            question=DETAILED_DESCRIPTION_QUESTION,
            max_new_tokens=512,
            kind="verbatim",
            questions=_dlc_questions,
            scorers=("dlc_bench",),
            headline="dlc_average",
            needed="regions with questions for a judge, as in DLC-Bench",
            needs=("judge",),
        ),
        Task(
            name="pope",
            summary="yes or no, is the object in the picture: accuracy, precision, recall, F1, yes-ratio",
            question="",
            max_new_tokens=64,
            kind="verbatim",
            questions=_pope_questions,
            scorers=("pope",),
            headline="accuracy",
            needed="questions about whole pictures labelled yes or no, as in POPE",
            overview="",
        ),
        Task(
            name="open-vocab-segmentation",
            summary="classify true segments in the model's own words: PQ, SQ, RQ, AP, mIoU",
            question=OPEN_VOCABULARY_QUESTION,
            max_new_tokens=32,
            kind="category",
            questions=about_each_segment,
            scorers=("segments_by_similarity", "words"),
            headline="class_accuracy",
            needed="regions with a name, best of the sources panoptic and cityscapes",
            uses=("sentence-bert",),
            overview=DOTTED_OVERVIEW,
        ),
        Task(
            name="grounding",
            summary="find the region that an expression means: accuracy at IoU 0.5, cIoU, mIoU",
            question=SHORT_DESCRIPTION_QUESTION,
            max_new_tokens=1,
            kind="caption",
            questions=about_each_expression,
            scorers=("grounding",),
            headline="mIoU",
            needed="turns that describe a region: the user's <region1> alone, answered by the expression",
            asker="regions",
            can_shuffle=False,
        ),
    )
}
