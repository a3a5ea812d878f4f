"""The page about what changed between two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.galleries import PAGE_SIZE, PAGES, paged, question_picture, region_size
from eval.labels import NOTHING, label_of, percent, signed
from eval.questions import Question
from eval.report import Details, GalleryItem, KeyFigure, KeyFigures, Section, Table, render_page
from eval.tasks import Task

MOST_ROWS = 500


def comparison_page(found: Mapping[str, Any], task: Task, questions: Sequence[Question]) -> str:
    """The whole page as HTML text, from what `eval.comparison.compare` found."""
    counts = found["counts"]
    before, after = found["before"]["folder"], found["after"]["folder"]
    subtitle = (
        f"{task.name}: from {before} to {after}. {counts['changed']:,} of {counts['items']:,} answers changed in words "
        "or in score."
    )
    by_id = {question.id: question for question in questions}
    better = [item for item in found["items"] if (item["change"] or 0) > 0]
    worse = [item for item in reversed(found["items"]) if (item["change"] or 0) < 0]
    sections: list[Section] = [_key_figures(found), _scores(found), _settings(found)]
    note = f"By the change of {label_of(found['headline'])}: before → after."
    sections += paged("Better, most first", [_item(item, by_id) for item in better[: PAGE_SIZE * PAGES]], note)
    sections += paged("Worse, most first", [_item(item, by_id) for item in worse[: PAGE_SIZE * PAGES]], note)
    if found["items"]:
        sections.append(Details("All changed answers", [_table(found["items"])]))
    return render_page(f"What changed: {before} → {after}", sections, subtitle)


def _key_figures(found: Mapping[str, Any]) -> KeyFigures:
    figures = []
    headline = found["metrics"].get(found["headline"])
    if headline is not None:
        interval = _interval(headline)
        figures.append(
            KeyFigure(
                label_of(found["headline"]),
                signed(headline["difference"]),
                f"{percent(headline['before'])} → {percent(headline['after'])}" + (f"\n{interval}" if interval else ""),
            )
        )
    counts = found["counts"]
    figures.append(KeyFigure("Changed answers", f"{counts['changed']:,}", f"of {counts['items']:,}"))
    figures.append(KeyFigure("Better", f"{counts['higher']:,}", "scored higher than before"))
    figures.append(KeyFigure("Worse", f"{counts['lower']:,}", "scored lower than before"))
    return KeyFigures(figures)


def _interval(row: Mapping[str, Any]) -> str:
    return "" if row["low"] is None else f"[{signed(row['low'])}, {signed(row['high'])}]"


def _scores(found: Mapping[str, Any]) -> Table:
    columns = ["score × 100", "before", "after", "difference", "95% interval", "items higher", "items lower"]
    rows = [
        [
            label_of(name),
            percent(row["before"]),
            percent(row["after"]),
            signed(row["difference"]),
            _interval(row) or NOTHING,
            f"{row['higher']:,}",
            f"{row['lower']:,}",
        ]
        for name, row in found["metrics"].items()
    ]
    note = (
        "Both runs are scored by the same rules, those of the later run. Interval of the difference: paired bootstrap, "
        "the same pictures drawn for both; an interval that holds 0 leaves open whether anything changed."
    )
    return Table("Scores", columns, rows, note, strong_columns=[3])


def _settings(found: Mapping[str, Any]) -> Table:
    rows = [[name, _text(old), _text(new)] for name, (old, new) in found["differing_settings"].items()]
    note = "" if rows else "Nothing differs: the same model, question, decoding, profile and versions."
    return Table("What differs between the runs", ["setting", "before", "after"], rows, note, numeric=False)


def _text(value: Any) -> str:
    return NOTHING if value is None else str(value)


def _item(item: Mapping[str, Any], questions: Mapping[str, Question]) -> GalleryItem:
    question = questions[item["id"]]
    bounded = item["change"] is not None
    return GalleryItem(
        picture=question_picture(question),
        lines=[
            ("before", item["before"].strip() or "(empty)"),
            ("after", item["after"].strip() or "(empty)"),
            *([("reference", " / ".join(item["references"]))] if item["references"] else []),
            ("region", region_size(question, None)),
        ],
        badge=f"{percent(item['score_before'])} → {percent(item['score_after'])}",
        tone=("good" if item["change"] > 0 else "bad") if bounded else "plain",
    )


def _table(items: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            item["id"],
            item["before"],
            item["after"],
            " / ".join(item["references"]),
            f"{percent(item['score_before'])} → {percent(item['score_after'])}",
        ]
        for item in items[:MOST_ROWS]
    ]
    note = "" if len(items) <= MOST_ROWS else f"The first {MOST_ROWS:,} of {len(items):,}; all are in compare.json."
    return Table("", ["question", "before", "after", "reference", "score"], rows, note, numeric=False)
