"""Grounding: which of the candidate regions an expression means, by the model that describes regions.

```
expression, candidate regions ─► log p(expression | region) for every candidate, one question about each
    ─► minus log p(expression | the whole picture as the region) ─► the candidate with the most
```

The subtrahend is the likelihood without the region: the same question, shown a region that is the whole picture. It is
the same for all candidates of an expression and does not change which one is chosen; it makes the score the evidence
of a region for an expression, in nats, which can be compared between expressions. Many candidates share one reading of
the picture (`ImageSession.score`).

Accuracy at IoU 0.5 counts boxes, as referring expression comprehension does, and masks. cIoU is (sum of intersections)
/ (sum of unions) over all expressions, mIoU the mean IoU, both of masks, as referring expression segmentation does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.asking import Asking, Session, Shown, prediction_of
from eval.intervals import Array, Measure, mean_measure
from eval.predictions import Prediction
from eval.questions import Question, Records, region_question, require_masks
from osprey_tp.outside import parse_json, read_json
from osprey_tp.run_lengths import finite_numbers

if TYPE_CHECKING:
    from data_pipelines.records import RegionRecord
    from eval.metrics import Material, Scoring

HIT = 0.5
DECIMALS = 4
_LAST_NUMBER = re.compile(r"(\d+)$")

Rle = dict[str, Any]


def about_each_expression(record: RegionRecord, image_path: Path, text: str) -> Iterator[Question]:
    """One question an expression, about the region that it means; `Candidates` say among which it is looked for."""
    asked: dict[int, int] = {}
    for question, answer in zip(record.turns[::2], record.turns[1::2], strict=False):
        meant = re.fullmatch(r"<region(\d+)>", question.text.strip())
        if meant is None or not answer.text.strip():
            continue
        index = int(meant.group(1)) - 1
        asked[index] = asked.get(index, 0) + 1
        made = region_question(record, index, image_path, text, (), expression=answer.text.strip())
        again = "" if asked[index] == 1 else f"/{asked[index]}"
        yield Question(**{**vars(made), "id": made.id + again})


@dataclass
class Candidates:
    """The candidate regions of every picture.

    Attributes:
        own: by path of the picture, all regions that the records of the data have in it.
        objects: the same from the folder of annotated objects; None without one.
        proposals: by key of the picture, segmentations as they stand in the file of proposals; None without one.
        source: what they are, for the report.
    """

    own: Mapping[str, Sequence[Rle]]
    objects: Mapping[str, Sequence[Rle]] | None = None
    proposals: Mapping[str, Sequence[Any]] | None = None
    source: str = "all regions that expressions of the picture are about"
    _known: dict[str, tuple[Rle, ...]] = field(default_factory=dict)

    def of(self, image: str, height: int, width: int) -> tuple[Rle, ...]:
        """Candidates of a picture of height x width source pixels, equal ones once.

        Raises:
            ValueError: the folder of objects has no such picture, or a proposal cannot be used.
        """
        if image not in self._known:
            self._known[image] = tuple({rle["counts"]: rle for rle in self._all(image, height, width)}.values())
        return self._known[image]

    def _all(self, image: str, height: int, width: int) -> Iterator[Rle]:
        from osprey_tp.masks import from_coco, to_rle

        if self.objects is None and self.proposals is None:
            yield from self.own[image]
        if self.objects is not None:
            found = self.objects.get(image) or self.objects.get(picture_key(image))
            if not found:
                raise ValueError(f"the folder of objects has none in {image}; prepare it from all of its annotations")
            for rle in found:
                yield _of_size(rle, height, width, image)
        if self.proposals is not None:
            for number, proposal in enumerate(self.proposals.get(picture_key(image), ()), start=1):
                try:
                    yield to_rle(from_coco(proposal), height, width)
                except ValueError as error:
                    raise ValueError(f"proposal {number} of {image}: {error}") from None

    def complete(self, question: Question) -> Question:
        """The question with its candidates, and the number of the true one as its reference."""
        candidates = self.of(question.image, question.height, question.width)
        counts = [rle["counts"] for rle in candidates]
        target = question.regions[0]["counts"]
        reference = str(counts.index(target) + 1) if target in counts else "not among the candidates"
        facts = {**question.facts, "candidates": candidates}
        return Question(**{**vars(question), "references": (reference,), "facts": facts})


def _of_size(rle: Rle, height: int, width: int, image: str) -> Rle:
    if list(rle["size"]) != [height, width]:
        raise ValueError(
            f"{image} is {height}x{width} pixels, the objects of a picture of that name are {rle['size']}; are they "
            "of another data set?"
        )
    return rle


def picture_key(image: str | int) -> str:
    """What a picture is called in every data set that has it: the number that its file name ends with, else the name.

    Example:
        >>> picture_key("train2014/COCO_train2014_000000581857.jpg"), picture_key(581857), picture_key("a/b.jpg")
        ('581857', '581857', 'b')
    """
    stem = PurePosixPath(str(image)).stem
    number = _LAST_NUMBER.search(stem)
    return str(int(number.group(1))) if number else stem


def regions_by_picture(records: Records) -> dict[str, list[Rle]]:
    """All regions of a data folder by the path of their picture.

    Raises:
        ValueError: the mask of one is malformed.
    """
    found: dict[str, list[Rle]] = {}
    for record in records:
        require_masks(record)
        found.setdefault(record.image, []).extend(region.segmentation for region in record.regions)
    return found


def objects_by_picture(records: Records, folder: Path) -> dict[str, list[Rle]]:
    """All regions of a folder of objects, by the path of their picture and by its key.

    Raises:
        ValueError: two pictures have the same key.
    """
    found = regions_by_picture(records)
    paths: dict[str, str] = {}
    for path in found:
        first = paths.setdefault(picture_key(path), path)
        if first != path:
            raise ValueError(f"{folder} has two pictures that are the same elsewhere: {first} and {path}")
    return found | {key: found[path] for key, path in paths.items()}


def read_proposals(path: Path) -> dict[str, list[Any]]:
    """Segmentations of a COCO results file, `[{"image_id", "segmentation"}]`, by key of the picture.

    Raises:
        ValueError: it is no such file.
    """
    entries = read_json(path)
    usable = isinstance(entries, list) and all(
        isinstance(entry, dict) and "segmentation" in entry and isinstance(entry.get("image_id"), int | str)
        for entry in entries
    )
    if not usable or not entries:
        raise ValueError(f'{path} is no list of COCO results; needed is [{{"image_id", "segmentation"}}, ...]')
    found: dict[str, list[Any]] = {}
    for entry in entries:
        found.setdefault(picture_key(entry["image_id"]), []).append(entry["segmentation"])
    return found


def choose_regions(session: Session, batch: Sequence[Shown], asking: Asking) -> list[Prediction]:
    """The number of the candidate, from 1, that makes each expression likeliest, with the evidence of all of them.

    Every expression is scored by itself, so that the numbers do not depend on what else is asked. Without candidates
    the answer is empty.
    """
    predictions = []
    for item in batch:
        question = item.question
        candidates = question.facts["candidates"]
        if not candidates:
            predictions.append(prediction_of(item, "", asking))
            continue
        whole = {"box": [0, 0, question.width, question.height]}
        likelihoods = session.score(
            [question.facts["expression"]], [*candidates, whole], question.text, batch_size=asking.batch_size
        )[:, 0]
        evidence = np.round(likelihoods[:-1] - likelihoods[-1], DECIMALS)
        predictions.append(prediction_of(item, str(int(evidence.argmax()) + 1), asking, evidence.tolist()))
    return predictions


@dataclass(frozen=True)
class _Overlap:
    """Of a chosen region with the true one: IoU of the boxes; of the masks the two areas, NaN without a mask."""

    box: float
    intersection: float = 0.0
    union: float = 0.0

    @property
    def mask(self) -> float:
        return self.intersection / self.union


def score_grounding(material: Material, scoring: Scoring) -> None:
    """Accuracy at IoU 0.5 of boxes and masks, cIoU and mIoU; chance is a candidate drawn at random."""
    given = material.given
    found = []
    unreadable = 0
    for question, prediction in zip(given.questions, given.predictions, strict=True):
        chosen = chosen_region(question, prediction.prediction)
        unreadable += chosen is None and bool(question.facts["candidates"])
        found.append(_overlap(chosen, question))
    drawn = [
        [_overlap(candidate, question) for candidate in question.facts["candidates"]] for question in given.questions
    ]
    boxes = np.array([overlap.box for overlap in found])
    masks = np.array([overlap.mask for overlap in found])
    with np.errstate(invalid="ignore"):
        hits = np.where(np.isnan(masks), np.nan, masks >= HIT)
    areas = np.array([(overlap.intersection, overlap.union) for overlap in found])
    scoring.measures += [
        mean_measure("box_accuracy", (boxes >= HIT).astype(float)),
        mean_measure("mask_accuracy", hits),
        Measure("cIoU", np.nan_to_num(areas), _cumulative, masks),
        mean_measure("mIoU", masks),
    ]
    scoring.chance |= _chance(drawn, given.questions)
    scoring.notes["candidates"] = (
        f"{given.questions[0].facts['candidates_source']}; {np.mean([len(each) for each in drawn]):.1f} a picture "
        "on average"
    )
    without = sum(not each for each in drawn)
    if without:
        scoring.notes["without_candidates"] = f"{without} expressions, counted as wrong"
    if unreadable:
        scoring.notes["unreadable_answers"] = f"{unreadable}, counted as wrong"
    absent = sum(not any(overlap.mask >= HIT for overlap in each) for each in drawn)
    scoring.notes["out_of_reach"] = f"{absent} expressions have no candidate of IoU 0.5 or more"


def _cumulative(sums: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def _chance(drawn: Sequence[Sequence[_Overlap]], questions: Sequence[Question]) -> dict[str, float]:
    """Expected scores of a candidate drawn at random for every expression."""
    none = [_Overlap(0.0, 0.0, _area(question.regions[0])) for question in questions]
    drawn = [each or [nothing] for each, nothing in zip(drawn, none, strict=True)]
    intersection, union = (
        sum(float(np.mean([getattr(overlap, name) for overlap in each])) for each in drawn)
        for name in ("intersection", "union")
    )
    return {
        "box_accuracy": float(np.mean([np.mean([overlap.box >= HIT for overlap in each]) for each in drawn])),
        "mask_accuracy": float(np.mean([np.mean([overlap.mask >= HIT for overlap in each]) for each in drawn])),
        "cIoU": intersection / union,
        "mIoU": float(np.mean([np.mean([overlap.mask for overlap in each]) for each in drawn])),
    }


def chosen_region(question: Question, answer: str) -> Rle | list[float] | None:
    """The region that an answer names: the number of a candidate, or as JSON a box or a segmentation.

    Args:
        question: has the candidates.
        answer: `2`, `[x0, y0, x1, y1]` in source pixels with the far ends exclusive, `{"box": [...]}`, or
            `{"segmentation": ...}` in any of COCO's forms.

    Returns:
        A compressed RLE, a box, or None where the answer is none of these.
    """
    from osprey_tp.masks import from_coco, to_rle

    try:
        said = parse_json(answer, "the answer")
    except ValueError:
        return None
    if isinstance(said, dict):
        said = said.get("box", said.get("segmentation"))
        if isinstance(said, dict) or (isinstance(said, list) and said and isinstance(said[0], list)):
            try:
                return to_rle(from_coco(said), question.height, question.width)
            except ValueError:
                return None
    if isinstance(said, int) and not isinstance(said, bool):
        candidates: Sequence[Rle] = question.facts["candidates"]
        return candidates[said - 1] if 1 <= said <= len(candidates) else None
    if isinstance(said, list):
        try:
            box = finite_numbers(said, "the box").tolist()
        except ValueError:
            return None
        return box if len(box) == 4 and box[2] > box[0] and box[3] > box[1] else None
    return None


def _overlap(chosen: Rle | list[float] | None, question: Question) -> _Overlap:
    """Of a region or a box with the region that the expression means; nothing overlaps with nothing."""
    from pycocotools import mask as mask_utils

    truth = question.regions[0]
    if chosen is None:
        return _Overlap(0.0, 0.0, _area(truth))
    if isinstance(chosen, list):
        x0, y0, x1, y1 = chosen
        given = np.array([[x0, y0, x1 - x0, y1 - y0]])
        return _Overlap(_box_iou(given, truth), np.nan, np.nan)
    intersection = _area(mask_utils.merge([chosen, truth], intersect=True))
    union = _area(chosen) + _area(truth) - intersection
    return _Overlap(_box_iou(mask_utils.toBbox([chosen]), truth), intersection, union)


def _box_iou(boxes: Array, truth: Rle) -> float:
    from pycocotools import mask as mask_utils

    return float(mask_utils.iou(boxes, mask_utils.toBbox([truth]), [False])[0, 0])


def _area(rle: Rle) -> float:
    from pycocotools import mask as mask_utils

    return float(mask_utils.area(rle))
