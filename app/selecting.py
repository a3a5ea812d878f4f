"""From what the user points at to masks: reads it, checks it, asks the segmenter or paints the strokes."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.overlay import Stroke
from app.state import Prompt, Shape
from osprey_tp.segmenters import Point, SegmentedImage
from osprey_tp.strokes import touched_by_strokes

MOST_POINTS = 100
MOST_VERTICES = 20_000  # over all strokes


def read_prompt(data: Mapping[str, Any], height: int, width: int) -> Prompt:
    """What the page says that the user pointed at, in a picture of `height` x `width` source pixels.

    Raises `ValueError` if it is malformed, too much, or lies outside the picture.
    """
    try:
        points = tuple(_point(point) for point in data.get("points") or ())
        labels = tuple(bool(label) for label in data.get("labels") or ())
        corners = data.get("box")
        box = tuple(_number(value) for value in corners) if corners else None
        strokes = tuple(
            Stroke(
                tuple(_point(point) for point in stroke["points"]), _number(stroke["width"]), bool(stroke["positive"])
            )
            for stroke in data.get("strokes") or ()
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"cannot tell what was pointed at: {type(error).__name__} {error}") from error
    vertices = sum(len(stroke.points) for stroke in strokes)
    if len(points) > MOST_POINTS or vertices > MOST_VERTICES:
        raise ValueError(
            f"{len(points)} points and {vertices} points of strokes are too many (limits {MOST_POINTS} and "
            f"{MOST_VERTICES}); clear the selection and begin again"
        )
    if len(points) != len(labels):
        raise ValueError(f"{len(points)} points, {len(labels)} labels: each point has one")
    if box is not None and len(box) != 4:
        raise ValueError(f"a box has 4 numbers (x0, y0, x1, y1), got {len(box)}")
    for x, y in chain(points, *(stroke.points for stroke in strokes)):
        if not (0 <= x <= width and 0 <= y <= height):
            raise ValueError(f"({x:g}, {y:g}) lies outside the picture of {width}x{height} pixels; click inside it")
    if any(not 0 < stroke.width <= max(height, width) or not stroke.points for stroke in strokes):
        raise ValueError("a stroke has at least one point, and a width above 0 and within the picture's longer side")
    inside = tuple((min(x, width - 1.0), min(y, height - 1.0)) for x, y in points)
    return Prompt(inside, labels, box and (box[0], box[1], box[2], box[3]), strokes)


def find_shapes(segmented: SegmentedImage, prompt: Prompt, height: int, width: int) -> tuple[Shape, ...]:
    """The masks that a prompt may mean, best first; none as long as nothing in it lies on the object.

    Raises `ValueError` if nothing is found.
    """
    if prompt.strokes:
        return (Shape.of(paint(prompt.strokes, height, width)),)
    if not (any(prompt.labels) or prompt.box):
        return ()
    found = segmented.segment(prompt.points, prompt.labels, prompt.box)
    return tuple(Shape.of(candidate.mask, float(candidate.score)) for candidate in found)


def paint(strokes: Sequence[Stroke], height: int, width: int) -> NDArray[np.bool_]:
    """The mask (height, width) in source pixels that strokes leave, each over those before it.

    Raises `ValueError` if they leave nothing.
    """
    mask = np.zeros((height, width), bool)
    for stroke in strokes:
        touched = touched_by_strokes([stroke.points], stroke.width / 2, height, width)
        mask = mask | touched if stroke.positive else mask & ~touched
    if not mask.any():
        raise ValueError("the strokes leave no region: paint over the object")
    return mask


def _point(point: Any) -> Point:
    x, y = point
    return _number(x), _number(y)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"a coordinate is a number of source pixels, not {value!r}")
    return float(value)
