"""Region masks: every form a region comes in.

A *region* may be given as

- a boolean (or 0/1, or zero/non-zero integer) array or tensor (height, width);
- polygons ``[[x1, y1, x2, y2, ...], ...]``, their union;
- a COCO run-length encoding ``{"size": [height, width], "counts": str | bytes | list}``;
- a box ``{"box": [x0, y0, x1, y1]}``;
- a picture (PIL, or the path of a file) where every non-zero pixel is inside;
- ``{"mask": <array, PIL or path>, "points": [[x, y], ...]}``, a mask and the clicks it came from;
- a COCO annotation ``{"segmentation": <polygons or run-length encoding>, ...}``.

`to_runs` turns each into runs of pixels and `to_mask` into a boolean mask, both in the frame of *source pixels*: pixel
(y, x) is the unit square [x, x+1) x [y, y+1). `osprey_tp.coverage` carries them to cells.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from osprey_tp.images import MAX_PIXELS, check_pixels, decoding, name_of, open_picture
from osprey_tp.outside import one_line
from osprey_tp.run_lengths import Runs, finite_numbers

Region = Any
"""A region in any of the forms above."""

_POLYGON_MARGIN = 1.0
_LONGEST_OUTLINE = 2_000_000  # source pixels, of all polygons of a region
_MERGED = 16  # polygons that are merged at a time


def to_mask(region: Region, height: int, width: int, *, allow_empty: bool = False) -> np.ndarray:
    """Boolean mask (height, width) of a region, in source pixels.

    Args:
        region: The region in any form.
        height: Height of the picture in source pixels.
        width: Width of the picture in source pixels.
        allow_empty: Return a mask without a single pixel instead of refusing it.

    Raises:
        ValueError: If the region is malformed, does not fit the picture or is empty.
    """
    pixels = _pixels(region, height, width)
    if not allow_empty:
        _refuse_empty(pixels, height, width)
    return pixels.draw() if isinstance(pixels, Runs) else pixels


def to_runs(region: Region, height: int, width: int) -> Runs:
    """Runs of a region's pixels; regions that are not given as an array or a picture are never drawn.

    Args:
        region: The region in any form.
        height: Height of the picture in source pixels.
        width: Width of the picture in source pixels.

    Raises:
        ValueError: If the region is malformed, does not fit the picture or is empty.
    """
    pixels = _pixels(region, height, width)
    _refuse_empty(pixels, height, width)
    return pixels if isinstance(pixels, Runs) else Runs.of_mask(pixels)


def to_rle(region: Region, height: int, width: int) -> dict[str, Any]:
    """Compressed COCO run-length encoding ``{"size": [height, width], "counts": str}`` of a region in any form.

    Raises:
        ValueError: As `to_mask`.
    """
    return to_runs(region, height, width).to_rle()


def from_coco(segmentation: Any) -> Region:
    """A segmentation of a file or a message from outside, as it is, if it is in one of COCO's forms.

    The other forms of a region may name files of this machine.

    Raises:
        ValueError: If it is neither a list of polygons nor a run-length encoding.
    """
    if isinstance(segmentation, (list, tuple)) or (isinstance(segmentation, Mapping) and "counts" in segmentation):
        return segmentation
    kind = "dictionary without counts" if isinstance(segmentation, Mapping) else type(segmentation).__name__
    raise ValueError(f"a segmentation is a list of polygons or a run-length encoding, not a {kind}")


def rle_area(rle: Mapping[str, Any], height: int, width: int) -> int:
    """Pixels inside a COCO run-length encoding, told from its runs without drawing the mask; 0 if it is empty.

    Raises:
        ValueError: If the encoding is malformed or does not fit the picture.
    """
    return Runs.of_rle(rle, height, width).area


def _refuse_empty(pixels: np.ndarray | Runs, height: int, width: int) -> None:
    if not (pixels.area if isinstance(pixels, Runs) else pixels.any()):
        raise ValueError(f"the region is empty: no pixel of the {height} x {width} picture is inside")


def _pixels(region: Region, height: int, width: int) -> np.ndarray | Runs:
    """The region as it is had with least work: a boolean mask (height, width), or runs."""
    check_pixels(height, width, MAX_PIXELS, "the picture")
    if isinstance(region, Mapping):
        return _pixels_of_dict(region, height, width)
    if isinstance(region, (str, Path, Image.Image)):
        return _picture_to_mask(region, height, width)
    if isinstance(region, (list, tuple)):
        return _runs_of_polygons(region, height, width)
    if hasattr(region, "detach"):
        region = region.detach().cpu().numpy()
    if isinstance(region, np.ndarray):
        return _checked_array(region, height, width)
    raise ValueError(
        f"a region is an array, polygons, a run-length encoding, a box or a picture, not {type(region).__name__}"
    )


def _pixels_of_dict(region: Mapping[str, Any], height: int, width: int) -> np.ndarray | Runs:
    if "counts" in region:
        return Runs.of_rle(region, height, width)
    if "segmentation" in region:
        return _pixels(from_coco(region["segmentation"]), height, width)
    if "box" in region:
        return _runs_of_box(region["box"], height, width)
    if "mask" in region:
        _check_points(region.get("points", ()), height, width)
        mask = region["mask"]
        if isinstance(mask, Mapping) and "counts" not in mask:
            raise ValueError('the "mask" of a region is an array, a picture or a run-length encoding')
        return _pixels(mask, height, width)
    keys = one_line(", ".join(sorted(map(str, region))) or "no keys")
    raise ValueError(f'a region given as a dictionary needs "counts", "segmentation", "box" or "mask"; it has {keys}')


def _checked_array(array: np.ndarray, height: int, width: int) -> np.ndarray:
    if array.shape != (height, width):
        size = " x ".join(map(str, array.shape))
        raise ValueError(f"the mask has {size} pixels, the picture {height} x {width} (height x width)")
    if array.dtype == bool:
        return array
    if array.dtype.kind in "iu":
        return array != 0
    if array.dtype.kind == "f":
        if not ((array == 0) | (array == 1)).all():
            raise ValueError("a mask of floating-point numbers may hold only 0 and 1; apply a threshold first")
        return array == 1
    raise ValueError(f"a mask holds booleans or numbers, not {array.dtype}")


def _picture_to_mask(source: str | Path | Image.Image, height: int, width: int) -> np.ndarray:
    if isinstance(source, Image.Image):
        return _opened_picture_to_mask(source, height, width, "the mask")
    name = name_of(source, "mask file")
    with open_picture(source, MAX_PIXELS, name) as picture:
        return _opened_picture_to_mask(picture, height, width, name)


def _opened_picture_to_mask(picture: Image.Image, height: int, width: int, name: str) -> np.ndarray:
    if (picture.height, picture.width) != (height, width):
        size = f"{picture.height} x {picture.width}"
        raise ValueError(f"{name} has {size} pixels, the picture {height} x {width} (height x width)")
    with decoding(name):
        bands = np.asarray(picture)
    if bands.ndim == 2:
        return _checked_array(bands, height, width)
    has_alpha = "A" in picture.getbands()
    colour = bands[..., :-1] if has_alpha else bands
    inside = (colour != 0).any(axis=-1)
    return inside & (bands[..., -1] != 0) if has_alpha else inside


def _runs_of_polygons(polygons: Sequence[Any], height: int, width: int) -> Runs:
    if not polygons:
        raise ValueError("the region is empty: it has no polygon")
    outlines = [_checked_polygon(polygon, index, height, width) for index, polygon in enumerate(polygons)]
    return draw_outlines(outlines, height, width)


def draw_outlines(outlines: Sequence[np.ndarray], height: int, width: int) -> Runs:
    """The union of closed outlines, drawn by pycocotools and clipped to the picture.

    pycocotools walks every edge in steps of a fifth of a pixel, keeps each step, and trusts every number.

    Args:
        outlines: At least one; each of finite coordinates x1, y1, x2, y2, ... of at least 3 points, in source pixels.
        height: Of the picture, in source pixels.
        width: Of the picture, in source pixels.

    Raises:
        ValueError: If they are too long, or too far away, to be drawn.
    """
    check_pixels(height, width, MAX_PIXELS, "the picture")
    with np.errstate(over="ignore"):
        length = sum(map(_length, outlines))
    if not length <= _LONGEST_OUTLINE:
        drawn = "polygon is" if len(outlines) == 1 else f"{len(outlines)} polygons are"
        raise ValueError(f"the {drawn} {length:.0f} pixels long; at most {_LONGEST_OUTLINE} can be drawn")
    farthest = max(np.abs(outline).max() for outline in outlines)
    if farthest > max(height, width) + _LONGEST_OUTLINE:
        raise ValueError(f"a polygon reaches to {farthest:g}, too far from the picture of {height} x {width} pixels")
    parts = coco_mask.frPyObjects([outline.tolist() for outline in outlines], height, width)
    while len(parts) > 1:  # few at a time: the time to merge many at once grows with the square of their number
        parts = [coco_mask.merge(parts[first : first + _MERGED]) for first in range(0, len(parts), _MERGED)]
    return Runs.of_rle(parts[0], height, width)


def _length(outline: np.ndarray) -> float:
    """Of a closed outline, along the longer axis of each edge."""
    points = outline.reshape(-1, 2)
    return float(np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum())


def _checked_polygon(polygon: Any, index: int, height: int, width: int) -> np.ndarray:
    """Coordinates x1, y1, x2, y2, ... of at least 3 points that lie in the picture, or up to a pixel beyond."""
    coordinates = finite_numbers(polygon, f"polygon {index}")
    if len(coordinates) % 2:
        raise ValueError(f"polygon {index} has {len(coordinates)} coordinates; x and y come in pairs")
    if len(coordinates) < 6:
        raise ValueError(f"polygon {index} has {len(coordinates) // 2} points; it needs at least 3")
    low, margin = coordinates.min(), _POLYGON_MARGIN
    right, bottom = coordinates[0::2].max(), coordinates[1::2].max()
    if low < -margin or right > width + margin or bottom > height + margin:
        raise ValueError(
            f"polygon {index} leaves the picture of {height} x {width} pixels (height x width): "
            f"its coordinates go from {low:g} to x {right:g} and y {bottom:g}"
        )
    return coordinates


def _runs_of_box(box: Any, height: int, width: int) -> Runs:
    """Pixels that the box touches: floor(x0) up to ceil(x1), floor(y0) up to ceil(y1), inside the picture."""
    numbers = finite_numbers(box, "the box")
    if len(numbers) != 4:
        raise ValueError(f"a box has 4 coordinates x0, y0, x1, y1, not {len(numbers)}")
    x0, y0, x1, y1 = numbers.tolist()
    shown = f"[{x0:g}, {y0:g}, {x1:g}, {y1:g}]"
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"the box {shown} has no area; x0 < x1 and y0 < y1 must hold")
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise ValueError(f"the box {shown} lies outside the picture of {height} x {width} pixels (height x width)")
    top, bottom = max(0, int(np.floor(y0))), min(height, int(np.ceil(y1)))
    left, right = max(0, int(np.floor(x0))), min(width, int(np.ceil(x1)))
    return Runs.of_rectangle((top, bottom), (left, right), height, width)


def _check_points(points: Any, height: int, width: int) -> None:
    if not isinstance(points, (list, tuple, np.ndarray)):
        raise ValueError(f'the "points" of a region are a list, not a {type(points).__name__}')
    for point in points:
        numbers = finite_numbers(point, "a point")
        if len(numbers) != 2:
            raise ValueError(f"a point has 2 coordinates x, y, not {len(numbers)}")
        x, y = numbers.tolist()
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"the point ({x:g}, {y:g}) lies outside the picture of {height} x {width} pixels (height x width)"
            )
