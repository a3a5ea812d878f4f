"""Scores by category: which kinds of things are answered well, which are not, and how often each is asked about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.intervals import Measure, estimate

if TYPE_CHECKING:
    from eval.metrics import Answers, Scoring

SHOWN = 15
"""Categories in each table of the report; these have intervals."""

LEAST_REGIONS = 5
"""A category is among the worst only with so many regions, where there are such categories."""


def by_category(scoring: Scoring, answers: Answers, headline: str) -> list[dict[str, Any]]:
    """Scores of each category, the most frequent first; nothing where all questions are of one category.

    The headline's 95% interval (`low`, `high`) is taken for the categories that `most_frequent` and `worst` name.
    """
    names = np.asarray([question.category for question in answers.questions])
    categories, place, counts = np.unique(names, return_inverse=True, return_counts=True)
    if len(categories) < 2:
        return []
    pictures = np.asarray(answers.images)
    parts = [measure for measure in scoring.measures if not (measure.is_whole or measure.over_classes)]
    columns = {measure.name: _values(measure, place, len(categories)) for measure in parts}
    rows: list[dict[str, Any]] = [
        {
            "category": str(category),
            "regions": int(count),
            "images": len(np.unique(pictures[place == index])),
            "scores": {name: float(column[index]) for name, column in columns.items() if np.isfinite(column[index])},
        }
        for index, (category, count) in enumerate(zip(categories, counts, strict=True))
        if category
    ]
    rows.sort(key=lambda row: (-row["regions"], row["category"]))
    measure = next((measure for measure in parts if measure.name == headline), None)
    if measure is not None:
        shown = {row["category"]: row for row in (*most_frequent(rows), *worst(rows, headline))}
        for category, row in shown.items():
            found = estimate(measure, answers.images, names == category)
            if found is not None:
                row.update(low=found.low, high=found.high)
    return rows


def _values(measure: Measure, place: Any, count: int) -> Any:
    """(categories,) the measure over each category, NaN where it has no answers."""
    kept = measure.counted
    sums = np.zeros((count, measure.statistics.shape[1]))
    np.add.at(sums, place[kept], measure.statistics[kept])
    present = np.bincount(place[kept], minlength=count) > 0
    values = np.full(count, np.nan)
    if present.any():
        values[present] = measure.formula(sums[present])
    return values


def most_frequent(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The categories with most regions."""
    return list(rows[:SHOWN])


def worst(rows: Sequence[dict[str, Any]], headline: str) -> list[dict[str, Any]]:
    """The categories with the lowest headline score, among those with regions enough."""
    scored = [row for row in rows if headline in row["scores"]]
    enough = [row for row in scored if row["regions"] >= LEAST_REGIONS] or scored
    return sorted(enough, key=lambda row: (row["scores"][headline], -row["regions"], row["category"]))[:SHOWN]


def interval_of(row: Mapping[str, Any], headline: str) -> dict[str, Any] | None:
    """The headline's value and interval of a category, as of a row of `metrics`."""
    value = row["scores"].get(headline)
    return None if value is None else {"value": value, "low": row.get("low"), "high": row.get("high")}
