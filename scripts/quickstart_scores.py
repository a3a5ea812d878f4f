"""Whether what a model says of a synthetic scene is true there: referring expressions and captions.

Metrics of wording compare texts; the quickstart's scenes are known, so here the words are held against the scene
itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_pipelines.synthetic.expressions import EXTREMES, RELATIONS
from data_pipelines.synthetic.vocabulary import COLOURS, SHAPES, SIZES, TEXTURES

if TYPE_CHECKING:
    from data_pipelines.records import Region, RegionRecord


def _any(words: Sequence[str]) -> str:
    return f"(?:{'|'.join(words)})"


_PHRASE = f"(?:{_any(SIZES)} )?(?:{_any(TEXTURES)} )?(?:{_any(COLOURS)} )?{_any(SHAPES)}"
_EXPRESSION = re.compile(
    f"the (?:(?P<extreme>{_any(tuple(EXTREMES))}) )?(?P<phrase>{_PHRASE})"
    f"(?: (?P<relation>{_any(tuple(RELATIONS))}) the (?P<anchor>{_PHRASE}))?"
)
LARGE_SIDE = 0.23
"""A large shape's longer side is at least this share of the picture's shorter side, a small one's is less."""

_NAME = re.compile(f"{_any(TEXTURES)} {_any(COLOURS)} {_any(SHAPES)}")


@dataclass(frozen=True)
class Item:
    """A shape of a scene: its name, "large" or "small", and the centre (x, y) of its mask in source pixels."""

    name: str
    size: str
    centre: tuple[float, float]

    @classmethod
    def of(cls, region: Region) -> Item:
        """The item that a region of a record shows."""
        import numpy as np
        from pycocotools import mask as mask_utils

        mask = mask_utils.decode(region.segmentation)
        rows, columns = np.nonzero(mask)
        side = max(np.ptp(rows), np.ptp(columns)) + 1
        size = "large" if side >= LARGE_SIDE * min(mask.shape) else "small"
        return cls(region.name, size, (float(columns.mean()), float(rows.mean())))

    def fits(self, phrase: str) -> bool:
        """Whether every word of the phrase applies."""
        return set(phrase.split()) <= {self.size, *self.name.split()}

    def beyond(self, other: Item, axis: int, sign: int) -> bool:
        """Whether the item lies further than the other one along an axis of (x, y)."""
        return sign * (self.centre[axis] - other.centre[axis]) > 0


@dataclass(frozen=True)
class Expression:
    """A referring expression in parts, such as "the striped ring", "left of", "red cross"."""

    phrase: str
    extreme: str | None = None
    relation: str | None = None
    anchor: str | None = None

    @classmethod
    def parse(cls, text: str) -> Expression | None:
        """The parts of a text, None if it is no such expression."""
        match = _EXPRESSION.fullmatch(text.strip().rstrip(".").lower())
        return cls(**match.groupdict()) if match else None

    def places(self, item: Item, scene: Sequence[Item]) -> bool:
        """Whether the item stands where the relation or the extreme says; without either it does."""
        others = [other for other in scene if other != item]
        if self.relation and self.anchor:
            axis, sign = RELATIONS[self.relation]
            return any(item.beyond(other, axis, sign) for other in others if other.fits(self.anchor))
        if self.extreme:
            axis, sign = EXTREMES[self.extreme]
            return all(item.beyond(other, axis, sign) for other in others if other.fits(self.phrase))
        return True

    def holds(self, item: Item, scene: Sequence[Item]) -> bool:
        """Whether the expression is true of the item."""
        return item.fits(self.phrase) and self.places(item, scene)


def scene_of(record: RegionRecord) -> list[Item]:
    """All items of a picture, from the record with its objects."""
    return [Item.of(region) for region in record.regions]


def expression_scores(answers: Sequence[tuple[str, Item, Sequence[Item]]]) -> dict[str, float | int | None]:
    """Shares of answers that are true, from (answer, item that was asked about, all items of the scene).

    Returns:
        `true`: the expression holds for its item; `unique`: and for no other item; `placed`: of the `placing` answers
        that use a relation or an extreme, those in which the item stands so; `placed_by_chance`: the same, judged for
        the other items of the scene.
    """
    true = unique = placing = placed = 0
    chances: list[float] = []
    for text, item, scene in answers:
        expression = Expression.parse(text)
        if expression is None:
            continue
        others = [other for other in scene if other != item]
        holds = expression.holds(item, scene)
        true += holds
        unique += holds and not any(expression.holds(other, scene) for other in others)
        if (expression.relation or expression.extreme) and others:
            placing += 1
            placed += expression.places(item, scene)
            chances.append(sum(expression.places(other, scene) for other in others) / len(others))
    return {
        "answers": len(answers),
        "true": _share(true, len(answers)),
        "unique": _share(unique, len(answers)),
        "placing": placing,
        "placed": _share(placed, placing),
        "placed_by_chance": _share(sum(chances), len(chances)),
    }


def caption_scores(captions: Sequence[str], scenes: Sequence[Sequence[Item]]) -> dict[str, float | int | None]:
    """How far the shapes that captions name are those of the scenes.

    Returns:
        `precision`: of the shapes named, those that are there; `recall`: of the shapes there, those named;
        `precision_by_chance`: precision against the next scene instead.
    """
    named = [Counter(_NAME.findall(caption.lower())) for caption in captions]
    there = [Counter(item.name for item in scene) for scene in scenes]
    right = sum((a & b).total() for a, b in zip(named, there, strict=True))
    right_elsewhere = sum((a & b).total() for a, b in zip(named, there[1:] + there[:1], strict=True))
    total = sum(counter.total() for counter in named)
    return {
        "captions": len(captions),
        "precision": _share(right, total),
        "recall": _share(right, sum(counter.total() for counter in there)),
        "precision_by_chance": _share(right_elsewhere, total),
    }


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
