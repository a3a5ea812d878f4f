"""From what annotation files call a segmentation or a box to a region's mask, or the reason why there is none.

Published outlines do reach over the edge of their pictures. They are clipped to the picture, as pycocotools does when
it draws them, and what was clipped by more than a pixel is noted.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from data_pipelines.records import Problem
from data_pipelines.sources.reader import Unusable
from osprey_tp.masks import draw_outlines, to_mask, to_rle
from osprey_tp.run_lengths import Runs

Rle = dict[str, Any]
"""COCO's compressed run-length encoding, in source pixels."""

LEFT_OUT = "degenerate polygon left out of its region"
CLIPPED = "segmentation reaches beyond the picture and was clipped"
BOX_CLIPPED = "box reaches beyond the picture and was clipped"

_MARGIN = 1.0
"""Source pixels that an outline may reach beyond the picture without a word."""


def read_segmentation(segmentation: Any, height: int, width: int) -> tuple[Rle, list[Problem]]:
    """The mask of an annotation in any of COCO's three forms.

    Polygons of fewer than three points are left out where others remain: pycocotools would take one of two points for
    a box. What reaches beyond the picture is clipped.

    Args:
        segmentation: Polygons, or compressed or uncompressed RLE.
        height: Of the picture, in source pixels.
        width: Of the picture, in source pixels.

    Returns:
        Compressed RLE in source pixels, and a note for what was left out of it.

    Raises:
        Unusable: with the reason.
    """
    if segmentation is None:
        raise Unusable("no segmentation")
    if isinstance(segmentation, list):
        return _read_polygons(segmentation, height, width)
    if not segmentation:
        raise Unusable("empty segmentation")
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise Unusable("malformed segmentation", f"a {type(segmentation).__name__} that is no run-length encoding")
    try:
        return to_rle(segmentation, height, width), []
    except ValueError as error:
        raise Unusable(_reason(segmentation, height, width), str(error)) from None


def read_box(box: Any, height: int, width: int) -> tuple[Rle, list[Problem]]:
    """The pixels that a box (x0, y0, x1, y1) in source pixels touches; what reaches beyond the picture is clipped.

    Returns:
        Compressed RLE in source pixels, and a note if something was clipped.

    Raises:
        Unusable: if it is no box, has no area, or lies outside the picture.
    """
    x0, y0, x1, y1 = _numbers(box, 4, "malformed box")
    shown = f"[{x0:g}, {y0:g}, {x1:g}, {y1:g}]"
    if x1 <= x0 or y1 <= y0:
        raise Unusable("box without area", shown)
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise Unusable("box lies outside the picture", f"{shown}, picture {height} x {width} (height x width)")
    clipped = _reaches_beyond(np.array([x0, y0, x1, y1]), height, width)
    notes = [Problem(BOX_CLIPPED, f"{shown}, picture {height} x {width} (height x width)")] if clipped else []
    left, top = max(0, math.floor(x0)), max(0, math.floor(y0))
    right, bottom = min(width, math.ceil(x1)), min(height, math.ceil(y1))
    return Runs.of_rectangle((top, bottom), (left, right), height, width).to_rle(), notes


def read_corner_box(box: Any, height: int, width: int) -> tuple[Rle, list[Problem]]:
    """As `read_box`, from COCO's (x, y, width, height)."""
    x, y, across, down = _numbers(box, 4, "malformed box")
    return read_box([x, y, x + across, y + down], height, width)


def box_of(rle: Rle) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) of a mask in source pixels, the far ends exclusive."""
    x0, y0, x1, y1 = Runs.of_rle(rle, *rle["size"]).box
    return float(x0), float(y0), float(x1), float(y1)


def _read_polygons(listed: list[Any], height: int, width: int) -> tuple[Rle, list[Problem]]:
    polygons = [polygon for polygon in listed if not (isinstance(polygon, list) and len(polygon) < 6)]
    left_out = len(listed) - len(polygons)
    if not polygons:
        if any(listed):
            raise Unusable("degenerate polygon", f"{left_out} of fewer than 3 points")
        raise Unusable("empty segmentation")
    outlines = [_numbers(polygon, None, "malformed segmentation") for polygon in polygons]
    inside = [outline for outline in outlines if _touches(outline, height, width)]
    extent = f"{_extent(outlines)}, picture {height} x {width} (height x width)"
    if not inside:
        raise Unusable("segmentation lies outside the picture", extent)
    try:
        runs = draw_outlines(inside, height, width)
    except ValueError as error:
        raise Unusable("outline too long to be drawn", f"{error}; {extent}") from None
    notes = [Problem(LEFT_OUT, f"{left_out} of fewer than 3 points")] if left_out else []
    if any(_reaches_beyond(outline, height, width) for outline in outlines):
        notes.append(Problem(CLIPPED, extent))
    if not runs.area:
        raise Unusable("segmentation covers no pixel", extent)
    return runs.to_rle(), notes


def _numbers(values: Any, count: int | None, reason: str) -> np.ndarray:
    """float64 array of that many finite numbers, or of any even number of them."""
    try:
        numbers = np.asarray(values if isinstance(values, (list, tuple)) else None)
    except ValueError:
        numbers = np.empty((0, 0))
    if numbers.ndim != 1 or numbers.dtype.kind not in "iuf":
        raise Unusable(reason, "it is no flat list of numbers")
    if not np.isfinite(numbers).all():
        raise Unusable(reason, "it holds NaN or an infinite number")
    if len(numbers) != count if count is not None else len(numbers) % 2:
        raise Unusable(reason, f"{len(numbers)} coordinates")
    return numbers.astype(np.float64)


def _touches(outline: np.ndarray, height: int, width: int) -> bool:
    """Whether the outline's bounding box and the picture have a point in common."""
    x, y = outline[0::2], outline[1::2]
    return bool(x.max() >= 0 and y.max() >= 0 and x.min() <= width and y.min() <= height)


def _reaches_beyond(outline: np.ndarray, height: int, width: int) -> bool:
    right, bottom = outline[0::2].max(), outline[1::2].max()
    return bool(outline.min() < -_MARGIN or right > width + _MARGIN or bottom > height + _MARGIN)


def _extent(outlines: list[np.ndarray]) -> str:
    low = np.min([outline.reshape(-1, 2).min(axis=0) for outline in outlines], axis=0)
    high = np.max([outline.reshape(-1, 2).max(axis=0) for outline in outlines], axis=0)
    return f"x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}"


def _reason(segmentation: Any, height: int, width: int) -> str:
    """What kind of failure it is that `to_rle` described in words."""
    if isinstance(segmentation, dict) and segmentation.get("size") != [height, width]:
        return "mask of another size than the picture"
    try:
        to_mask(segmentation, height, width, allow_empty=True)
    except ValueError:
        return "malformed segmentation"
    return "segmentation covers no pixel"
