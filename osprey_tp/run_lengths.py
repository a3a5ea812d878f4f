"""Regions as runs of pixels, read from and drawn without anything of the picture's size where that can be.

Run lengths are those of COCO: pixels are counted down the columns, columns from left to right, outside and inside by
turns. pycocotools reads past its buffers where runs do not fill the picture, so everything is checked here first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from osprey_tp.images import MAX_PIXELS, check_pixels
from osprey_tp.outside import one_line

_LONGEST_COUNT = 7


@dataclass(frozen=True)
class Runs:
    """The pixels of a region as runs down the columns of its picture.

    Attributes:
        height: Of the picture, in source pixels.
        width: Of the picture, in source pixels.
        starts: int64 (runs,), ascending: where each run begins; pixel (y, x) is at ``x * height + y``.
        ends: int64 (runs,): one past the last pixel of each run, which may lie in a later column.
    """

    height: int
    width: int
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def of_rle(cls, rle: Mapping[str, Any], height: int, width: int) -> Runs:
        """The runs of a COCO run-length encoding.

        Raises:
            ValueError: As `checked_runs`.
        """
        edges = np.cumsum(checked_runs(rle, height, width))
        return cls(height, width, edges[: len(edges) - 1 : 2], edges[1::2])

    @classmethod
    def of_mask(cls, mask: np.ndarray) -> Runs:
        """The runs of a boolean mask (height, width)."""
        height, width = mask.shape
        (top, bottom), (left, right) = (_extent(mask, axis) for axis in (1, 0))
        column = bottom - top + 1  # a pixel outside stands between the columns
        pixels = np.zeros((right - left) * column + 1, dtype=bool)
        pixels[:-1].reshape(right - left, column)[:, 1:] = mask[top:bottom, left:right].T
        x, y = np.divmod(np.flatnonzero(pixels[1:] != pixels[:-1]), column)
        edges = (x + left) * height + y + top
        return cls(height, width, edges[::2], edges[1::2])

    @classmethod
    def of_rectangle(cls, rows: tuple[int, int], cols: tuple[int, int], height: int, width: int) -> Runs:
        """The runs of a rectangle of whole pixels, from the first row and column up to but not including the last."""
        tops = np.arange(*cols) * height
        return cls(height, width, tops + rows[0], tops + rows[1])

    @property
    def area(self) -> int:
        """Pixels inside."""
        return int((self.ends - self.starts).sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1) of the pixels inside, the far ends exclusive; zeros if there are none."""
        x, y, width, height = (int(side) for side in coco_mask.toBbox(self.to_rle()))
        return x, y, x + width, y + height

    def to_rle(self) -> dict[str, Any]:
        """Compressed COCO run-length encoding ``{"size": [height, width], "counts": str}``, as of the drawn mask."""
        filled = self.ends > self.starts
        starts, ends = self.starts[filled], self.ends[filled]
        apart = starts[1:] != ends[:-1]
        edges = np.stack([starts[np.r_[True, apart][: len(starts)]], ends[np.r_[apart, True][: len(ends)]]], axis=1)
        counts = np.diff(edges.reshape(-1), prepend=0).tolist()
        left = self.height * self.width - sum(counts)
        size = [self.height, self.width]
        encoded = coco_mask.frPyObjects({"size": size, "counts": [*counts, left] if left else counts}, *size)
        return {"size": size, "counts": encoded["counts"].decode("ascii")}

    def draw(self) -> np.ndarray:
        """Boolean mask (height, width)."""
        edges = np.stack([self.starts, self.ends], axis=1).reshape(-1)
        lengths = np.diff(edges, prepend=0, append=self.height * self.width)
        inside = np.arange(len(lengths)) % 2 == 1
        return np.repeat(inside, lengths).reshape(self.width, self.height).T


def checked_runs(rle: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """Lengths of the runs of a COCO run-length encoding: int64 (runs,), outside and inside by turns.

    Raises:
        ValueError: If the encoding is malformed or does not fit the picture of ``height`` x ``width`` pixels.
    """
    check_pixels(height, width, MAX_PIXELS, "the picture")
    size = finite_numbers(rle.get("size", ()), 'the "size" of the run-length encoding').tolist()
    if size != [height, width]:
        shown = one_line(" x ".join(f"{side:g}" for side in size) or "an unknown number of")
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


def finite_numbers(values: Any, name: str) -> np.ndarray:
    """One-dimensional float64 array of numbers that are neither infinite nor NaN.

    Raises:
        ValueError: If the values are anything else; the message begins with ``name``.
    """
    try:
        numbers = np.asarray(values)
    except (ValueError, OverflowError, RecursionError):
        numbers = np.empty((0, 0))
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iuf"):
        raise ValueError(f"{name} must be a flat list of numbers")
    numbers = numbers.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} holds NaN or an infinite number")
    return numbers


def _extent(mask: np.ndarray, across: int) -> tuple[int, int]:
    """First row (seen across axis 1) or column (0) that holds a pixel, and one past the last; (0, 0) for none."""
    places = np.flatnonzero(mask.any(axis=across))
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)


def _listed_counts(counts: Any) -> np.ndarray:
    runs = finite_numbers(counts, 'the "counts" of the run-length encoding')
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
