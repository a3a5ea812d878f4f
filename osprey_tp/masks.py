"""Region masks: every form a region comes in, and how much of each cell it covers.

A *region* may be given as

- a boolean (or 0/1, or zero/non-zero integer) array or tensor (height, width);
- polygons ``[[x1, y1, x2, y2, ...], ...]``, their union;
- a COCO run-length encoding ``{"size": [height, width], "counts": str | bytes | list}``;
- a box ``{"box": [x0, y0, x1, y1]}``;
- a picture (PIL, or the path of a file) where every non-zero pixel is inside;
- ``{"mask": <array, PIL or path>, "points": [[x, y], ...]}``, a mask and the clicks it came from;
- a COCO annotation ``{"segmentation": <polygons or run-length encoding>, ...}``.

`to_mask` turns each into a boolean mask in the frame of *source pixels*: pixel (y, x) is the unit square
[x, x+1) x [y, y+1). Two functions carry it to *cells* (`osprey_tp.tiling` explains the frames), in the tile-major order
of `TilePlan.cell_index`, thumbnail left out:

- `area_coverage` maps the edges of the cells back to source pixels. The grid of cells lies over the canvas, the resized
  picture lies at the canvas's top left, and one resized pixel is ``source / resized`` source pixels high or wide. A
  cell is therefore a rectangle with fractional edges in the source, and its coverage is the exact share of that
  rectangle inside the mask. Nothing is resampled and nothing is lost: the coverages of all cells, times the area of a
  cell, add up to the area of the mask, so a region of a single pixel still has a weight. What a cell sees of the
  padding counts as outside.
- `published_coverage` repeats the published code: the mask is resized to the canvas with nearest neighbours and then
  shrunk to the cells bilinearly without antialiasing. Shrinking by an even patch size averages the four pixels around
  a cell's centre, and a cell is on when that average is above zero. All other pixels are ignored, so thin or small
  regions can vanish.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from osprey_tp.images import MAX_PIXELS, decoding, open_picture
from osprey_tp.tiling import TilePlan

Region = Any
"""A region in any of the forms above."""

_POLYGON_MARGIN = 1.0
_LONGEST_OUTLINE = 2_000_000  # pixels; pycocotools keeps five points for each
_LONGEST_COUNT = 7


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
    if height < 1 or width < 1:
        raise ValueError(f"a picture has at least one pixel, not {height} x {width} (height x width)")
    mask = _any_form_to_mask(region, height, width)
    if not (allow_empty or mask.any()):
        raise ValueError(f"the region is empty: no pixel of the {height} x {width} picture is inside")
    return mask


def to_rle(region: Region, height: int, width: int) -> dict[str, Any]:
    """Compressed COCO run-length encoding ``{"size": [height, width], "counts": str}`` of a region in any form.

    Raises:
        ValueError: As `to_mask`.
    """
    encoded = coco_mask.encode(np.asfortranarray(to_mask(region, height, width), dtype=np.uint8))
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def rle_area(rle: Mapping[str, Any], height: int, width: int) -> int:
    """Pixels inside a COCO run-length encoding, told from its runs without drawing the mask; 0 if it is empty.

    Raises:
        ValueError: If the encoding is malformed or does not fit the picture.
    """
    return int(_checked_runs(rle, height, width)[1::2].sum())


def area_coverage(mask: np.ndarray, plan: TilePlan) -> np.ndarray:
    """Exact share of each cell's area inside the mask.

    Args:
        mask: (plan.height, plan.width), source pixels; non-zero is inside.
        plan: Tiling of the picture.

    Returns:
        float32 (plan.num_cells,) between 0 and 1.

    Raises:
        ValueError: If the mask has another size than the picture.
    """
    mask = _checked_array(mask, plan.height, plan.width)
    cell_rows, cell_cols = _cell_grid(plan)
    if not mask.any():
        return np.zeros(plan.num_cells, dtype=np.float32)
    top, bottom = _extent(mask, axis=0)
    left, right = _extent(mask, axis=1)
    patch = plan.tiling.patch_size
    row_edges = np.arange(cell_rows + 1) * patch * plan.height / plan.resized_height
    col_edges = np.arange(cell_cols + 1) * patch * plan.width / plan.resized_width
    strips = _integrate(mask[top:bottom, left:right], np.clip(row_edges, top, bottom) - top)
    areas = _integrate(strips.T, np.clip(col_edges, left, right) - left).T
    cell_area = row_edges[1] * col_edges[1]
    return _tile_major(areas / cell_area, plan).astype(np.float32)


def published_coverage(mask: np.ndarray, plan: TilePlan) -> np.ndarray:
    """Cells that the published code pools over: those with one of their centre pixels set.

    Args:
        mask: (plan.height, plan.width), source pixels; non-zero is inside.
        plan: Tiling of the picture.

    Returns:
        float32 (plan.num_cells,) of zeros and ones; all zero when the region vanishes.

    Raises:
        ValueError: If the mask has another size than the picture.
    """
    mask = _checked_array(mask, plan.height, plan.width)
    cell_rows, cell_cols = _cell_grid(plan)
    patch = plan.tiling.patch_size
    rows, row_is_picture = _centre_pixels(cell_rows, patch, plan.height, plan.resized_height)
    cols, col_is_picture = _centre_pixels(cell_cols, patch, plan.width, plan.resized_width)
    sampled = mask[np.ix_(rows, cols)] & row_is_picture[:, None] & col_is_picture[None, :]
    on = sampled.reshape(cell_rows, 2, cell_cols, 2).any(axis=(1, 3))
    return _tile_major(on, plan).astype(np.float32)


def area_shape(mask: np.ndarray, side: int) -> np.ndarray:
    """The mask shrunk to a square, whatever its proportions: exact share of each square pixel inside the mask.

    Args:
        mask: (height, width), source pixels; non-zero is inside.
        side: Of the square, in pixels.

    Returns:
        float32 (side, side) between 0 and 1.
    """
    row_edges, col_edges = (np.arange(side + 1) * length / side for length in mask.shape)
    areas = _integrate(_integrate(mask.astype(bool), row_edges).T, col_edges).T
    return (areas / (row_edges[1] * col_edges[1])).astype(np.float32)


def published_shape(mask: np.ndarray, side: int) -> np.ndarray:
    """As `area_shape`, as Osprey does it: bilinear, half-pixel centres, no antialiasing."""
    rows = _interpolate(mask.astype(np.float32), side)
    return np.ascontiguousarray(_interpolate(rows.T, side).T)


def nearest_source_index(resized_index: np.ndarray, source: int, resized: int) -> np.ndarray:
    """Source pixel that nearest-neighbour resizing from ``source`` to ``resized`` pixels takes for each resized pixel.

    The rounding is that of ``torch.nn.functional.interpolate(mode="nearest")``: the ratio and the product are float32.
    """
    ratio = np.float32(source) / np.float32(resized)
    return np.minimum((resized_index.astype(np.float32) * ratio).astype(np.int64), source - 1)


def _any_form_to_mask(region: Region, height: int, width: int) -> np.ndarray:
    if isinstance(region, Mapping):
        return _dict_to_mask(region, height, width)
    if isinstance(region, (str, Path, Image.Image)):
        return _picture_to_mask(region, height, width)
    if isinstance(region, (list, tuple)):
        return _polygons_to_mask(region, height, width)
    if hasattr(region, "detach"):
        region = region.detach().cpu().numpy()
    if isinstance(region, np.ndarray):
        return _checked_array(region, height, width)
    raise ValueError(
        f"a region is an array, polygons, a run-length encoding, a box or a picture, not {type(region).__name__}"
    )


def _dict_to_mask(region: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    if "counts" in region:
        return _rle_to_mask(region, height, width)
    if "segmentation" in region:
        return _any_form_to_mask(region["segmentation"], height, width)
    if "box" in region:
        return _box_to_mask(region["box"], height, width)
    if "mask" in region:
        _check_points(region.get("points", ()), height, width)
        return _any_form_to_mask(region["mask"], height, width)
    keys = ", ".join(sorted(map(str, region))) or "no keys"
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
    name = f"mask file {source}"
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


def _polygons_to_mask(polygons: Sequence[Any], height: int, width: int) -> np.ndarray:
    if not polygons:
        raise ValueError("the region is empty: it has no polygon")
    checked = [_checked_polygon(polygon, index, height, width) for index, polygon in enumerate(polygons)]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(checked, height, width))).astype(bool)


def _checked_polygon(polygon: Any, index: int, height: int, width: int) -> list[float]:
    """Coordinates x1, y1, x2, y2, ... that pycocotools can draw: it walks every edge and trusts every number."""
    coordinates = _finite_numbers(polygon, f"polygon {index}")
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
    length = np.abs(np.diff(coordinates.reshape(-1, 2), axis=0, append=coordinates[None, :2])).max(axis=1).sum()
    if length > _LONGEST_OUTLINE:
        raise ValueError(f"polygon {index} is {length:.0f} pixels long; at most {_LONGEST_OUTLINE} can be drawn")
    return coordinates.tolist()


def _box_to_mask(box: Any, height: int, width: int) -> np.ndarray:
    """Pixels that the box touches: floor(x0) up to ceil(x1), floor(y0) up to ceil(y1), inside the picture."""
    numbers = _finite_numbers(box, "the box")
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
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def _check_points(points: Any, height: int, width: int) -> None:
    for point in points:
        numbers = _finite_numbers(point, "a point")
        if len(numbers) != 2:
            raise ValueError(f"a point has 2 coordinates x, y, not {len(numbers)}")
        x, y = numbers.tolist()
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"the point ({x:g}, {y:g}) lies outside the picture of {height} x {width} pixels (height x width)"
            )


def _finite_numbers(values: Any, name: str) -> np.ndarray:
    """One-dimensional float64 array of numbers that are neither infinite nor NaN."""
    try:
        numbers = np.asarray(values)
    except ValueError:
        numbers = np.empty((0, 0))
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iuf"):
        raise ValueError(f"{name} must be a flat list of numbers")
    numbers = numbers.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} holds NaN or an infinite number")
    return numbers


def _rle_to_mask(rle: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    runs = _checked_runs(rle, height, width)
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def _checked_runs(rle: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """Lengths of the runs, outside and inside by turns, that fill the picture."""
    size = _finite_numbers(rle.get("size", ()), 'the "size" of the run-length encoding').tolist()
    if size != [height, width]:
        shown = " x ".join(f"{side:g}" for side in size) or "an unknown number of"
        raise ValueError(f"the mask has {shown} pixels, the picture {height} x {width} (height x width)")
    counts = rle["counts"]
    runs = _decode_counts(counts) if isinstance(counts, (str, bytes)) else _listed_counts(counts)
    if (runs < 0).any():
        raise ValueError(f"malformed run-length encoding: run {int(np.argmax(runs < 0))} is negative")
    if (runs > height * width).any() or runs.sum() != height * width:
        total = sum(runs.tolist())
        raise ValueError(
            f"malformed run-length encoding: its runs add up to {total} pixels, "
            f"the picture has {height} x {width} = {height * width}"
        )
    return runs


def _listed_counts(counts: Any) -> np.ndarray:
    runs = _finite_numbers(counts, 'the "counts" of the run-length encoding')
    if not (np.abs(runs) < 2**53).all() or (runs != np.floor(runs)).any():
        raise ValueError("malformed run-length encoding: a run is not a whole number")
    return runs.astype(np.int64)


def _decode_counts(counts: str | bytes) -> np.ndarray:
    """Run lengths of a compressed COCO encoding, decoded here because pycocotools trusts the string with its memory.

    Each run is a signed number in groups of five bits, lowest first, one character a group: 48 plus the bits, plus 32
    when another group follows; bit 16 of the last group is the sign. From the fourth run on, the number is the
    difference to the run two before.
    """
    try:
        encoded = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError:
        raise ValueError("malformed run-length encoding: a character does not belong there") from None
    groups = np.frombuffer(encoded, dtype=np.uint8).astype(np.int64) - 48
    if groups.size == 0:
        return groups
    if groups.min() < 0 or groups.max() > 63:
        raise ValueError("malformed run-length encoding: a character does not belong there")
    ends = np.flatnonzero((groups & 32) == 0)
    if ends.size == 0 or ends[-1] != groups.size - 1:
        raise ValueError("malformed run-length encoding: it breaks off inside a number")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST_COUNT:
        raise ValueError("malformed run-length encoding: a run has too many digits")
    shifts = 5 * (np.arange(groups.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((groups & 31) << shifts, starts)
    runs -= np.where(groups[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _cell_grid(plan: TilePlan) -> tuple[int, int]:
    return plan.rows * plan.tiling.cells_per_side, plan.cols * plan.tiling.cells_per_side


def _tile_major(cells: np.ndarray, plan: TilePlan) -> np.ndarray:
    """(cell rows, cell columns) of the canvas -> (plan.num_cells,) tile by tile."""
    side = plan.tiling.cells_per_side
    return cells.reshape(plan.rows, side, plan.cols, side).transpose(0, 2, 1, 3).reshape(-1)


def _extent(mask: np.ndarray, axis: int) -> tuple[int, int]:
    """First occupied index along an axis of a (height, width) mask, and one past the last."""
    indices = np.flatnonzero(mask.any(axis=1 - axis))
    return int(indices[0]), int(indices[-1]) + 1


def _integrate(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Integrals of a step function along axis 0 between neighbouring edges: (n, m) and (k + 1,) -> float64 (k, m).

    The function has the value ``values[i]`` on [i, i + 1), so its integral up to a fractional edge is the cumulative
    sum below the edge plus the fraction of the value there.
    """
    dtype = np.int64 if values.dtype == bool else np.float64
    cumulative = np.zeros((len(values) + 1, values.shape[1]), dtype=dtype)
    np.cumsum(values, axis=0, dtype=dtype, out=cumulative[1:])
    below = np.minimum(edges.astype(np.int64), len(values) - 1)
    fraction = (edges - below)[:, None]
    return np.diff(cumulative[below] + fraction * values[below], axis=0)


def _interpolate(values: np.ndarray, size: int) -> np.ndarray:
    """Linear interpolation along axis 0 at ``size`` half-pixel centres: float32 (n, m) -> float32 (size, m)."""
    places = np.maximum((np.arange(size) + 0.5) * len(values) / size - 0.5, 0)
    below = places.astype(np.int64)
    above = np.minimum(below + 1, len(values) - 1)
    fraction = (places - below).astype(np.float32)[:, None]
    return values[below] * (1 - fraction) + values[above] * fraction


def _centre_pixels(cells: int, patch: int, source: int, resized: int) -> tuple[np.ndarray, np.ndarray]:
    """Source pixels of the two centre pixels of each cell along one axis, and whether they show the picture.

    Returns:
        int64 (2 * cells,) and bool (2 * cells,); where the second is False the canvas is padding.
    """
    offsets = np.array([(patch - 1) // 2, patch // 2])
    canvas = (np.arange(cells)[:, None] * patch + offsets).reshape(-1)
    return nearest_source_index(canvas, source, resized), canvas < resized
