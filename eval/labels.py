"""How measures and scores are written in reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    "top_1": "Top-1",
    "top_5": "Top-5",
    "calibration_error": "Calibration error ↓",
    "brier_score": "Brier score ↓",
    "class_accuracy": "Class accuracy",
    "PQ_things": "PQ of things",
    "PQ_stuff": "PQ of stuff",
    "box_accuracy": "Box accuracy",
    "mask_accuracy": "Mask accuracy",
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
UNBOUNDED = {"CIDEr", "calibration_error", "brier_score", "relative_score"}
"""Measures that can exceed 1, or are better when they are low: no colours, no scale of 0 to 100."""

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


def interval_text(row: Mapping[str, Any]) -> str:
    """The interval × 100 of a score."""
    return NOTHING if row["low"] is None else f"{percent(row['low'])} – {percent(row['high'])}"


def signed(value: float) -> str:
    """A difference of scores × 100 with its sign."""
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text in {"+0.0", "−0.0"} else text
