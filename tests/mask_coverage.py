"""What `osprey_tp.coverage` does with many regions at once, for one boolean mask."""

from __future__ import annotations

import numpy as np

from osprey_tp import coverage
from osprey_tp.run_lengths import Runs
from osprey_tp.tiling import TilePlan


def area_coverage(mask: np.ndarray, plan: TilePlan) -> np.ndarray:
    return coverage.area_coverage([Runs.of_mask(mask)], plan)[0]


def published_coverage(mask: np.ndarray, plan: TilePlan) -> np.ndarray:
    return coverage.published_coverage([Runs.of_mask(mask)], plan)[0]


def area_shape(mask: np.ndarray, side: int) -> np.ndarray:
    return coverage.area_shape(Runs.of_mask(mask), side)


def published_shape(mask: np.ndarray, side: int) -> np.ndarray:
    return coverage.published_shape(Runs.of_mask(mask), side)
