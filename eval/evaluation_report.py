"""The report page of one evaluation, from what `metrics.json` holds and the answers themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.categories import LEAST_REGIONS, SHOWN, interval_of, most_frequent, worst
from eval.figures import Panel, Point, ScoreRow, panel_figure, reliability_figure, score_figure
from eval.galleries import galleries
from eval.labels import NOTHING, UNBOUNDED, interval_text, label_of, percent, percent_with_interval
from eval.metrics import Scoring
from eval.predictions import Prediction
from eval.published import PublishedRow, comparability, published_rows
from eval.questions import Question
from eval.report import Details, Figure, KeyFigure, KeyFigures, Section, Table, Text, render_page
from eval.tasks import VERBATIM, Task

LEFT_OUT_OF_PANELS = {"Bleu_1", "Bleu_2", "Bleu_3"}
MOST_PANELS = 6


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
        f"empty answers: {counts['empty_answers']:,}. "
    )
    if task.kind != VERBATIM:
        subtitle += f"Answers are compared by the profile “{metrics['profile']}”, empty ones count as wrong."
    sections: list[Section] = [key_figures(metrics), score_table(metrics)]
    sections += published_table(metrics)
    sections += score_figures(metrics)
    sections += reliability_diagram(metrics)
    sections += category_tables(metrics, task.headline)
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
        cells = [label_of(name), percent(row["value"]), interval_text(row)]
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


def reliability_diagram(metrics: Mapping[str, Any]) -> list[Section]:
    """Confidence against accuracy, where candidates were ranked."""
    bins = metrics.get("reliability")
    if not bins:
        return []
    confidence, accuracy, regions = ([row[name] for row in bins] for name in ("confidence", "accuracy", "regions"))
    caption = (
        "Dots: regions of like confidence, the softmax over the candidates; larger dots, more regions. On the dashed "
        "line confidence is right, below it is too high."
    )
    return [Figure("Calibration", reliability_figure(confidence, accuracy, regions), caption)]


def category_tables(metrics: Mapping[str, Any], headline: str) -> list[Section]:
    """The most frequent and the worst categories, side by side with their counts; nothing without categories."""
    rows = metrics["by_category"]
    if not rows:
        return []
    known = {name for row in rows for name in row["scores"]} - LEFT_OUT_OF_PANELS - {headline}
    others = [name for name in metrics["metrics"] if name in known][:3]
    columns = ["category", label_of(headline), "95% interval", *map(label_of, others), "regions", "pictures"]

    def cells(row: Mapping[str, Any]) -> list[str]:
        found = interval_of(row, headline)
        return [
            row["category"],
            NOTHING if found is None else percent(found["value"]),
            NOTHING if found is None else interval_text(found),
            *(percent(row["scores"].get(name)) for name in others),
            f"{row['regions']:,}",
            f"{row['images']:,}",
        ]

    frequent, lowest = most_frequent(rows), worst(rows, headline)
    note = f"{len(rows):,} categories in all; their scores are in metrics.json."
    sections: list[Section] = [Table("Most frequent categories", columns, [cells(row) for row in frequent], note)]
    if len(rows) > SHOWN:
        enough = f"Among categories with at least {LEAST_REGIONS} regions, where there are such."
        sections.append(Table("Categories with the lowest scores", columns, [cells(row) for row in lowest], enough))
    return sections


def published_table(metrics: Mapping[str, Any]) -> list[Section]:
    """What papers report of the same task on data of the same source; nothing where there is nothing."""
    rows = published_rows(metrics["task"], metrics["data"]["source"])
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    columns = ["score × 100", *map(label_of, names), "rules"]
    own = [percent(metrics["metrics"].get(name, {}).get("value")) for name in names]
    cells = [[f"this run ({metrics['data']['folder']})", *own, f"profile {metrics['profile']}"]]
    ranked = "candidate_score" in metrics["options"]
    for row in rows:
        scores = [percent(row.scores.get(name)) for name in names]
        cells.append([row.system, *scores, comparability(row, metrics["profile"], ranked=ranked)])
    texts, note = [len(columns) - 1], published_note(rows)
    return [Table("Beside published systems", columns, cells, note, texts=texts, strong_columns=(), strong_rows=[0])]


def published_note(rows: Sequence[PublishedRow]) -> str:
    """Where published rows come from, and what else differs."""
    papers = "; ".join(dict.fromkeys(f"{row.system}: {row.paper}" for row in rows))
    notes = "; ".join(dict.fromkeys(f"{row.system} {row.note}" for row in rows if row.note))
    return (
        f"Published on {', '.join(dict.fromkeys(row.benchmark for row in rows))}; whether these data are that split is "
        f"for the reader to know. Scores of different profiles measure different things. {papers}."
        + (f" {notes}." if notes else "")
    )


def settings_tables(metrics: Mapping[str, Any]) -> list[Table | Text]:
    """Everything that is needed to make the numbers again."""
    rows = [["task", metrics["task"]], ["question", metrics["question"]], ["profile", metrics["profile"]]]
    if metrics["limit"] is not None:
        rows.append(["limit", f"the first {metrics['limit']:,} regions"])
    if "decoding" in metrics:
        rows.append(["decoding", ", ".join(f"{name} {value}" for name, value in metrics["decoding"].items())])
    for name in ("model", "predictions", "data", "options", "references", "judge"):
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
