"""What the app remembers of a user: the open picture, the selection in it and the regions kept.

Masks are held as run-length encodings, a few kilobytes each whatever the picture's size.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.overlay import DrawnRegion, Outline, Overlay, Stroke, trace
from osprey_tp.drawing import Colour, region_colour
from osprey_tp.masks import to_mask, to_rle
from osprey_tp.prompts import region_name
from osprey_tp.segmenters import Box, Point


@dataclass(frozen=True)
class Shape:
    """A mask, kept small: its COCO run-length encoding, its outline, and how sure the segmenter was of it (0 to 1)."""

    rle: dict[str, Any]
    outline: Outline
    score: float = 1.0

    @classmethod
    def of(cls, mask: NDArray[np.bool_], score: float = 1.0) -> "Shape":
        """Of a mask (height, width) in source pixels. Raises `ValueError` if it is empty."""
        return cls(to_rle(mask, *mask.shape), trace(mask), score)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(height, width) boolean, source pixels."""
        return to_mask(self.rle, *self.rle["size"])


@dataclass(frozen=True)
class Region:
    """A region that the user keeps; `number` counts from 1 and is nobody else's until the picture is left."""

    number: int
    shape: Shape

    @property
    def name(self) -> str:
        """As prompts and answers call it: region1, region2, ..."""
        return region_name(self.number - 1)

    @property
    def colour(self) -> Colour:
        """The same in the picture, in the list and in answers."""
        return region_colour(self.number - 1)

    def drawn(self, strength: float = 1.0, note: str = "") -> DrawnRegion:
        """As part of an overlay."""
        return DrawnRegion(self.name, self.shape.outline, self.colour, strength, note)


@dataclass(frozen=True)
class Kept:
    """The regions that a user keeps. `last` is the highest number that was ever given, so that names stay stable."""

    regions: tuple[Region, ...] = ()
    last: int = 0

    def adding(self, *shapes: Shape) -> "Kept":
        """The same with one more region for every shape."""
        new = [Region(self.last + number, shape) for number, shape in enumerate(shapes, start=1)]
        return Kept((*self.regions, *new), self.last + len(new))

    def without(self, number: int) -> "Kept":
        """The same without a region; the others keep their names. Raises `ValueError` if there is no such region."""
        if all(region.number != number for region in self.regions):
            raise ValueError(f"there is no {region_name(number - 1)} to remove")
        return replace(self, regions=tuple(region for region in self.regions if region.number != number))


@dataclass(frozen=True)
class Shown:
    """The open picture: `path` names the user's file, `file` what the browser shows; the size is in source pixels."""

    path: str
    file: str
    height: int
    width: int


@dataclass(frozen=True)
class Prompt:
    """What the user pointed at, in source pixels: points with `labels` true on the object, a box, or drawn strokes."""

    points: tuple[Point, ...] = ()
    labels: tuple[bool, ...] = ()
    box: Box | None = None
    strokes: tuple[Stroke, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.points or self.box or self.strokes)


@dataclass(frozen=True)
class Selection:
    """The region that one user is pointing at.

    Attributes:
        picture: The open picture, None before there is one.
        prompt: What the user pointed at.
        candidates: The masks that it may mean, best first.
        chosen: Index of the one that counts.
        serial: Of the last thing that the user did in the picture, as the page's script numbers it.
        busy: What is being read in place of a picture, "" when nothing is.
    """

    picture: Shown | None = None
    prompt: Prompt = field(default_factory=Prompt)
    candidates: tuple[Shape, ...] = ()
    chosen: int = 0
    serial: int = 0
    busy: str = ""

    @property
    def path(self) -> str:
        """Of the user's file, "" before there is one: with the user's name the key of `PictureCache`."""
        return self.picture.path if self.picture else ""

    @property
    def shape(self) -> Shape | None:
        """The chosen one; None while nothing is selected."""
        return self.candidates[self.chosen] if self.candidates else None

    def cleared(self) -> "Selection":
        """Only the picture."""
        return Selection(self.picture, serial=self.serial)

    def choosing(self, index: int) -> "Selection":
        """The same with another of its masks. Raises `ValueError` if there is none of that index."""
        if not 0 <= index < len(self.candidates):
            raise ValueError(f"no mask {index + 1}: there are {len(self.candidates)}")
        return replace(self, chosen=index)


def selection_overlay(selection: Selection, kept: Kept) -> Overlay:
    """The kept regions, and the selection in the colour that it will have if it is kept, too."""
    regions = [region.drawn(0.7) for region in kept.regions]
    if selection.shape is not None:
        regions.append(DrawnRegion("", selection.shape.outline, region_colour(kept.last)))
    prompt = selection.prompt
    return Overlay(tuple(regions), prompt.points, prompt.labels, prompt.box, prompt.strokes)
