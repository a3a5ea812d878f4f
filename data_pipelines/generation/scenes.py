"""A picture in words, as the language model gets it: regions with names and boxes, what else is there, what is said.

```
Picture: 640 pixels wide, 480 high.
Captions of the picture:
- A woman walks her dog.
Said about single things:
- the lady with the blue shirt [12, 30, 200, 400]
Regions:
<region1>: person [12, 30, 200, 400]
Also in the picture:
- dog [210, 300, 330, 410]
```
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from data_pipelines.generation.notes import Box, Notes, box_of
from data_pipelines.records import Region, RegionRecord, Rejection

Level = Literal["object", "part"]
LEVELS: tuple[Level, ...] = ("object", "part")

_SOURCES_OF_PARTS = frozenset({"partimagenet"})
_PART_NAME = re.compile(r"(?P<object>[^:]*[^\W\d]\)?):(?P<part>[^\W\d][^:]*)")
_MOST_OTHERS = 30
_MOST_NOTES = 20


@dataclass(frozen=True)
class Scene:
    """What one request is about.

    Attributes:
        record: Where it comes from.
        regions: Those that are asked about; the first is `<region1>`.
        others: Named regions that are there but not asked about.
        notes: What is said about the picture.
    """

    record: RegionRecord
    regions: tuple[Region, ...]
    others: tuple[Region, ...] = ()
    notes: Notes = field(default_factory=Notes)

    def __str__(self) -> str:
        lines = [f"Picture: {self.record.width} pixels wide, {self.record.height} high."]
        lines += _listed("Captions of the picture:", self.notes.captions[:_MOST_NOTES])
        phrases = [_with_box(text, box) for text, box in self.notes.phrases[:_MOST_NOTES]]
        lines += _listed("Said about single things:", phrases)
        lines.append("Regions:")
        for number, region in enumerate(self.regions, start=1):
            lines.append(f"<region{number}>: {_with_box(spoken_name(region.name), box_of(region))}")
        others = [_with_box(spoken_name(region.name), box_of(region)) for region in self.others[:_MOST_OTHERS]]
        lines += _listed("Also in the picture:", others)
        return "\n".join(lines)


def is_part(region: Region, source: str) -> bool:
    """Whether a region is a part of an object: of a source of parts, or named `object:part`."""
    return source in _SOURCES_OF_PARTS or _PART_NAME.fullmatch(region.name) is not None


def spoken_name(name: str) -> str:
    """A category name as people say it.

    Example:
        >>> spoken_name("dog:left_ear"), spoken_name("street_sign")
        ('left ear (part of: dog)', 'street sign')
    """
    words = " ".join(name.replace("_", " ").split())
    named = _PART_NAME.fullmatch(words)
    return f"{named['part']} (part of: {named['object']})" if named else words


def scene_of(
    record: RegionRecord, notes: Notes, *, level: Level, max_regions: int, seed: int
) -> tuple[Scene | None, list[Rejection]]:
    """The scene of a record, None if it has no region to ask about, and the regions that it leaves out.

    Of more than `max_regions`, so many are drawn with `seed` and the record's id, and keep their order.
    """
    rejections, asked, others = [], [], []
    for number, region in enumerate(record.regions, start=1):
        if not region.name.strip():
            rejections.append(_rejection(record, number, "region without a name"))
        elif is_part(region, record.source) != (level == "part"):
            others.append(number)
            rejections.append(_rejection(record, number, f"not a region of the level {level}", region.name))
        else:
            asked.append(number)
    chooser = random.Random(f"{seed}/{record.id}")
    chosen = sorted(chooser.sample(asked, max_regions)) if len(asked) > max_regions else asked
    left_over = sorted(set(asked) - set(chosen))
    for number in left_over:
        found = f"{len(asked)} regions, at most {max_regions} are asked about"
        rejections.append(_rejection(record, number, "more regions than one request asks about", found))
    if not chosen:
        return None, rejections or [Rejection(record.id, "record without regions", annotations=0)]
    context = _numbered(record, sorted(others + left_over))
    return Scene(record, _numbered(record, chosen), context, notes), rejections


def _rejection(record: RegionRecord, number: int, reason: str, detail: str = "") -> Rejection:
    return Rejection(f"{record.id}#{record.regions[number - 1].id or number}", reason, detail)


def _numbered(record: RegionRecord, numbers: Sequence[int]) -> tuple[Region, ...]:
    return tuple(record.regions[number - 1] for number in numbers)


def _with_box(text: str, box: Box) -> str:
    return f"{text} {list(box)}"


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    return [title, *(f"- {line}" for line in lines)] if lines else []
