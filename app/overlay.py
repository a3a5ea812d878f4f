"""What is drawn over the picture: regions in their colours, the points and the box of the selection."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osprey_tp.drawing import Colour
from osprey_tp.segmenters import Box, Point

SHOWN_SIDE = 1600  # pixels of the picture's longer side, beyond which an outline is exact enough
DEVIATION = 1 / 1000  # of a simplified outline from the mask's, as a share of the picture's longer side
LEAST_LENGTH = 1 / 300  # of an outline's part, as a share of the picture's longer side; shorter ones are left out


@dataclass(frozen=True)
class Outline:
    """A mask's outline in source pixels: an SVG path to be filled by the even-odd rule, and a place for its label."""

    path: str
    anchor: Point


@dataclass(frozen=True)
class DrawnRegion:
    """A region over the picture.

    Attributes:
        name: Its label, "" for none; hovering the same name in an answer makes the region stand out.
        mask: (height, width) boolean, source pixels; or the outline of one, where it has been traced already.
        colour: Of fill and label.
        strength: Of the fill, 0 (outline alone) to 1.
        note: What hovering it tells.
    """

    name: str
    mask: NDArray[np.bool_] | Outline
    colour: Colour
    strength: float = 1.0
    note: str = ""


@dataclass(frozen=True)
class Stroke:
    """A line drawn by hand, `width` source pixels wide, that adds to the region or takes away from it."""

    points: tuple[Point, ...]
    width: float
    positive: bool = True


@dataclass(frozen=True)
class Overlay:
    """All that is drawn over a picture, in source pixels."""

    regions: tuple[DrawnRegion, ...] = ()
    points: tuple[Point, ...] = ()
    labels: tuple[bool, ...] = ()
    box: Box | None = None
    strokes: tuple[Stroke, ...] = ()


def trace(mask: NDArray[np.bool_]) -> Outline:
    """The outline of a mask (height, width) in source pixels, simplified so that it stays small.

    Holes and separate parts are parts of the one path. An empty mask has an empty path.
    """
    import cv2

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return Outline("", (0.0, 0.0))
    top, left = int(rows[0]), int(columns[0])
    window = np.ascontiguousarray(mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1], dtype=np.uint8)
    longer = max(mask.shape)
    # The contour runs through the centres of pixels: those of small pictures are divided, to come near their edges.
    parts = min(max(SHOWN_SIDE // longer, 1), 4)
    fine = cv2.resize(window, None, fx=parts, fy=parts, interpolation=cv2.INTER_NEAREST) if parts > 1 else window
    contours, _ = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    sizes = [len(contour) for contour in contours]
    least = min(max(sizes), parts * longer * LEAST_LENGTH)
    path = ""
    for contour in (contour for contour, size in zip(contours, sizes, strict=True) if size >= least):
        points = cv2.approxPolyDP(contour, parts * longer * DEVIATION, closed=True)[:, 0]
        path += _closed_path((points + 0.5) / parts + (left, top))
    anchor_x, anchor_y = _inmost(window)
    return Outline(path, (left + anchor_x, top + anchor_y))


def overlay_json(overlay: Overlay) -> dict[str, Any]:
    """The overlay as the page's script draws it."""
    return {
        "regions": [_region_json(region) for region in overlay.regions],
        "points": [list(point) for point in overlay.points],
        "labels": list(overlay.labels),
        "box": list(overlay.box) if overlay.box else None,
        "strokes": [
            {"points": [list(point) for point in stroke.points], "width": stroke.width, "positive": stroke.positive}
            for stroke in overlay.strokes
        ],
    }


def css_colour(colour: Colour) -> str:
    """As style sheets write it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _region_json(region: DrawnRegion) -> dict[str, Any]:
    outline = region.mask if isinstance(region.mask, Outline) else trace(region.mask)
    return {
        "name": region.name,
        "path": outline.path,
        "anchor": list(outline.anchor),
        "colour": css_colour(region.colour),
        "strength": region.strength,
        "note": region.note,
    }


def _closed_path(points: NDArray[np.float64]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points.round(2).tolist()) + "Z"


def _inmost(window: NDArray[np.uint8]) -> Point:
    """The centre (x, y) of the pixel that lies deepest inside the mask."""
    import cv2

    depth = cv2.distanceTransform(np.pad(window, 1), cv2.DIST_L2, 3)
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return float(x) - 0.5, float(y) - 0.5
