"""Which of many proposed masks are kept when all objects of a picture are asked for.

Masks are compared as run-length encodings (pycocotools), so that thousands of them need little memory.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from osprey_tp.segmenters import Candidate

RunLengths = dict[str, Any]
"""COCO's compressed encoding of one mask: {"size": [height, width], "counts": bytes}."""

SAME_OBJECT_IOU = 0.8
"""Masks that agree this much are taken for one object found twice."""
SMALLEST_SHARE = 0.0005
LARGEST_SHARE = 0.9
"""What fills less, or more, of the picture is a speck, or the picture itself."""

MOST_PIXELS = 2**31
"""Of all masks kept of one picture together; each takes a byte."""


def encode_masks(masks: NDArray[np.bool_]) -> list[RunLengths]:
    """Encodings of masks (n, height, width)."""
    return coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8)) if len(masks) else []


def decode_mask(encoded: RunLengths) -> NDArray[np.bool_]:
    """Mask (height, width) of an encoding."""
    return coco_mask.decode(encoded).astype(bool)


def affordable(most: int, height: int, width: int) -> int:
    """How many masks (height, width) may be kept of at most `most`: fewer where the picture is very large.

    Raises:
        ValueError: If `most` is below 1.
    """
    if most < 1:
        raise ValueError(f"at least one mask must be allowed, not {most}")
    return max(1, min(most, MOST_PIXELS // (height * width)))


def times_found(encoded: Sequence[RunLengths]) -> NDArray[np.int64]:
    """How many of n masks show the same object as each of them (n,), itself included."""
    if not encoded:
        return np.zeros(0, np.int64)
    return (mask_ious(encoded, encoded) >= SAME_OBJECT_IOU).sum(axis=1)


def select_masks(encoded: Sequence[RunLengths], scores: NDArray[np.floating], most: int) -> list[int]:
    """Indices of the masks to keep, best first: of a plausible size, no two of one object, at most `most`.

    Greedy suppression: the best mask left is kept, and what agrees with it by `SAME_OBJECT_IOU` goes.

    Args:
        encoded: Encodings of n masks of one picture.
        scores: (n,), higher is better; of equal ones the earlier mask goes first.
        most: How many to keep at most.
    """
    if not encoded:
        return []
    height, width = encoded[0]["size"]
    shares = np.array([float(coco_mask.area(mask)) for mask in encoded]) / (height * width)
    plausible: list[int] = np.flatnonzero((shares >= SMALLEST_SHARE) & (shares <= LARGEST_SHARE)).tolist()
    kept = distinct_masks([encoded[index] for index in plausible], np.asarray(scores)[plausible], most)
    return [plausible[index] for index in kept]


def distinct_masks(
    encoded: Sequence[RunLengths], scores: NDArray[np.floating] | Sequence[float], most: int | None = None
) -> list[int]:
    """Indices of the masks to keep, best first, no two of one object: as `select_masks`, whatever their size."""
    left = np.argsort(-np.asarray(scores), kind="stable")
    kept: list[int] = []
    while len(left) and (most is None or len(kept) < most):
        best, left = int(left[0]), left[1:]
        kept.append(best)
        if len(left):
            left = left[mask_ious([encoded[index] for index in left], [encoded[best]])[:, 0] < SAME_OBJECT_IOU]
    return kept


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates of one picture, best first, without those that show what a better one shows.

    Masks that differ where they were proposed, at a small size, may agree once they are enlarged.
    """
    encoded = [encode_masks(candidate.mask[None])[0] for candidate in candidates]
    return [candidates[index] for index in distinct_masks(encoded, [candidate.score for candidate in candidates])]


def mask_ious(first: Sequence[RunLengths], second: Sequence[RunLengths]) -> NDArray[np.float64]:
    """Intersection over union of every pair (n, m)."""
    if not first or not second:
        return np.zeros((len(first), len(second)))
    return np.asarray(coco_mask.iou(list(first), list(second), [0] * len(second)))
