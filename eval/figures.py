"""Figures of reports, as SVG text that shows alike on every machine."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

INK = "#1f2937"
MUTED = "#6b7280"
GRID = "#e5e7eb"
MODEL = "#1d4ed8"
CONTROL = "#d97706"
CHANCE = "#9ca3af"
SERIES = ("#1d4ed8", "#d97706", "#059669", "#7c3aed", "#dc2626", "#0891b2")


@dataclass(frozen=True)
class Point:
    """A score with its interval (None: no interval)."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def errors(self) -> list[list[float]] | None:
        """Distances to the interval's ends, as matplotlib takes them."""
        if self.low is None or self.high is None:
            return None
        return [[max(0.0, self.value - self.low)], [max(0.0, self.high - self.value)]]


@dataclass(frozen=True)
class ScoreRow:
    """One line of `score_figure`: the model's score beside the control's and the chance level, where there are."""

    label: str
    model: Point
    control: Point | None = None
    chance: float | None = None


@dataclass(frozen=True)
class Panel:
    """One panel of `panel_figure`: scores over named groups, each with a note such as its number of regions."""

    title: str
    groups: Sequence[str]
    points: Sequence[Point]
    top: float | None = None
    chance: float | None = None


def score_figure(rows: Sequence[ScoreRow], axis_label: str = "score × 100") -> str:
    """Scores as dots with intervals, one line each, first on top; a scale of 0 to 100."""
    figure, axes = _figure(width=7.6, height=0.62 + 0.42 * len(rows))
    for position, row in enumerate(reversed(rows)):
        if row.chance is not None:
            axes.plot([row.chance], [position], "|", color=CHANCE, markersize=15, markeredgewidth=2.4)
        if row.control is not None:
            _dot(axes, row.control, position, CONTROL, "D", size=5.5)
        _dot(axes, row.model, position, MODEL, "o", size=7.5)
    axes.set_yticks(range(len(rows)), [row.label for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(-2, 102)
    axes.set_xlabel(axis_label)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0, labelsize=10, labelcolor=INK)
    _legend_of_scores(axes, rows)
    return _svg(figure)


def _dot(axes: Any, point: Point, position: float, colour: str, marker: str, size: float) -> None:
    axes.errorbar(
        [point.value], [position], xerr=point.errors, fmt=marker, color=colour, markersize=size, elinewidth=2, capsize=0
    )


def _legend_of_scores(axes: Any, rows: Sequence[ScoreRow]) -> None:
    from matplotlib.lines import Line2D

    entries = [Line2D([], [], marker="o", color=MODEL, linewidth=2, label="model, 95% interval")]
    if any(row.control for row in rows):
        entries.append(Line2D([], [], marker="D", color=CONTROL, linewidth=2, label="shuffled regions"))
    if any(row.chance is not None for row in rows):
        entries.append(
            Line2D(
                [], [], marker="|", color=CHANCE, linestyle="none", markersize=12, markeredgewidth=2.4, label="chance"
            )
        )
    axes.legend(handles=entries, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, frameon=False)


def panel_figure(panels: Sequence[Panel], axis_label: str) -> str:
    """Small multiples, two a row: how each score changes over groups such as region sizes."""
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, grid = _figure(width=4.2 * columns, height=2.35 * lines + 0.25, rows=lines, columns=columns)
    flat = list(grid.flat) if hasattr(grid, "flat") else [grid]
    for axes, panel in zip(flat, panels, strict=False):
        _draw_panel(axes, panel, axis_label)
    for axes in flat[len(panels) :]:
        axes.set_visible(False)
    return _svg(figure)


def _draw_panel(axes: Any, panel: Panel, axis_label: str) -> None:
    positions = range(len(panel.points))
    axes.plot(positions, [point.value for point in panel.points], color=MODEL, linewidth=1.2, alpha=0.45)
    for position, point in zip(positions, panel.points, strict=True):
        axes.errorbar(
            [position], [point.value], yerr=point.errors, fmt="o", color=MODEL, markersize=5.5, elinewidth=1.6
        )
    if panel.chance is not None:
        axes.axhline(panel.chance, color=CHANCE, linewidth=1.6, linestyle=(0, (4, 3)))
    axes.set_title(panel.title, loc="left", fontsize=10.5, color=INK, fontweight="bold")
    axes.set_xticks(positions, panel.groups)
    axes.set_xlim(-0.5, len(panel.points) - 0.5)
    highest = max(point.value if point.high is None else point.high for point in panel.points)
    axes.set_ylim(0, 1.15 * max(highest, 1.0) if panel.top is None else panel.top)
    axes.set_xlabel(axis_label)
    axes.grid(axis="y")


def line_figure(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    axis_label: str,
    value_label: str,
    *,
    log: bool = False,
) -> str:
    """Lines through (x, y) values, one a name; for courses such as a loss over steps."""
    figure, axes = _figure(width=7.6, height=2.9)
    for index, (name, (x, y)) in enumerate(series.items()):
        axes.plot(x, y, color=SERIES[index % len(SERIES)], linewidth=1.8, label=name)
    axes.set_xlabel(axis_label)
    axes.set_ylabel(value_label)
    if log:
        axes.set_yscale("log")
    axes.grid(axis="y")
    if len(series) > 1:
        axes.legend(frameon=False)
    return _svg(figure)


def reliability_figure(confidence: Sequence[float], accuracy: Sequence[float], answers: Sequence[int]) -> str:
    """How often answers of like confidence are right: one dot a bin, its area by its answers; on the line is ideal."""
    figure, axes = _figure(width=4.4, height=4.2)
    axes.plot([0, 100], [0, 100], color=CHANCE, linewidth=1.6, linestyle=(0, (4, 3)))
    sizes = [20 + 260 * count / max(answers) for count in answers]
    x, y = ([100 * value for value in values] for values in (confidence, accuracy))
    axes.plot(x, y, color=MODEL, linewidth=1.2, alpha=0.45)
    axes.scatter(x, y, s=sizes, color=MODEL, alpha=0.85, linewidths=0, zorder=3)
    axes.set_xlim(-3, 103)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("confidence × 100")
    axes.set_ylabel("accuracy × 100")
    axes.grid()
    return _svg(figure)


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """A figure that needs no display and leaves matplotlib's global state alone."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(rows, columns)
    for one in axes.flat if hasattr(axes, "flat") else [axes]:
        one.spines[["top", "right", "left"]].set_visible(False)
        one.spines["bottom"].set_color(GRID)
        one.tick_params(colors=MUTED, labelsize=8.5, length=0)
        one.xaxis.label.set(color=MUTED, fontsize=9)
        one.yaxis.label.set(color=MUTED, fontsize=9)
        one.set_axisbelow(True)
        one.grid(color=GRID, linewidth=0.8)
        one.grid(visible=False)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "osprey_tp", "svg.fonttype": "path"}):
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    return text.getvalue()
