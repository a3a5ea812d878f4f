"""Brush strokes become a region mask."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from osprey_tp.segmenters import Point

LARGEST_RADIUS = 16_000
"""Source pixels; OpenCV draws no line thicker than 32767 pixels."""

_FURTHEST = 1e12  # source pixels; positions beyond it are moved there, so that differences stay exact to 0.001 pixels
_FRACTION_BITS = 4  # OpenCV takes positions as integers with so many binary places


def mask_of_strokes(strokes: Sequence[Sequence[Point]], radius: float, height: int, width: int) -> NDArray[np.bool_]:
    """The region that strokes paint; see `touched_by_strokes`.

    Raises:
        ValueError: Also if no pixel of the picture is touched.
    """
    mask = touched_by_strokes(strokes, radius, height, width)
    if not mask.any():
        raise ValueError(f"no stroke touches the picture of {width}x{height} pixels; draw on the picture")
    return mask


def touched_by_strokes(strokes: Sequence[Sequence[Point]], radius: float, height: int, width: int) -> NDArray[np.bool_]:
    """Boolean mask (height, width) of what a round brush touches on its way along the strokes; may be empty.

    Args:
        strokes: Polylines of (x, y) in source pixels, which may leave the picture; a single point is a dot.
        radius: Of the brush in source pixels; the brush is at least one pixel wide.
        height: Of the picture in source pixels.
        width: Of the picture in source pixels.

    Raises:
        ValueError: If a number is not finite, or the radius is not above 0 or above `LARGEST_RADIUS`.
    """
    if not 0 < radius <= LARGEST_RADIUS:
        raise ValueError(f"the brush's radius must be above 0 and at most {LARGEST_RADIUS} pixels, not {radius:g}")
    polylines = [_positions(stroke, number) for number, stroke in enumerate(strokes, start=1)]
    starts = np.concatenate([np.zeros((0, 2)), *(line[:1] for line in polylines), *(line[:-1] for line in polylines)])
    ends = np.concatenate([np.zeros((0, 2)), *(line[:1] for line in polylines), *(line[1:] for line in polylines)])
    starts, ends = _clipped(starts, ends, radius + 1, height, width)
    return _drawn(starts, ends, radius, height, width)


def _positions(stroke: Sequence[Point], number: int) -> NDArray[np.float64]:
    """(n, 2) positions of one stroke."""
    try:
        positions = np.asarray(stroke, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"stroke {number} is no list of (x, y) positions: {' '.join(str(error).split())}") from error
    if positions.ndim != 2 or positions.shape[1] != 2 or not len(positions):
        raise ValueError(f"stroke {number} is no list of (x, y) positions: it has the shape {positions.shape}")
    if not np.isfinite(positions).all():
        raise ValueError(f"stroke {number} has a position that is not finite")
    return positions.clip(-_FURTHEST, _FURTHEST)


def _clipped(
    starts: NDArray[np.float64], ends: NDArray[np.float64], margin: float, height: int, width: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lines (n, 2), (n, 2) cut at the picture's edges widened by a margin; those wholly outside are left out.

    The slab method: along each axis, a line is inside for an interval of its parameter from 0 to 1.
    """
    low, high = np.full(2, -margin), np.array([width, height]) + margin
    steps = ends - starts
    with np.errstate(divide="ignore", invalid="ignore"):
        crossings = np.sort(np.stack([(low - starts) / steps, (high - starts) / steps]), axis=0)
    inside = (low <= starts) & (starts <= high)
    still = steps == 0
    enter = np.where(still, np.where(inside, 0, 2), crossings[0]).max(axis=1, initial=0)[:, None]
    leave = np.where(still, 1, crossings[1]).min(axis=1, initial=1)[:, None]
    kept = (enter <= leave)[:, 0]
    cut_starts, cut_ends = starts + enter * steps, starts + leave * steps
    return cut_starts[kept].clip(low, high), cut_ends[kept].clip(low, high)


def _drawn(
    starts: NDArray[np.float64], ends: NDArray[np.float64], radius: float, height: int, width: int
) -> NDArray[np.bool_]:
    """Lines drawn with round ends; OpenCV's whole numbers are the centres of pixels."""
    import cv2

    canvas = np.zeros((height, width), np.uint8)
    lines = np.round((np.stack([starts, ends], axis=1) - 0.5) * 2**_FRACTION_BITS).astype(np.int32)
    thickness = max(1, round(2 * radius))
    for line in lines:
        cv2.polylines(canvas, [line], isClosed=False, color=1, thickness=thickness, shift=_FRACTION_BITS)
    return canvas.astype(bool)
