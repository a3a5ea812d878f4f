"""The page that shows how held-out samples score while a model trains, and what it answers; made at each scoring."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osprey_tp.files import write_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from eval.report import Figure, GalleryItem, KeyFigures, Table
    from osprey_tp.training.held_out import Answered

PAGE, SCORES = "held_out.html", "held_out.json"
INK, GRID, LINES = "#374151", "#e5e7eb", ("#1d4ed8", "#059669")
WIDTH, HEIGHT, MARGIN, GAP = 440, 200, 46, 20
"""Of a panel of the figure, in its own units; left and lower margin; what is left free above and to the right."""


@dataclass(frozen=True)
class Panel:
    """A curve: what it shows, its points (step, value), and the ends of its scale; None takes them from the points."""

    title: str
    points: Sequence[tuple[float, float]]
    low: float | None = None
    high: float | None = None


def write_page(folder: Path, title: str, scores: Sequence[Mapping[str, float]], answers: Sequence[Answered]) -> None:
    """Write `held_out.html` and the scores as `held_out.json` into a folder, each aside and then renamed.

    Args:
        folder: Exists.
        title: Of the run.
        scores: `WatchedTrainer.held_out_log`; at least one entry.
        answers: Samples to show.
    """
    for name, text in ((PAGE, page_of(title, scores, answers)), (SCORES, json.dumps(list(scores), indent=1) + "\n")):
        write_text(folder / name, text)


def page_of(title: str, scores: Sequence[Mapping[str, float]], answers: Sequence[Answered]) -> str:
    """The page as HTML text; every text in it is escaped."""
    from eval.report import Gallery, render_page

    newest = scores[-1]
    subtitle = f"{newest['samples']:.0f} samples that training does not see, after step {newest['step']:.0f}."
    note = "The first of the held-out samples, the same at every scoring; answers are greedy."
    gallery = Gallery("Answers", [_item(answer) for answer in answers], note)
    return render_page(title, [_key_figures(scores), score_curves(scores), gallery, _table(scores)], subtitle)


def _key_figures(scores: Sequence[Mapping[str, float]]) -> KeyFigures:
    from eval.report import KeyFigure, KeyFigures

    newest, best = scores[-1], min(scores, key=lambda entry: entry["loss"])
    figures = [KeyFigure("Loss", f"{newest['loss']:.3f}", f"lowest {best['loss']:.3f} at step {best['step']:.0f}")]
    if "exact_match" in newest:
        best = max(scores, key=lambda entry: entry.get("exact_match", 0.0))
        detail = f"× 100, of {newest['short_answers']:.0f}; highest {_percent(best)} at step {best['step']:.0f}"
        figures.append(KeyFigure("Short answers exact", _percent(newest), detail))
    return KeyFigures(figures)


def _table(scores: Sequence[Mapping[str, float]]) -> Table:
    from eval.report import Table

    rows = [
        [
            f"{entry['step']:.0f}",
            f"{entry['loss']:.4f}",
            _percent(entry),
            f"{entry['seconds']:.1f}" if "seconds" in entry else "",
        ]
        for entry in reversed(scores)
    ]
    newest = scores[-1]
    note = (
        f"The loss is the mean over {newest['tokens']:,.0f} tokens of answers. Exact are {newest['short_answers']:.0f} "
        "short answers that equal the reference but for case, spaces and the final stop."
    )
    return Table("Scores by step", ["step", "loss", "exact × 100", "seconds to score"], rows, note)


def _percent(entry: Mapping[str, float]) -> str:
    return f"{100 * entry['exact_match']:.1f}" if "exact_match" in entry else "–"


def score_curves(scores: Sequence[Mapping[str, float]]) -> Figure:
    """Loss and exact match over the steps, side by side; without a drawing library, which training does not need."""
    from eval.report import Figure

    panels = [Panel("Loss", [(entry["step"], entry["loss"]) for entry in scores])]
    exact = [(entry["step"], 100 * entry["exact_match"]) for entry in scores if "exact_match" in entry]
    if exact:
        panels.append(Panel("Short answers exact × 100", exact, 0.0, 100.0))
    return Figure("While training", curves(panels))


def curves(panels: Sequence[Panel]) -> str:
    """Panels side by side as SVG text. Points whose value is no number are left out."""
    drawn = [
        f'<g transform="translate({index * (WIDTH + GAP)} 0)">{_panel(panel, LINES[index % len(LINES)])}</g>'
        for index, panel in enumerate(panels)
    ]
    width = len(panels) * (WIDTH + GAP)
    style = f"font-family='system-ui, sans-serif' font-size='11' fill='{INK}'"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + MARGIN}" {style}>'
        f"{''.join(drawn)}</svg>"
    )


def _panel(panel: Panel, colour: str) -> str:
    points = [(step, value) for step, value in panel.points if math.isfinite(value)]
    title = f'<text x="{MARGIN}" y="14" font-size="13" font-weight="600">{escape(panel.title)}</text>'
    if not points:
        return title
    values, last = [value for _, value in points], max(step for step, _ in points)
    low, high = _ends(values) if panel.low is None or panel.high is None else (panel.low, panel.high)
    marked = ticks(low, high)
    low, high = marked[0], marked[-1]

    def place(step: float, value: float) -> tuple[float, float]:
        across = MARGIN + (WIDTH - MARGIN - GAP) * step / max(last, 1)
        return round(across, 1), round(HEIGHT - (HEIGHT - 2 * GAP) * (value - low) / (high - low), 1)

    marks = []
    for value in marked:
        _, y = place(0, value)
        marks.append(f'<path d="M{MARGIN} {y}H{WIDTH - GAP}" stroke="{GRID}"/>')
        marks.append(f'<text x="{MARGIN - 6}" y="{y + 4}" text-anchor="end">{value:.6g}</text>')
    for step in sorted({0, last / 2, last}):
        x, _ = place(step, low)
        marks.append(f'<text x="{x}" y="{HEIGHT + 16}" text-anchor="middle">{step:.0f}</text>')
    marks.append(f'<text x="{(MARGIN + WIDTH - GAP) / 2}" y="{HEIGHT + 34}" text-anchor="middle">step</text>')
    places = [place(*point) for point in points]
    line = " ".join(f"{x},{y}" for x, y in places)
    marks.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    marks += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in places]
    return title + "".join(marks)


def ticks(low: float, high: float) -> list[float]:
    """Round values, three to eight of them, evenly apart, from `low` or less to `high` or more."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    apart = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / apart + 1e-6), math.ceil(high / apart - 1e-6)
    return [round(number * apart, 12) for number in range(first, last + 1)]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The ends of a scale: from 0, or from the least value where all lie close together, to the greatest."""
    least, greatest = min(values), max(values)
    low = 0.0 if least >= 0 and greatest - least > 0.25 * greatest else least
    return (low, greatest) if greatest > low else (low - 0.5, low + 0.5)


@dataclass(frozen=True)
class Asked:
    """The last exchange of a conversation.

    Attributes:
        question: Regions are called by their names in it.
        reference: The right answer.
        picture: None for text alone.
        masks: Of the regions that the question asks about, or of all where it names none; (height, width), boolean.
    """

    question: str
    reference: str
    picture: Image | None
    masks: Sequence[NDArray[np.bool_]]

    @classmethod
    def last_of(cls, conversation: Sequence[Mapping[str, Any]]) -> Asked:
        """The last question of a conversation of at most one picture, and its answer."""
        from osprey_tp.masks import to_mask
        from osprey_tp.prompts import REGION_TOKEN, region_name

        contents = [message["content"] for message in conversation]
        items = [item for content in contents if not isinstance(content, str) for item in content]
        image = next((item for item in items if item["type"] == "image"), None)
        texts = [_text_of(content) for content in contents]
        question, reference = texts[-2:]
        before = sum(text.count(REGION_TOKEN) for text in texts[:-2])
        regions = list(image.get("regions", ())) if image is not None else []
        asked = regions[before : before + question.count(REGION_TOKEN)]
        names = map(region_name, count())
        # An introduction names its regions already: region1<mask>.
        question = re.sub(rf"(region\d+)?{REGION_TOKEN}", lambda found: found[1] or next(names), question)
        picture = None if image is None else image["image"]
        masks = [] if picture is None else [to_mask(each, picture.height, picture.width) for each in asked or regions]
        return cls(question.strip(), reference, picture, masks)


def _text_of(content: str | Sequence[Mapping[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(item.get("text", "") for item in content)


def _item(answer: Answered) -> GalleryItem:
    """The picture with the regions of the question, over question, answer and reference."""
    from eval.pictures import gallery_picture
    from eval.report import GalleryItem

    asked = Asked.last_of(answer.conversation)
    names = [str(number) for number in range(1, len(asked.masks) + 1)] if len(asked.masks) > 1 else []
    lines = [("", asked.question)] if asked.question else []
    lines += [("answer", answer.answer or "(empty)"), ("reference", asked.reference), ("record", answer.id)]
    tones: dict[bool | None, Any] = {True: ("exact", "good"), False: ("other", "bad"), None: ("", "plain")}
    badge, tone = tones[answer.is_right]
    return GalleryItem(
        picture=gallery_picture(asked.picture or _no_picture(), asked.masks, names),
        lines=lines,
        badge=badge,
        tone=tone,
    )


def _no_picture() -> Image:
    """What stands in the place of the picture of a sample of text alone."""
    from PIL import Image, ImageDraw

    made = Image.new("RGB", (480, 320), (238, 242, 247))
    ImageDraw.Draw(made).text((240, 160), "text alone", fill=(107, 114, 128), anchor="mm", font_size=22)
    return made
