"""Panoptic quality, mean IoU and average precision of segments whose masks are given and whose classes are answered.

The proposals are the true segments, which do not overlap. Every IoU is then a ratio of areas, and all statistics
belong to single answers:

- PQ, SQ, RQ (Kirillov et al. 2019, "Panoptic Segmentation", equations 1 and 2, as panopticapi averages them): for each
  class, the sum of the IoUs of matched segments / (TP + FP/2 + FN/2); the mean over classes that stand in truth or
  answers. Answers of one class of stuff in one picture are one segment, as in every panoptic prediction, and match a
  true one where IoU > 0.5. Void is part of no segment.
- mIoU: for each class, pixels of truth and answer / pixels of either; the mean over the same classes, as detectron2.
- AP: COCOeval over things, IoU 0.5 to 0.95, from the 100 best (segment, class) pairs of each picture. Pairs of stuff
  take part in the choice of the 100 and are left out then, as published.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.intervals import Array, Measure

MOST_DETECTIONS = 100


@dataclass(frozen=True)
class Segments:
    """The true segments of all pictures, in columns; segments of a picture do not overlap.

    Attributes:
        images: (segments,) name of the picture.
        areas: (segments,) in source pixels.
        right: (segments,) true class.
        answered: (segments,) answered class, -1 for none: a segment that was not asked about.
        owners: (segments,) row of statistics that the segment counts in.
        things: (classes,) whether each class is of things; answers of the others are merged picture by picture.
    """

    images: Sequence[str]
    areas: Array
    right: np.ndarray
    answered: np.ndarray
    owners: np.ndarray
    things: np.ndarray


def panoptic_measures(segments: Segments, answers: int) -> list[Measure]:
    """PQ, SQ and RQ, and PQ of things and of stuff; `answers` is the number of rows."""
    columns, things = _columns(segments)
    count = len(columns)
    statistics = np.zeros((answers, 4 * count))
    values = np.zeros(answers)

    def add(kind: int, segment: int, class_: int, value: float = 1.0) -> None:
        statistics[segments.owners[segment], kind * count + columns[class_]] += value

    matched = _matched(segments)
    for segment, right in enumerate(segments.right):
        if segment in matched:
            add(0, segment, right)
            add(3, segment, right, matched[segment])
            values[segments.owners[segment]] = matched[segment]
        else:
            add(2, segment, right)
    for segment in _false_positives(segments, matched):
        add(1, segment, segments.answered[segment])
    chosen = {"PQ": np.ones_like(things), "PQ_things": things, "PQ_stuff": ~things}
    measures = [
        Measure(name, statistics, _quality_formula(which, "PQ"), values, over_classes=True)
        for name, which in chosen.items()
        if which.any()
    ]
    parts = [
        Measure(kind, statistics, _quality_formula(np.ones_like(things), kind), values, over_classes=True)
        for kind in ("SQ", "RQ")
    ]
    return [measures[0], *parts, *(measures[1:] if things.any() and not things.all() else [])]


def _columns(segments: Segments) -> tuple[dict[int, int], np.ndarray]:
    """Column of every class that stands in truth or answers, and which of these are of things."""
    present = np.unique(np.concatenate([segments.right, segments.answered[segments.answered >= 0]]))
    return {int(class_): column for column, class_ in enumerate(present)}, segments.things[present]


def _stuff_groups(segments: Segments) -> dict[tuple[str, int], list[int]]:
    """Segments that are answered with the same class of stuff in the same picture."""
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for segment, answered in enumerate(segments.answered):
        if answered >= 0 and not segments.things[answered]:
            groups[segments.images[segment], int(answered)].append(segment)
    return groups


def _matched(segments: Segments) -> dict[int, float]:
    """IoU of every true segment that an answer matches."""
    matched = {
        segment: 1.0
        for segment, (right, answered) in enumerate(zip(segments.right, segments.answered, strict=True))
        if right == answered and segments.things[answered]
    }
    for (_, class_), members in _stuff_groups(segments).items():
        area = segments.areas[members].sum()
        for segment in members:
            if segments.right[segment] == class_ and segments.areas[segment] > 0.5 * area:
                matched[segment] = float(segments.areas[segment] / area)
    return matched


def _false_positives(segments: Segments, matched: dict[int, float]) -> list[int]:
    """One segment of every answered segment that matches nothing."""
    things = [
        segment
        for segment, answered in enumerate(segments.answered)
        if answered >= 0 and segments.things[answered] and segment not in matched
    ]
    groups = _stuff_groups(segments).items()
    stuff = [
        members[0]
        for (_, class_), members in groups
        if not any(segment in matched and segments.right[segment] == class_ for segment in members)
    ]
    return things + stuff


def _quality_formula(which: np.ndarray, kind: str) -> Callable[[Array], Array]:
    """PQ, SQ or RQ over the chosen classes, from sums (..., 4 C) of TP, FP, FN and IoU."""

    def quality(sums: Array) -> Array:
        true, false, missed, overlap = np.moveaxis(sums.reshape(*sums.shape[:-1], 4, -1)[..., which], -2, 0)
        either = true + false / 2 + missed / 2
        parts = {"PQ": (overlap, either), "SQ": (overlap, true), "RQ": (true, either)}
        return mean_of_ratios(*parts[kind], either > 0)

    return quality


def mean_of_ratios(numerators: Array, denominators: Array, counted: np.ndarray) -> Array:
    """(..., C) -> (...): mean over the counted classes, a ratio without denominator being 0; NaN where none counts."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = np.where(denominators > 0, numerators / denominators, 0.0)
        return np.asarray(np.where(counted, ratios, 0.0).sum(axis=-1) / counted.sum(axis=-1))


def mean_iou_measure(segments: Segments, answers: int) -> Measure:
    """Mean IoU over pixels; `answers` is the number of rows."""
    columns, _ = _columns(segments)
    count = len(columns)
    statistics, values = np.zeros((answers, 3 * count)), np.zeros(answers)
    for owner, area, right, answered in zip(
        segments.owners, segments.areas, segments.right, segments.answered, strict=True
    ):
        statistics[owner, count + columns[right]] += area
        if answered >= 0:
            statistics[owner, 2 * count + columns[answered]] += area
        if right == answered:
            statistics[owner, columns[right]] += area
            values[owner] = 1

    def mean_iou(sums: Array) -> Array:
        both, right, answered = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
        either = right + answered - both
        return mean_of_ratios(both, either, either > 0)

    return Measure("mIoU", statistics, mean_iou, values, over_classes=True)


def average_precision(
    images: Sequence[str],
    masks: Sequence[dict[str, Any]],
    right: np.ndarray,
    probabilities: Array,
    things: np.ndarray,
) -> float | None:
    """AP of things by COCOeval; None where no segment is of a thing.

    Args:
        images: (segments,) name of the picture.
        masks: (segments,) compressed RLE; every one is proposed.
        right: (segments,) true class.
        probabilities: (segments, classes); a row of NaN is a segment that was not asked about.
        things: (classes,) whether each class is of things.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not things[right].any():
        return None
    members: dict[str, list[int]] = defaultdict(list)
    for segment, image in enumerate(images):
        members[image].append(segment)
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, of_image in enumerate(members.values(), start=1):
        truth += [
            {"image_id": number, "category_id": int(right[segment]) + 1, "segmentation": masks[segment]}
            for segment in of_image
            if things[right[segment]]
        ]
        asked = [segment for segment in of_image if not np.isnan(probabilities[segment]).any()]
        flat = probabilities[asked].ravel()
        for pair in np.argsort(-flat, kind="stable")[:MOST_DETECTIONS]:
            segment, class_ = divmod(int(pair), len(things))
            if things[class_]:
                place = {"image_id": number, "category_id": class_ + 1, "segmentation": masks[asked[segment]]}
                found.append(place | {"score": float(flat[pair])})
    dataset = COCO()
    dataset.dataset = {
        "images": [
            dict(zip(("id", "height", "width"), (number, *masks[of_image[0]]["size"]), strict=True))
            for number, of_image in enumerate(members.values(), start=1)
        ],
        "annotations": [
            entry | {"id": number, "iscrowd": 0, "area": _area(entry)} for number, entry in enumerate(truth, start=1)
        ],
        "categories": [{"id": class_ + 1} for class_ in range(len(things))],
    }
    with redirect_stdout(io.StringIO()):
        dataset.createIndex()
        if not found:
            return 0.0
        evaluation = COCOeval(dataset, _results(dataset, found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def _results(dataset: Any, found: list[dict[str, Any]]) -> Any:
    from pycocotools.coco import COCO

    results = COCO()
    results.dataset = dataset.dataset | {
        "annotations": [
            entry | {"id": number, "iscrowd": 0, "area": _area(entry)} for number, entry in enumerate(found, start=1)
        ]
    }
    results.createIndex()
    return results


def _area(entry: dict[str, Any]) -> float:
    from pycocotools import mask as mask_utils

    return float(mask_utils.area(entry["segmentation"]))
