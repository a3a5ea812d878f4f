"""What the programming interfaces take, checked before anything is done with it.

A region is one of

- `{"box": [x0, y0, x1, y1]}`: the rectangle;
- `{"segmentation": {"size": [height, width], "counts": ...}}`: a COCO run-length encoding, compressed or not;
- `{"segmentation": [[x1, y1, x2, y2, ...], ...]}`: polygons;
- `{"points": [[x, y], ...], "labels": [1, ...]}`, with a `box` or without: what the segmenter finds there; points
  labelled 0 lie off the object, all lie on it if there are no labels.

All coordinates are source pixels of the picture as it is shown, turned upright.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from app.pictures import OpenPicture
from osprey_tp.masks import to_rle
from osprey_tp.outside import one_line

MOST_POINTS = 64
LONGEST_TEXT = 20_000  # characters of a request

Point = tuple[FiniteFloat, FiniteFloat]
Box = tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]


class Strict(BaseModel):
    """Takes nothing that it does not know."""

    model_config = ConfigDict(extra="forbid")


class RunLengths(Strict):
    """A COCO run-length encoding."""

    size: tuple[int, int]
    counts: str | list[int]


class Region(Strict):
    """A region, in one of the forms above."""

    box: Box | None = None
    segmentation: RunLengths | list[list[FiniteFloat]] | None = None
    points: Annotated[list[Point], Field(min_length=1, max_length=MOST_POINTS)] | None = None
    labels: list[Literal[0, 1]] | None = None

    @model_validator(mode="after")
    def _is_one_of_the_forms(self) -> "Region":
        if self.labels is not None and len(self.labels) != len(self.points or ()):
            raise ValueError(f"{len(self.points or ())} points, {len(self.labels)} labels: give one label a point")
        if (self.segmentation is not None) == (self.points is not None or self.box is not None):
            raise ValueError("a region is a box, a segmentation, or points with or without a box")
        return self

    def resolve(self, picture: OpenPicture) -> dict[str, Any]:
        """The region as `osprey_tp.masks` takes it, in a compact form. Model work where there are points.

        Raises:
            ValueError: if the segmenter finds nothing. What is wrong with other forms shows when they are drawn.
        """
        if self.points is not None:
            labels = [label == 1 for label in self.labels or [1] * len(self.points)]
            best = picture.segmented.segment(self.points, labels, self.box)[0]
            return to_rle(best.mask, *best.mask.shape)
        return self.model_dump(include={"box", "segmentation"}, exclude_none=True)


def resolve_all(regions: Sequence[Region], picture: OpenPicture) -> Iterator[dict[str, Any]]:
    """Every region as `osprey_tp.masks` takes it. Model work. Raises `ValueError` naming the region's number."""
    for number, region in enumerate(regions, start=1):
        try:
            yield region.resolve(picture)
        except ValueError as error:
            raise ValueError(f"region {number}: {error}") from error


def first_problem(error: ValidationError, data: Any) -> tuple[str, str]:
    """(where, what) of the first of the most specific things that a schema found wrong with `data`; where is like
    `messages.0.content.1.regions.0`.
    """
    problems = error.errors(include_url=False, include_context=False)
    places = [_place(problem["loc"], data, problem["type"] == "missing") for problem in problems]
    deepest = max(range(len(places)), key=lambda index: len(places[index]))
    what = one_line(str(problems[deepest]["msg"]).removeprefix("Value error, "))
    return ".".join(str(part) for part in places[deepest]), what


def _place(location: Sequence[str | int], data: Any, missing: bool) -> list[str | int]:
    """The part of a location that leads through the data, without the names of the forms that were tried."""
    place: list[str | int] = []
    for part in location:
        if (isinstance(data, dict) and part in data) or (isinstance(data, list) and part in range(len(data))):
            data = data[part]  # type: ignore[index]
            place.append(part)
    return [*place, location[-1]] if missing else place
