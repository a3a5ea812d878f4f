"""Report pages: sections of data in, one HTML page out that needs no network and no other file.

```
render_page("Evaluation", [KeyFigures(...), Table(...), Figure(...), Gallery(...)])
```
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Text:
    """Paragraphs."""

    kind: ClassVar[str] = "text"
    title: str
    paragraphs: Sequence[str]


@dataclass(frozen=True)
class KeyFigure:
    """One number to see first: what it is, the number, and a line about it."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class KeyFigures:
    """A row of numbers."""

    kind: ClassVar[str] = "key_figures"
    figures: Sequence[KeyFigure]
    title: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text under column heads.

    Attributes:
        numeric: all columns but the first are set as numbers, to the right.
        texts: columns, counted from 0, that are set as text all the same.
        strong_columns: columns of a numeric table to see first; the second by default.
        strong_rows: rows to see first.
    """

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    numeric: bool = True
    texts: Collection[int] = ()
    strong_columns: Collection[int] = (1,)
    strong_rows: Collection[int] = ()

    def classes(self, row: int | None, column: int) -> str:
        """How a cell is set; the row is None for the head."""
        if not self.numeric:
            return ""
        number = "number" if column and column not in self.texts else ""
        strong = row is not None and column and (column in self.strong_columns or row in self.strong_rows)
        return " ".join(filter(None, (number, "strong" if strong else "")))


@dataclass(frozen=True)
class Figure:
    """A figure as SVG text, as `eval.figures` makes them, with a caption."""

    kind: ClassVar[str] = "figure"
    title: str
    svg: str
    caption: str = ""

    @property
    def address(self) -> str:
        """The figure as a data address; as an image its names cannot clash with those of another figure."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode("utf-8")).decode("ascii")


@dataclass(frozen=True)
class GalleryItem:
    """A picture (bytes of a JPEG or PNG file) over (label, text) lines; `badge` is a short mark such as a score.

    A line without a label stands over the full width, as a question does.
    """

    picture: bytes
    lines: Sequence[tuple[str, str]]
    badge: str = ""
    tone: Literal["good", "middle", "bad", "plain"] = "plain"

    @property
    def address(self) -> str:
        """The picture as a data address."""
        kind = "png" if self.picture.startswith(b"\x89PNG") else "jpeg"
        return f"data:image/{kind};base64," + base64.b64encode(self.picture).decode("ascii")


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side."""

    kind: ClassVar[str] = "gallery"
    title: str
    items: Sequence[GalleryItem]
    note: str = ""


@dataclass(frozen=True)
class Details:
    """Sections that are folded away until they are wanted."""

    kind: ClassVar[str] = "details"
    title: str
    sections: Sequence[Text | Table | Figure | Gallery] = field(default_factory=tuple)


Section = Text | KeyFigures | Table | Figure | Gallery | Details


def render_page(title: str, sections: Sequence[Section], subtitle: str = "") -> str:
    """The whole page as HTML text. Every text is escaped; the page may load nothing from anywhere."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(title=title, subtitle=subtitle, sections=sections)
