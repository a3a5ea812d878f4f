"""Scores of a set of answers, with bootstrap intervals over images.

Answers about regions of one image are not independent, so images, not answers, are drawn with replacement. Every
measure is written as additive statistics of single answers and a formula of their sums: a mean is (sum of values) /
(number of values), BLEU and METEOR are formulas of summed counts. A resample is then one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 1000
CONFIDENCE = 0.95
SEED = 0
MOST_DRAWS = 2_000_000


@dataclass(frozen=True)
class Measure:
    """One score over a set of answers.

    Attributes:
        name: key in `metrics.json`, such as `semantic_iou`.
        statistics: (answers, K), what each answer adds to the sums; a row of zeros leaves the answer out.
        formula: sums (..., K) -> scores (...); NaN where the sums hold nothing to score.
        values: (answers,) each answer's own score, NaN where it has none.
        is_whole: the score is one of all answers together and no formula of sums: it has no interval, and parts of the
            answers have no such score.
        over_classes: the score is a mean over classes: answers about one class alone, without those that wrongly name
            it, have no such score.
    """

    name: str
    statistics: Array
    formula: Callable[[Array], Array]
    values: Array
    is_whole: bool = False
    over_classes: bool = False

    @classmethod
    def whole(cls, name: str, value: float, values: Array) -> Measure:
        """A score that another tool made of all answers."""
        return cls(
            name, np.zeros((len(values), 1)), lambda sums: np.full(sums.shape[:-1], value), values, is_whole=True
        )

    @property
    def counted(self) -> NDArray[np.bool_]:
        """(answers,): whether the answer takes part in the score."""
        return np.isfinite(self.values)


@dataclass(frozen=True)
class Estimate:
    """A score, its 95% interval (None with fewer than two images), and over how much it was taken."""

    value: float
    low: float | None
    high: float | None
    regions: int
    images: int


def mean_measure(name: str, values: Sequence[float] | Array) -> Measure:
    """The mean of the answers' own scores; NaN leaves an answer out."""
    array = np.asarray(values, dtype=np.float64)
    present = np.isfinite(array)
    statistics = np.stack([np.where(present, array, 0.0), present.astype(np.float64)], axis=1)
    return Measure(name, statistics, _mean, array)


def _mean(sums: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def estimate(measure: Measure, images: Sequence[str], chosen: NDArray[np.bool_] | None = None) -> Estimate | None:
    """Score the chosen answers (all by default), with an interval over images; None if they hold nothing to score.

    Args:
        measure: the score.
        images: (answers,) the image that each answer is about.
        chosen: (answers,) which answers count.
    """
    kept = measure.counted if chosen is None else measure.counted & chosen
    if not kept.any() or (measure.is_whole and chosen is not None):
        return None
    names, image_index = np.unique(np.asarray(images)[kept], return_inverse=True)
    sums = np.zeros((len(names), measure.statistics.shape[1]))
    np.add.at(sums, image_index, measure.statistics[kept])
    value = float(measure.formula(sums.sum(axis=0)[None])[0])
    if not np.isfinite(value):
        return None
    low, high = (None, None) if measure.is_whole else _interval(measure.formula, sums)
    return Estimate(value, low, high, int(kept.sum()), len(names))


@dataclass(frozen=True)
class Difference:
    """Scores of two sets of answers to the same questions, their difference, and its paired 95% interval."""

    before: float
    after: float
    low: float | None
    high: float | None

    @property
    def difference(self) -> float:
        """After - before."""
        return self.after - self.before


def estimate_difference(before: Measure, after: Measure, images: Sequence[str]) -> Difference | None:
    """By how much a score changed; each resample draws the same images for both. None where one has no answers.

    Scores that are no formula of sums have no interval here either.

    Args:
        before: the score of one set of answers.
        after: the same score of other answers to the same questions.
        images: (answers,) the image that each answer is about.
    """
    if not before.counted.any() or not after.counted.any():
        return None
    names, image_index = np.unique(np.asarray(images), return_inverse=True)
    both = []
    for measure in (before, after):
        sums = np.zeros((len(names), measure.statistics.shape[1]))
        np.add.at(sums, image_index[measure.counted], measure.statistics[measure.counted])
        both.append(sums)
    old, new = (float(m.formula(sums.sum(axis=0)[None])[0]) for m, sums in zip((before, after), both, strict=True))
    if not np.isfinite([old, new]).all():
        return None
    if len(names) < 2 or before.is_whole or after.is_whole:
        return Difference(old, new, None, None)
    scores = [_resampled(m.formula, sums) for m, sums in zip((before, after), both, strict=True)]
    return Difference(old, new, *_ends(scores[1] - scores[0]))


def _interval(formula: Callable[[Array], Array], sums: Array) -> tuple[float | None, float | None]:
    """Percentile bootstrap of `formula` over the rows of `sums` (images, K)."""
    return _ends(_resampled(formula, sums)) if len(sums) > 1 else (None, None)


def _ends(scores: Array) -> tuple[float | None, float | None]:
    if not np.isfinite(scores).any():
        return None, None
    low, high = np.nanquantile(scores, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _resampled(formula: Callable[[Array], Array], sums: Array) -> Array:
    """(RESAMPLES,) scores of resampled images; the draws depend on the number of images alone."""
    count = len(sums)
    generator, shares = np.random.default_rng(SEED), np.full(count, 1 / count)
    block = max(1, MOST_DRAWS // count)
    resampled = [
        generator.multinomial(count, shares, size=min(block, RESAMPLES - start)) @ sums
        for start in range(0, RESAMPLES, block)
    ]
    return formula(np.concatenate(resampled))
