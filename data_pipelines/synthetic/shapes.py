"""Outlines of the shapes, and their exact masks as pycocotools rasterises them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

Polygon = NDArray[np.float64]
"""Vertices (n, 2) as (x, y) in source pixels."""

RING_HOLE = 0.52
"""Radius of a ring's hole as a share of its outer radius."""


def _regular(count: int, radius: float = 1.0, phase: float = 0.0) -> Polygon:
    angles = phase - np.pi / 2 + 2 * np.pi * np.arange(count) / count
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> Polygon:
    points = np.empty((10, 2))
    points[0::2] = _regular(5)
    points[1::2] = _regular(5, radius=0.45, phase=np.pi / 5)
    return points


def _cross() -> Polygon:
    long, short = 0.95, 0.32
    corner = [(short, -long), (short, -short), (long, -short)]
    quarter_turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    arms = [np.array(corner)]
    for _ in range(3):
        arms.append(arms[-1] @ quarter_turn)
    return np.concatenate(arms)


_OUTLINES: dict[str, Polygon] = {
    "circle": _regular(40, radius=0.9),
    "square": _regular(4, phase=np.pi / 4, radius=1.1),
    "triangle": _regular(3, radius=1.15),
    "star": 1.15 * _star(),
    "ring": _regular(40, radius=0.98),
    "cross": _cross(),
}
"""Around the origin, upright, about the same area for the same radius; y points down."""


def outline(shape: str, centre: tuple[float, float], radius: float, rotation: float) -> list[Polygon]:
    """The polygons of a shape in source pixels: its border, and for a ring its hole as a second one.

    Args:
        shape: one of ``vocabulary.SHAPES``.
        centre: (x, y) in source pixels.
        radius: nominal radius in source pixels.
        rotation: clockwise, in radians.

    """
    cos, sin = np.cos(rotation), np.sin(rotation)
    turn = np.array([[cos, sin], [-sin, cos]])
    border = np.round(radius * _OUTLINES[shape] @ turn + np.asarray(centre), 2)
    if shape != "ring":
        return [border]
    hole = np.round(radius * RING_HOLE * _OUTLINES[shape] @ turn + np.asarray(centre), 2)
    return [border, hole]


def rasterise(polygons: list[Polygon], height: int, width: int) -> NDArray[np.bool_]:
    """The mask (height, width) of a border less its holes, each rasterised by pycocotools."""
    runs = mask_utils.frPyObjects([polygon.ravel().tolist() for polygon in polygons], height, width)
    planes = mask_utils.decode(runs).astype(bool)
    return planes[:, :, 0] & ~planes[:, :, 1:].any(axis=2)
