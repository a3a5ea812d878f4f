"""How much of each cell a region covers.

Two ways lead from the pixels of a region to *cells* (`osprey_tp.tiling` explains the frames), in the tile-major order
of `TilePlan.cell_index`, thumbnail left out:

- `area_coverage` maps the edges of the cells back to source pixels. The grid of cells lies over the canvas, the resized
  frame lies at the canvas's top left, and one resized pixel is ``frame / resized`` source pixels high or wide. A
  cell is therefore a rectangle with fractional edges in the source, and its coverage is the exact share of that
  rectangle inside the region. Nothing is resampled and nothing is lost: the coverages of all cells, times the area of
  a cell, add up to the area of the region, so a region of a single pixel still has a weight. What a cell sees of the
  padding counts as outside.
- `published_coverage` repeats the published code: the mask is resized to the canvas with nearest neighbours and then
  shrunk to the cells bilinearly without antialiasing. Shrinking by an even patch size averages the four pixels around
  a cell's centre, and a cell is on when that average is above zero. All other pixels are ignored, so thin or small
  regions can vanish.

Neither draws a mask. A region is cut into *segments*, each a run of pixels in one column of the picture, and a segment
adds to all cells below its top edge and takes from all cells below its bottom edge. Both edges of all segments of all
regions are counted into the cells that they lie in, and one cumulative sum down the cells finishes the work, which thus
grows with the outlines of the regions and not with their pixels. In lengths of ``1 / resized`` source pixels, all edges
of pixels and of cells are whole numbers, so areas are exact (`_Axis`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from osprey_tp.run_lengths import Runs
from osprey_tp.tiling import TilePlan

_RUNS_AT_A_TIME = 1 << 18


@dataclass(frozen=True)
class _Axis:
    """Pixels and cells along one side of a picture, in a unit in which the edges of both are whole numbers.

    Attributes:
        pixel: Length of a source pixel.
        cell: Length of a cell.
        cells: How many cells.
        before: Pixels of padding between the first cell's edge and the picture.
    """

    pixel: int
    cell: int
    cells: int
    before: int = 0


@dataclass(frozen=True)
class _Segments:
    """Runs of pixels that stay in one column: int64 arrays (segments,).

    Attributes:
        region: Number of the region.
        column: Source pixels.
        top: Source pixels.
        bottom: Source pixels, one past the last pixel.
    """

    region: np.ndarray
    column: np.ndarray
    top: np.ndarray
    bottom: np.ndarray


def area_coverage(regions: Sequence[Runs], plan: TilePlan) -> np.ndarray:
    """Exact share of each cell's area inside each region.

    Args:
        regions: Of the picture that the plan cuts.
        plan: Tiling of the picture.

    Returns:
        float32 (regions, plan.num_cells) between 0 and 1.

    Raises:
        ValueError: If a region has another size than the picture.
    """
    patch, (rows, cols) = plan.tiling.patch_size, _cell_grid(plan)
    down = _Axis(plan.resized_height, patch * plan.frame_height, rows, plan.top)
    across = _Axis(plan.resized_width, patch * plan.frame_width, cols, plan.left)
    return _tile_major(_area_shares(regions, plan.height, plan.width, down, across), plan)


def published_coverage(regions: Sequence[Runs], plan: TilePlan) -> np.ndarray:
    """Cells that the published code pools over: those with one of their centre pixels set.

    Args:
        regions: Of the picture that the plan cuts.
        plan: Tiling of the picture.

    Returns:
        float32 (regions, plan.num_cells) of zeros and ones; all zero where a region vanishes.

    Raises:
        ValueError: If a region has another size than the picture.
    """
    patch, (rows, cols) = plan.tiling.patch_size, _cell_grid(plan)
    above = _glances_before(rows, patch, plan.frame_height, plan.resized_height)[plan.top :]
    before = _glances_before(cols, patch, plan.frame_width, plan.resized_width)[plan.left :]
    entered = np.zeros((len(regions), rows + 1, cols), dtype=np.int64)
    for part in _segments(regions, plan.height, plan.width):
        seen = (above[part.bottom] > above[part.top]) & (before[part.column + 1] > before[part.column])
        segment, col = _spread(before[part.column[seen]] // 2, (before[part.column[seen] + 1] + 1) // 2)
        region = part.region[seen][segment]
        first, last = above[part.top[seen]] // 2, (above[part.bottom[seen]] + 1) // 2
        entered += _counted(region, first[segment], col, None, entered.shape)
        entered -= _counted(region, last[segment], col, None, entered.shape)
    return _tile_major(np.cumsum(entered, axis=1)[:, :-1] > 0, plan)


def area_shape(region: Runs, side: int) -> np.ndarray:
    """The region shrunk to a square, whatever its proportions: exact share of each square pixel inside the region.

    Args:
        region: Any region.
        side: Of the square, in pixels.

    Returns:
        float32 (side, side) between 0 and 1.
    """
    down, across = (_Axis(side, length, side) for length in (region.height, region.width))
    return _area_shares([region], region.height, region.width, down, across)[0].astype(np.float32)


def published_shape(region: Runs, side: int) -> np.ndarray:
    """As `area_shape`, as Osprey does it: bilinear, half-pixel centres, no antialiasing."""
    rows = _interpolate(region.draw().astype(np.float32), side)
    return np.ascontiguousarray(_interpolate(rows.T, side).T)


def nearest_source_index(resized_index: np.ndarray, source: int, resized: int) -> np.ndarray:
    """Source pixel that nearest-neighbour resizing from ``source`` to ``resized`` pixels takes for each resized pixel.

    The rounding is that of ``torch.nn.functional.interpolate(mode="nearest")``: the ratio and the product are float32.
    """
    ratio = np.float32(source) / np.float32(resized)
    return np.minimum((resized_index.astype(np.float32) * ratio).astype(np.int64), source - 1)


def _cell_grid(plan: TilePlan) -> tuple[int, int]:
    return plan.rows * plan.tiling.cells_per_side, plan.cols * plan.tiling.cells_per_side


def _tile_major(cells: np.ndarray, plan: TilePlan) -> np.ndarray:
    """(regions, cell rows, cell columns) of the canvas -> float32 (regions, plan.num_cells) tile by tile."""
    side = plan.tiling.cells_per_side
    tiles = cells.reshape(-1, plan.rows, side, plan.cols, side).transpose(0, 1, 3, 2, 4)
    return tiles.astype(np.float32, order="C").reshape(len(cells), plan.num_cells)


def _segments(regions: Sequence[Runs], height: int, width: int) -> Iterator[_Segments]:
    """All regions cut into segments, a bounded number of runs at a time.

    Raises:
        ValueError: If a region has another size than the picture of ``height`` x ``width`` pixels.
    """
    for region in regions:
        if (region.height, region.width) != (height, width):
            size = f"{region.height} x {region.width}"
            raise ValueError(f"the mask has {size} pixels, the picture {height} x {width} (height x width)")
    offsets = np.arange(len(regions)) * (height * width)
    starts = [region.starts + offset for region, offset in zip(regions, offsets, strict=True)]
    ends = [region.ends + offset for region, offset in zip(regions, offsets, strict=True)]
    all_starts, all_ends = np.concatenate([[], *starts]).astype(np.int64), np.concatenate([[], *ends]).astype(np.int64)
    for first in range(0, len(all_starts), _RUNS_AT_A_TIME):
        part = slice(first, first + _RUNS_AT_A_TIME)
        begin, end = all_starts[part], all_ends[part]
        run, line = _spread(begin // height, -(-end // height))
        top = np.maximum(begin[run] - line * height, 0)
        bottom = np.minimum(end[run] - line * height, height)
        yield _Segments(line // width, line % width, top, bottom)


def _spread(firsts: np.ndarray, lasts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every whole number from each first up to but not including its last, beside the number of its pair."""
    counts = lasts - firsts
    pair = np.repeat(np.arange(len(counts)), counts)
    return pair, np.arange(len(pair)) + (firsts - np.cumsum(counts) + counts)[pair]


def _counted(
    region: np.ndarray, row: np.ndarray, col: np.ndarray, weights: np.ndarray | None, shape: tuple[int, ...]
) -> np.ndarray:
    """Sums of the weights, or numbers, of what lies in each (region, row, column) of an array of `shape`."""
    place = (region * shape[1] + row) * shape[2] + col
    return np.bincount(place, weights, minlength=shape[0] * shape[1] * shape[2]).reshape(shape)


def _area_shares(regions: Sequence[Runs], height: int, width: int, down: _Axis, across: _Axis) -> np.ndarray:
    """float64 (regions, cells down, cells across): share of each cell inside each region.

    Above a boundary at whole number ``b`` in cell ``i``, what lies below it fills ``(i + 1) * cell - b`` of that cell
    and the whole of every later one. Sums stay below 2**53, so float64 holds them exactly.
    """
    shape = (len(regions), down.cells + 1, across.cells)
    partial, entered = np.zeros(shape), np.zeros(shape)
    for part in _segments(regions, height, width):
        left = (across.before + part.column) * across.pixel
        segment, col = _spread(left // across.cell, -(-(left + across.pixel) // across.cell))
        begin = np.maximum(left[segment], col * across.cell)
        breadth = np.minimum((left + across.pixel)[segment], (col + 1) * across.cell) - begin
        region = part.region[segment]
        for edge, sign in ((part.top, 1), (part.bottom, -1)):
            boundary = ((down.before + edge) * down.pixel)[segment]
            row = boundary // down.cell
            entered += _counted(region, row, col, sign * breadth, shape)
            partial += _counted(region, row, col, sign * breadth * ((row + 1) * down.cell - boundary), shape)
    whole = np.cumsum(entered, axis=1) - entered
    return (partial + down.cell * whole)[:, :-1] / (down.cell * across.cell)


def _glances_before(cells: int, patch: int, frame: int, resized: int) -> np.ndarray:
    """How often cells along one axis look at a pixel of the frame before each: int64 (frame + 1,).

    Cell i looks at the two canvas pixels at its centre, number 2 i and 2 i + 1 of all that are looked at. Each shows
    one pixel of the frame, or padding, which does not count.
    """
    offsets = np.array([(patch - 1) // 2, patch // 2])
    canvas = (np.arange(cells)[:, None] * patch + offsets).reshape(-1)
    looked_at = nearest_source_index(canvas[canvas < resized], frame, resized)
    return np.searchsorted(looked_at, np.arange(frame + 1))


def _interpolate(values: np.ndarray, size: int) -> np.ndarray:
    """Linear interpolation along axis 0 at ``size`` half-pixel centres: float32 (n, m) -> float32 (size, m)."""
    places = np.maximum((np.arange(size) + 0.5) * len(values) / size - 0.5, 0)
    below = places.astype(np.int64)
    above = np.minimum(below + 1, len(values) - 1)
    fraction = (places - below).astype(np.float32)[:, None]
    return values[below] * (1 - fraction) + values[above] * fraction
