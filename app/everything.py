"""Everything in a picture: its regions, described in batches, as rows of a table.

```
SegmentedImage.everything ─┐
                           ├─► choose (area, doubles) ─► describe: one ImageSession.ask a batch ─► rows, files
a user's COCO file ────────┘
```
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from app.found import Found
from app.pictures import OpenPicture
from app.questions import CATEGORY, make_question
from app.state import Shape
from app.tables import Row

MOST_REGIONS = 64
BATCH_SIZES = {CATEGORY: 64}
"""Regions described at a time: many are fast, few tell sooner how it goes and can be stopped."""
OTHER_BATCH_SIZE = 32

COLUMNS = ("No.", "Description", "Area (%)", "Area (px)", "Score", "Box (x0, y0, x1, y1)")


class Asked(Protocol):
    """What describing needs of `osprey_tp.sessions.ImageSession`."""

    def ask(self, regions: Sequence[Any], question: str, *, batch_size: int, max_new_tokens: int) -> list[str]:
        """One answer a region."""
        ...


@dataclass(frozen=True)
class Progress:
    """All regions, of which the first `described` have their answers."""

    regions: tuple[Found, ...]
    described: int


class EverythingFound:
    """The regions that the segmenter finds in open pictures, found once; forgotten with the picture."""

    def __init__(self) -> None:
        self._found: WeakKeyDictionary[Any, tuple[int, tuple[Found, ...]]] = WeakKeyDictionary()

    def of(self, picture: OpenPicture, most: int = MOST_REGIONS) -> tuple[Found, ...]:
        """At most so many regions of a picture, best first; slow the first time, and for more regions than before.

        Raises `ValueError` for a number below 1.
        """
        if most < 1:
            raise ValueError(f"at most {most} regions are none; give 1 or more")
        asked, found = self._found.get(picture.segmented, (0, ()))
        if asked < most:
            found = tuple(Found.of(Shape.of(each.mask, each.score)) for each in picture.segmented.everything(most))
            self._found[picture.segmented] = (most, found)
        return found[:most]

    def __contains__(self, picture: OpenPicture) -> bool:
        """Whether the regions of a picture are known."""
        return picture.segmented in self._found


def describe(session: Asked, regions: Sequence[Found], kind: str, batch_size: int | None = None) -> Iterator[Progress]:
    """Asks about all regions, a batch at a time; closing the iterator leaves the rest undescribed.

    Args:
        session: Of the picture.
        regions: In the order in which they are described.
        kind: Of `app.questions.QUESTION_KINDS`, without the user's own.
        batch_size: Regions described at a time.

    Yields:
        How far it is: at once, and after every batch.
    """
    question = make_question(kind)
    batch_size = batch_size or BATCH_SIZES.get(kind, OTHER_BATCH_SIZE)
    done = list(regions)
    yield Progress(tuple(done), 0)
    for first in range(0, len(done), batch_size):
        batch = done[first : first + batch_size]
        answers = session.ask(
            [region.shape.rle for region in batch],
            question.text,
            batch_size=len(batch),
            max_new_tokens=question.max_new_tokens,
        )
        done[first : first + len(batch)] = [
            region.saying(" ".join(answer.split()), is_category=kind == CATEGORY)
            for region, answer in zip(batch, answers, strict=True)
        ]
        yield Progress(tuple(done), first + len(batch))


def rows(regions: Sequence[Found], height: int, width: int) -> list[Row]:
    """The regions of a picture of height x width source pixels as rows of `COLUMNS`; each is drawn under its number."""
    return [
        Row(
            (
                number,
                region.label,
                round(100 * region.area / (height * width), 2),
                region.area,
                round(region.shape.score, 3),
                ", ".join(map(str, region.box)),
            ),
            str(number),
        )
        for number, region in enumerate(regions, start=1)
    ]
