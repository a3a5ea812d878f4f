"""Where the labels of regions go in a picture: on the region where there is room, else beside it, none on another.

All places are in source pixels; a plate is the rectangle (x0, y0, x1, y1) that a label is written on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rectangle = tuple[float, float, float, float]
Point = tuple[float, float]

COARSE_SIDE = 320
"""Pixels of the longer side of the map on which room is looked for."""
_RINGS = 12
_DIRECTIONS = ((0, -1), (0, 1), (1, 0), (-1, 0), (1, -1), (-1, -1), (1, 1), (-1, 1))


@dataclass(frozen=True)
class Plate:
    """Where a label goes, and the point of its region that a line leads to; None where plate and region touch."""

    rectangle: Rectangle
    leads_to: Point | None = None


def place_labels(
    regions: Sequence[tuple[NDArray[np.bool_], int, int]],
    sizes: Sequence[tuple[int, int] | None],
    height: int,
    width: int,
    gap: int,
) -> list[Plate | None]:
    """A plate for every region.

    Args:
        regions: Of each, the part of its mask inside its bounding box, and the box's top and left.
        sizes: (width, height) of each plate; None for a region without a label.
        height: Of the picture.
        width: Of the picture.
        gap: Between a region and a plate beside it.

    Returns:
        Plates inside the picture, as far as they are not larger than it; they overlap only where all room is taken.
    """
    order = sorted(range(len(regions)), key=lambda index: int(regions[index][0].sum()))
    inmost = _inmost_places(regions, order, height, width)
    plates: list[Plate | None] = [None] * len(regions)
    taken: list[Rectangle] = []
    for index in order:
        size = sizes[index]
        if size is None:
            continue
        mask, top, left = regions[index]
        box = (left, top, left + mask.shape[1], top + mask.shape[0])
        place, depth = inmost[index]
        places = list(_around(box, size, gap))
        if depth > 0.4 * max(size):
            places.insert(0, (place[0] - size[0] / 2, place[1] - size[1] / 2))
        inside = (_moved_inside((x, y, x + size[0], y + size[1]), height, width) for x, y in places)
        chosen = _first_free(inside, taken)
        taken.append(chosen)
        plates[index] = Plate(chosen, place if _distance(chosen, box) > 2 * gap + 1 else None)
    return plates


def _inmost_places(
    regions: Sequence[tuple[NDArray[np.bool_], int, int]], order: Sequence[int], height: int, width: int
) -> list[tuple[Point, float]]:
    """Of every region, the place that lies deepest inside what smaller regions leave visible of it, and how deep."""
    step = max(1, -(-max(height, width) // COARSE_SIDE))
    owner = np.full((-(-height // step) + 2, -(-width // step) + 2), -1)
    for index in reversed(order):
        mask, top, left = regions[index]
        rows, columns = np.arange(-top % step, mask.shape[0], step), np.arange(-left % step, mask.shape[1], step)
        window = owner[(top + step - 1) // step + 1 :, (left + step - 1) // step + 1 :][: len(rows), : len(columns)]
        window[mask[np.ix_(rows, columns)]] = index
    depth = _depths(owner)
    places: list[tuple[Point, float]] = []
    for index, (mask, top, left) in enumerate(regions):
        owned = np.where(owner == index, depth, 0)
        row, column = map(int, np.unravel_index(int(owned.argmax()), owned.shape))
        if owned[row, column]:
            places.append((((column - 1) * step + 0.5, (row - 1) * step + 0.5), float(step * owned[row, column])))
        else:
            places.append((_some_place(mask, top, left), 0.0))
    return places


def _some_place(mask: NDArray[np.bool_], top: int, left: int) -> Point:
    """A pixel of the mask, near its middle."""
    if not mask.size:
        return 0.0, 0.0
    rows = np.flatnonzero(mask.any(axis=1))
    row = rows[len(rows) // 2]
    columns = np.flatnonzero(mask[row])
    return left + float(columns[len(columns) // 2]) + 0.5, top + float(row) + 0.5


def _depths(owner: NDArray[np.int_]) -> NDArray[np.int_]:
    """Steps from every place of a map to the nearest one with another number, or to the map's edge; at least 1."""
    depth = np.zeros(owner.shape, dtype=int)
    inside = np.zeros(owner.shape, dtype=bool)
    inside[1:-1, 1:-1] = owner[1:-1, 1:-1] >= 0
    while inside.any():
        depth += inside
        same = inside.copy()
        for axis in (0, 1):
            for shift in (1, -1):
                same &= np.roll(inside, shift, axis) & (np.roll(owner, shift, axis) == owner)
        inside = same
    return depth


def _around(box: Rectangle, size: tuple[int, int], gap: int) -> Iterator[Point]:
    """Top left corners of plates beside a box: above, below, right, left, at its corners, then ever farther off."""
    centre_x, centre_y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    for ring in range(_RINGS):
        reach_x = (box[2] - box[0] + size[0]) / 2 + gap + ring * 0.7 * size[0]
        reach_y = (box[3] - box[1] + size[1]) / 2 + gap + ring * 0.7 * size[1]
        for right, down in _DIRECTIONS:
            yield centre_x + right * reach_x - size[0] / 2, centre_y + down * reach_y - size[1] / 2


def _moved_inside(plate: Rectangle, height: int, width: int) -> Rectangle:
    x = max(0.0, min(plate[0], width - 1 - (plate[2] - plate[0])))
    y = max(0.0, min(plate[1], height - 1 - (plate[3] - plate[1])))
    return x, y, x + plate[2] - plate[0], y + plate[3] - plate[1]


def _first_free(plates: Iterator[Rectangle], taken: Sequence[Rectangle]) -> Rectangle:
    """The first plate on no other; if there is none, the one that covers least of others."""
    best, least = (0.0, 0.0, 0.0, 0.0), np.inf
    others = np.array(taken).reshape(-1, 4)
    for plate in plates:
        across = np.minimum(others[:, 2], plate[2]) - np.maximum(others[:, 0], plate[0])
        down = np.minimum(others[:, 3], plate[3]) - np.maximum(others[:, 1], plate[1])
        covered = float((np.maximum(across, 0) * np.maximum(down, 0)).sum())
        if covered < least:
            best, least = plate, covered
        if not covered:
            break
    return best


def _distance(plate: Rectangle, box: Rectangle) -> float:
    """Between two rectangles, the larger of its two directions; 0 where they touch or overlap."""
    across = max(box[0] - plate[2], plate[0] - box[2], 0)
    down = max(box[1] - plate[3], plate[1] - box[3], 0)
    return max(across, down)
