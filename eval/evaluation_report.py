"""The report page of one evaluation, from what `metrics.json` holds and the answers themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from eval.figures import Panel, Point, ScoreRow, panel_figure, score_figure
from eval.metrics import Scoring
from eval.pictures import gallery_picture
from eval.predictions import Prediction
from eval.questions import Question
from eval.report import (
    Details,
    Figure,
    Gallery,
    GalleryItem,
    KeyFigure,
    KeyFigures,
    Section,
    Table,
    Text,
    render_page,
)
from eval.tasks import Task

LABELS = {
    "semantic_iou": "Semantic IoU",
    "exact_match": "Exact match",
    "texture": "Texture",
    "colour": "Colour",
    "shape": "Shape",
    "all_attributes": "All three",
    "semantic_similarity": "Semantic Similarity",
    "ROUGE_L": "ROUGE-L",
    "Bleu_1": "BLEU-1",
    "Bleu_2": "BLEU-2",
    "Bleu_3": "BLEU-3",
    "Bleu_4": "BLEU-4",
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "yes_ratio": "Yes-ratio",
    "relative_score": "Relative score",
    "dlc_average": "Average",
    "dlc_positive": "Positive",
    "dlc_negative": "Negative",
    "dlc_recognition": "Recognised",
}
UNBOUNDED = {"CIDEr", "relative_score"}
LEFT_OUT_OF_PANELS = {"Bleu_1", "Bleu_2", "Bleu_3"}
MOST_PANELS = 6
GALLERY_SIZE = 12
GOOD, MIDDLE = 0.75, 0.25
NOTHING = "–"


def label_of(measure: str) -> str:
    """How a measure is written in reports."""
    return LABELS.get(measure, measure)


def percent(value: float | None) -> str:
    """A score × 100 with one decimal, as papers give it."""
    return NOTHING if value is None else f"{100 * value:.1f}"


def percent_with_interval(row: Mapping[str, Any] | None) -> str:
    """A score × 100 and its interval."""
    if row is None:
        return NOTHING
    interval = "" if row["low"] is None else f"  [{percent(row['low'])}, {percent(row['high'])}]"
    return percent(row["value"]) + interval


def evaluation_page(
    metrics: Mapping[str, Any],
    task: Task,
    questions: Sequence[Question],
    predictions: Mapping[str, Prediction],
    scoring: Scoring,
) -> str:
    """The whole page as HTML text."""
    counts = metrics["counts"]
    asked = metrics["model"]["folder"] if "model" in metrics else metrics["predictions"]["file"]
    subtitle = (
        f"{asked} on {metrics['data']['folder']}. Regions: {counts['regions']:,}; pictures: {counts['images']:,}; "
        f"empty answers (counted as wrong): {counts['empty_answers']:,}. Answers are compared by the profile "
        f"“{metrics['profile']}”."
    )
    sections: list[Section] = [key_figures(metrics), score_table(metrics)]
    sections += score_figures(metrics)
    sections += galleries(task, questions, predictions, scoring)
    sections.append(Details("Settings, versions, checksums", settings_tables(metrics)))
    return render_page(task.name.replace("-", " ").capitalize(), sections, subtitle)


def key_figures(metrics: Mapping[str, Any]) -> KeyFigures:
    """The first scores as large numbers."""
    figures = []
    for name, row in list(metrics["metrics"].items())[:MOST_PANELS]:
        control = _control_row(metrics, name)
        beside = [f"shuffled {percent(control['value'])}"] if control else []
        beside += [f"chance {percent(row['chance'])}"] if "chance" in row else []
        figures.append(KeyFigure(label_of(name), percent(row["value"]), "\n".join(beside)))
    return KeyFigures(figures)


def score_table(metrics: Mapping[str, Any]) -> Table:
    """Every score with its interval, beside the control and chance; what could not be measured is named."""
    control = metrics.get("control")
    has_chance = any("chance" in row for row in metrics["metrics"].values())
    columns = ["score × 100", "model", "95% interval"]
    columns += ["shuffled regions", "expected of them"] if control else []
    columns += ["chance"] if has_chance else []
    rows = []
    for name, row in metrics["metrics"].items():
        interval = NOTHING if row["low"] is None else f"{percent(row['low'])} – {percent(row['high'])}"
        cells = [label_of(name), percent(row["value"]), interval]
        if control:
            cells += [percent_with_interval(_control_row(metrics, name)), percent(control["expected"].get(name))]
        cells += [percent(row.get("chance"))] if has_chance else []
        rows.append([*cells, f"{row['regions']:,}"])
    columns.append("regions")
    return Table("Scores", columns, rows, " ".join(_score_notes(metrics)))


def _score_notes(metrics: Mapping[str, Any]) -> list[str]:
    notes = [f"{label_of(name)} was not measured: {reason}." for name, reason in metrics["not_measured"].items()]
    notes.append("Intervals: bootstrap over pictures.")
    if "control" in metrics:
        notes.append(
            "Shuffled regions: the same model asked the same, but shown another region of the same picture; expected "
            "of them: what the right answer about the region shown would score, which exceeds chance where regions of "
            "a picture are alike."
        )
        left_out = metrics["control"]["counts"]["left_out_single_region"]
        if left_out:
            notes.append(f"{left_out:,} regions are alone in their picture and have no such control.")
    if any(name in metrics["metrics"] for name in ("semantic_iou", "exact_match")):
        notes.append(
            "Chance of Semantic IoU and exact match: answering with the name of a random region of these data."
        )
    return notes


def score_figures(metrics: Mapping[str, Any]) -> list[Section]:
    """All scores between 0 and 100 in one figure, and how they change with the size of the region."""
    rows = [
        ScoreRow(
            label_of(name),
            _point(row),
            _point(control) if (control := _control_row(metrics, name)) else None,
            100 * row["chance"] if "chance" in row else None,
        )
        for name, row in metrics["metrics"].items()
        if name not in UNBOUNDED
    ]
    sections: list[Section] = [Figure("Scores at a glance", score_figure(rows))] if rows else []
    panels = [
        Panel(
            title=label_of(name),
            groups=[f"{_size_range(row)}\nn = {row['regions']}" for row in sizes],
            points=[_point(row) for row in sizes],
            top=None if name in UNBOUNDED else 104,
            chance=100 * chance if (chance := metrics["metrics"][name].get("chance")) is not None else None,
        )
        for name, sizes in metrics["by_region_size"].items()
        if name not in LEFT_OUT_OF_PANELS
    ]
    if panels:
        caption = (
            "A cell is one patch of the vision tower on the resized picture; regions smaller than one cell are the "
            "hardest. Bars: 95% intervals. n: regions."
        )
        caption += " Dashed: chance." if any(panel.chance is not None for panel in panels) else ""
        figure = panel_figure(panels[:MOST_PANELS], "region size in cells")
        sections.append(Figure("By region size", figure, caption))
    return sections


def galleries(
    task: Task, questions: Sequence[Question], predictions: Mapping[str, Prediction], scoring: Scoring
) -> list[Section]:
    """Answers with the lowest and with the highest scores, each from different pictures where there are enough."""
    measure = next((measure for measure in scoring.measures if measure.name == task.headline), None)
    if measure is None:
        return []
    values = {question.id: float(value) for question, value in zip(questions, measure.values, strict=True)}
    ordered = sorted((question for question in questions if not np.isnan(values[question.id])), key=_by(values))
    size = min(GALLERY_SIZE, -(-len(ordered) // 2))
    worst = _one_a_picture(ordered)[:size]
    shown = {question.id for question in worst}
    best = _one_a_picture([question for question in reversed(ordered) if question.id not in shown])[:size]
    note = f"Ordered by {label_of(task.headline)}, one region a picture where there are enough."

    def items(chosen: Sequence[Question]) -> list[GalleryItem]:
        bounded = task.headline not in UNBOUNDED
        return [gallery_item(question, predictions[question.id], values[question.id], bounded) for question in chosen]

    sections: list[Section] = [Gallery("Lowest scores", items(worst), note)]
    return [*sections, Gallery("Highest scores", items(best))] if best else sections


def _by(values: Mapping[str, float]) -> Any:
    return lambda question: values[question.id]


def _one_a_picture(ordered: Sequence[Question]) -> list[Question]:
    """The list with the first of each picture before all others."""
    first_of_picture: dict[str, Question] = {}
    for question in ordered:
        first_of_picture.setdefault(question.image, question)
    different = list(first_of_picture.values())
    others = [question for question in ordered if first_of_picture[question.image] is not question]
    return [*different, *others]


def gallery_item(question: Question, prediction: Prediction, value: float, bounded: bool = True) -> GalleryItem:
    """One region with its question, answer, references and score."""
    from osprey_tp.images import load_image
    from osprey_tp.masks import to_mask

    masks = [to_mask(region, question.height, question.width) for region in question.regions]
    share = question.area_share
    size = "the whole picture" if share is None else f"{100 * share:.2g}% of the picture"
    if prediction.region_cells is not None:
        cells = prediction.region_cells
        size = f"{cells:,.0f} cells, {size}" if cells >= 100 else f"{cells:.3g} cells, {size}"
    return GalleryItem(
        picture=gallery_picture(load_image(question.image_path), masks),
        lines=[
            *([("", prediction.question)] if prediction.question else []),
            ("answer", prediction.prediction.strip() or "(empty)"),
            ("reference", " / ".join(question.references)),
            ("region", size),
        ],
        badge=percent(value),
        tone=_tone(value) if bounded else "plain",
    )


def _tone(value: float) -> Literal["good", "middle", "bad"]:
    return "good" if value >= GOOD else "middle" if value >= MIDDLE else "bad"


def settings_tables(metrics: Mapping[str, Any]) -> list[Table | Text]:
    """Everything that is needed to make the numbers again."""
    rows = [["task", metrics["task"]], ["question", metrics["question"]], ["profile", metrics["profile"]]]
    if metrics["limit"] is not None:
        rows.append(["limit", f"the first {metrics['limit']:,} regions"])
    if "decoding" in metrics:
        rows.append(["decoding", ", ".join(f"{name} {value}" for name, value in metrics["decoding"].items())])
    for name in ("model", "predictions", "data", "references", "judge"):
        rows += [[name, f"{part}: {value}"] for part, value in metrics.get(name, {}).items()]
    rows += [[name.replace("_", " "), str(value)] for name, value in metrics["notes"].items()]
    rows += [[name, version] for name, version in metrics["versions"].items()]
    return [Table("", ["setting", "value"], rows, numeric=False)]


def _control_row(metrics: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    row: Mapping[str, Any] | None = metrics.get("control", {}).get("metrics", {}).get(name)
    return row


def _point(row: Mapping[str, Any]) -> Point:
    low, high = row["low"], row["high"]
    return Point(100 * row["value"], None if low is None else 100 * low, None if high is None else 100 * high)


def _size_range(row: Mapping[str, Any]) -> str:
    low, high = row["from_cells"], row["to_cells"]
    if high is None:
        return f"≥ {low:g}"
    return f"< {high:g}" if low == 0 else f"{low:g}–{high:g}"
