"""Questions as pictures with their regions, answers and scores; long galleries are folded into pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from eval.labels import UNBOUNDED, label_of, percent
from eval.metrics import Scoring
from eval.pictures import gallery_picture
from eval.predictions import Prediction
from eval.questions import Question
from eval.report import Details, Gallery, GalleryItem, Section
from eval.tasks import Task

PAGE_SIZE = 12
PAGES = 4
GOOD, MIDDLE = 0.75, 0.25


def galleries(
    task: Task, questions: Sequence[Question], predictions: Mapping[str, Prediction], scoring: Scoring
) -> list[Section]:
    """Answers with the lowest and with the highest scores, each from different pictures where there are enough."""
    measure = next((measure for measure in scoring.measures if measure.name == task.headline), None)
    if measure is None:
        return []
    values = {question.id: float(value) for question, value in zip(questions, measure.values, strict=True)}
    ordered = sorted(
        (question for question in questions if not np.isnan(values[question.id])), key=lambda item: values[item.id]
    )
    size = min(PAGE_SIZE * PAGES, -(-len(ordered) // 2))
    worst = _one_a_picture(ordered)[:size]
    shown = {question.id for question in worst}
    best = _one_a_picture([question for question in reversed(ordered) if question.id not in shown])[:size]
    note = f"Ordered by {label_of(task.headline)}, one region a picture where there are enough."

    def items(chosen: Sequence[Question]) -> list[GalleryItem]:
        bounded = task.headline not in UNBOUNDED
        return [gallery_item(question, predictions[question.id], values[question.id], bounded) for question in chosen]

    return [*paged("Lowest scores", items(worst), note), *paged("Highest scores", items(best))]


def paged(title: str, items: Sequence[GalleryItem], note: str = "") -> list[Section]:
    """The first items in the open, the others folded away, a dozen a page; nothing for no items."""
    pages = [items[start : start + PAGE_SIZE] for start in range(0, len(items), PAGE_SIZE)]
    sections: list[Section] = [Gallery(title, page, note) for page in pages[:1]]
    for number, page in enumerate(pages[1:], start=1):
        first = number * PAGE_SIZE + 1
        places = f"{first} to {first + len(page) - 1}" if len(page) > 1 else f"{first}"
        sections.append(Details(f"{title}, {places}", [Gallery("", page)]))
    return sections


def _one_a_picture(ordered: Sequence[Question]) -> list[Question]:
    """The list with the first of each picture before all others."""
    first_of_picture: dict[str, Question] = {}
    for question in ordered:
        first_of_picture.setdefault(question.image, question)
    different = list(first_of_picture.values())
    others = [question for question in ordered if first_of_picture[question.image] is not question]
    return [*different, *others]


def gallery_item(question: Question, prediction: Prediction, value: float, bounded: bool = True) -> GalleryItem:
    """One question with its picture, answer, references and score."""
    return GalleryItem(
        picture=question_picture(question),
        lines=[
            *([("", prediction.question)] if prediction.question else []),
            *([("expression", question.facts["expression"])] if "expression" in question.facts else []),
            ("answer", prediction.prediction.strip() or "(empty)"),
            ("reference", " / ".join(question.references)),
            ("region", region_size(question, prediction.region_cells)),
        ],
        badge=percent(value),
        tone=_tone(value) if bounded else "plain",
    )


def question_picture(question: Question) -> bytes:
    """The question's picture with its regions outlined, as JPEG."""
    from osprey_tp.images import load_image
    from osprey_tp.masks import to_mask

    masks = [to_mask(region, question.height, question.width) for region in question.regions]
    return gallery_picture(load_image(question.image_path), masks)


def region_size(question: Question, cells: float | None) -> str:
    """The size of the question's regions in words."""
    share = question.area_share
    size = "the whole picture" if share is None else f"{100 * share:.2g}% of the picture"
    if cells is None:
        return size
    return f"{cells:,.0f} cells, {size}" if cells >= 100 else f"{cells:.3g} cells, {size}"


def _tone(value: float) -> Literal["good", "middle", "bad"]:
    return "good" if value >= GOOD else "middle" if value >= MIDDLE else "bad"
