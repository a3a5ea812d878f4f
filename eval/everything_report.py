"""The page of `python -m eval all`: all tasks at a glance, then each with published systems beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.labels import NOTHING, label_of, percent, percent_with_interval
from eval.report import KeyFigure, KeyFigures, Section, Table, render_page

if TYPE_CHECKING:
    from eval.everything import Outcome

LEFT_OUT = {"Bleu_1", "Bleu_2", "Bleu_3", "texture", "colour", "shape"}
MOST_COLUMNS = 5


def overview_page(found: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    """The page as HTML text."""
    states = [outcome.state for outcome in outcomes]
    regions = sum(outcome.metrics["counts"]["regions"] for outcome in outcomes if outcome.metrics)
    subtitle = (
        f"{found['model']}: every task that the data allow; answers are compared by profile “{found['profile']}”."
    )
    figures = [
        KeyFigure("Evaluations", f"{states.count('done'):,}", _counted(states)),
        KeyFigure("Regions asked", f"{regions:,}"),
    ]
    figures += [figure for outcome in outcomes if (figure := _headline(outcome)) is not None][:6]
    sections: list[Section] = [KeyFigures(figures), _states(outcomes)]
    for name in dict.fromkeys(outcome.task for outcome in outcomes if outcome.metrics):
        rows = [row for row in found["rows"] if row["task"] == name]
        sections.append(_scores(name, rows, [outcome for outcome in outcomes if outcome.task == name]))
    return render_page("Evaluation", sections, subtitle)


def _counted(states: Sequence[str]) -> str:
    return ", ".join(f"{states.count(state):,} {state}" for state in ("failed", "left out") if state in states)


def _headline(outcome: Outcome) -> KeyFigure | None:
    """The score by which the task is known; None where it was not measured."""
    if outcome.metrics is None:
        return None
    name = outcome.metrics["headline"]
    row = outcome.metrics["metrics"].get(name)
    if row is None:
        return None
    return KeyFigure(label_of(name), percent(row["value"]), f"{outcome.task}\n{outcome.data}")


def _states(outcomes: Sequence[Outcome]) -> Table:
    rows = []
    for outcome in outcomes:
        told = outcome.reason
        if outcome.metrics is not None:
            told = f"{outcome.metrics['counts']['regions']:,} regions, {outcome.seconds:,.0f} s"
            told += f"; page: {outcome.task}/{outcome.data}/report.html"
        rows.append([outcome.task or NOTHING, outcome.data, outcome.state, told])
    return Table("What was run", ["task", "data", "state", ""], rows, numeric=False)


def _scores(task: str, rows: Sequence[Mapping[str, Any]], outcomes: Sequence[Outcome]) -> Table:
    """Our scores on each data folder, with intervals, and the published rows below those of their source."""
    names = _columns([outcome.metrics["headline"] for outcome in outcomes if outcome.metrics], rows)
    metrics = {outcome.data: outcome.metrics["metrics"] for outcome in outcomes if outcome.metrics}
    cells = []
    for row in rows:
        if row["ours"]:
            scores = [_two_lines(metrics[row["data"]].get(name)) for name in names]
            rules = f"profile {row['profile']}"
        else:
            scores = [percent(row["scores"].get(name)) for name in names]
            rules = row["comparison"]
        cells.append([row["system"], row["data"], *scores, rules])
    published = [row for row in rows if not row["ours"]]
    note = ""
    if published:
        papers = "; ".join(dict.fromkeys(f"{row['system']}: {row['paper']}" for row in published))
        notes = "; ".join(dict.fromkeys(f"{row['system']} {row['note']}" for row in published if row["note"]))
        note = f"Scores of different profiles measure different things. {papers}." + (f" {notes}." if notes else "")
    columns = ["score × 100", "data", *map(label_of, names), "rules"]
    ours = [place for place, row in enumerate(rows) if row["ours"]]
    texts, title = (1, len(columns) - 1), task.replace("-", " ").capitalize()
    return Table(title, columns, cells, note, texts=texts, strong_columns=(), strong_rows=ours)


def _two_lines(row: Mapping[str, Any] | None) -> str:
    return percent_with_interval(row).replace("  ", "\n")


def _columns(headlines: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The headline first, then what papers report, then the rest."""
    known = dict.fromkeys(name for row in rows for name in row["scores"])
    published = dict.fromkeys(name for row in rows if not row["ours"] for name in row["scores"])
    ordered = dict.fromkeys([*headlines, *published, *known])
    return [name for name in ordered if name in known and name not in LEFT_OUT][:MOST_COLUMNS]
