"""Proposals for the objects of a picture without a click: connected areas of similar colour.

Pixels are grouped into few colours by k-means, once in CIELAB and once by the share of red, green and blue in them,
which light and shadow, stripes and dots of a darker shade leave as it is. Each group falls into connected areas, once
as it is and once with narrow gaps closed. No single grouping finds all objects; together they propose each several
times.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Features = NDArray[np.float32]

COLOURS_IN_LAB = (6, 8, 12)
COLOURS_IN_SHARES = (4, 6, 8, 12)
GAPS = (0, 2)  # radii in pixels of what is closed
SMALLEST_AREA = 40  # pixels
LARGEST_SHARE = 0.5  # of the picture: what is larger is its background
HOLE_SHARE = 0.1  # of an area: smaller holes in it are dots on an object, larger ones the inside of a ring
LEARNT_PIXELS = 8000  # of which the colours are learnt
SHADOW = 8  # added to the channels, so that the noise of dark pixels is no colour


def colour_areas(pixels: NDArray[np.uint8]) -> list[Mask]:
    """Masks (height, width) of connected areas of an RGB picture (height, width, 3), many of them found repeatedly."""
    height, width = pixels.shape[:2]
    if height * width < SMALLEST_AREA:
        return []
    cv2.setRNGSeed(0)
    areas: list[Mask] = []
    for features, numbers in ((_lab(pixels), COLOURS_IN_LAB), (_shares(pixels), COLOURS_IN_SHARES)):
        for number in numbers:
            groups = _grouped(features, number)
            for group in range(number):
                areas.extend(_areas_of(groups == group))
    return areas


def _lab(pixels: NDArray[np.uint8]) -> Features:
    smooth = cv2.bilateralFilter(cv2.medianBlur(pixels, 3), 5, 30, 3)
    return cv2.cvtColor(smooth, cv2.COLOR_RGB2LAB).astype(np.float32)


def _shares(pixels: NDArray[np.uint8]) -> Features:
    """Red, green and blue divided by their sum, scaled to 255."""
    smooth = cv2.medianBlur(pixels, 5).astype(np.float32) + SHADOW
    return smooth / smooth.sum(axis=-1, keepdims=True) * 255


def _grouped(features: Features, number: int) -> NDArray[np.intp]:
    """(height, width) index of the nearest of so many colours."""
    height, width = features.shape[:2]
    flat = features.reshape(-1, 3)
    learnt = np.ascontiguousarray(flat[:: max(1, len(flat) // LEARNT_PIXELS)])
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    _, _, centres = cv2.kmeans(learnt, number, np.zeros((len(learnt), 1), np.int32), stop, 2, cv2.KMEANS_PP_CENTERS)
    distances = (centres**2).sum(axis=1) - 2 * flat @ centres.T
    return distances.argmin(axis=1).reshape(height, width)


def _areas_of(group: Mask) -> Iterator[Mask]:
    """The connected areas of a group of pixels, small holes filled."""
    for gap in GAPS:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * gap + 1, 2 * gap + 1))
        closed = cv2.morphologyEx(group.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
        count, parts, statistics, _ = cv2.connectedComponentsWithStats(closed, connectivity=4)
        for part in range(1, count):
            x, y, width, height, area = statistics[part]
            if SMALLEST_AREA <= area <= LARGEST_SHARE * group.size:
                mask = np.zeros(group.shape, bool)
                inside = parts[y : y + height, x : x + width] == part
                mask[y : y + height, x : x + width] = _without_small_holes(inside)
                yield mask


def _without_small_holes(area: Mask) -> Mask:
    around = np.pad(~area, 1, constant_values=True)
    _, holes, statistics, _ = cv2.connectedComponentsWithStats(around.astype(np.uint8), connectivity=4)
    small = np.flatnonzero(statistics[:, cv2.CC_STAT_AREA] < HOLE_SHARE * area.sum())
    return area | np.isin(holes, small[small > 0])[1:-1, 1:-1]
