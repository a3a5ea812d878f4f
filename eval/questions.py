"""From a data folder to questions, picture by picture, and the shuffling of regions for the region-blind control."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from eval.tasks import Task

if TYPE_CHECKING:
    from data_pipelines.records import RegionRecord
    from osprey_tp.tiling import Tiling


class Records(Protocol):
    """What is needed of a `data_pipelines.records.RecordFolder`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[RegionRecord]: ...

    def image_path(self, record: RegionRecord) -> Path:
        """The record's picture, confined to the image root."""
        ...


@dataclass(frozen=True)
class RegionQuestion:
    """One region to ask about.

    Attributes:
        id: `<record id>#<region number>`, numbered from 1.
        image: path relative to the image root; `image_path` is the file.
        height, width: of the picture, in source pixels.
        segmentation: compressed COCO RLE of the region, in source pixels.
        references: right answers, at least one.
    """

    id: str
    image: str
    image_path: Path
    height: int
    width: int
    segmentation: dict[str, Any]
    references: tuple[str, ...]

    @property
    def area_share(self) -> float:
        """Share of the picture's pixels inside the region, 0 to 1."""
        from pycocotools import mask as mask_utils

        return float(mask_utils.area(self.segmentation)) / (self.height * self.width)

    def cells(self, tiling: Tiling) -> float:
        """Area of the region on the canvas, in cells."""
        plan = tiling.plan(self.height, self.width)
        canvas_pixels = self.area_share * plan.resized_height * plan.resized_width
        return canvas_pixels / tiling.patch_size**2


def collect_questions(task: Task, records: Records) -> list[RegionQuestion]:
    """Every region that the task can ask about, those of one picture side by side.

    Raises:
        ValueError: there is none, or two records have the same id.
    """
    by_image: dict[str, list[RegionQuestion]] = {}
    record_ids: Counter[str] = Counter()
    for record in records:
        record_ids[record.id] += 1
        for question in _questions_of(task, record, records.image_path(record)):
            by_image.setdefault(question.image, []).append(question)
    repeated = [record_id for record_id, count in record_ids.items() if count > 1]
    if repeated:
        raise ValueError(
            f"{len(repeated)} record ids stand twice in the data, the first {repeated[0]}; prepare it again"
        )
    questions = [question for group in by_image.values() for question in group]
    if not questions:
        raise ValueError(
            f"{task.name} needs {task.needed}, and the {len(record_ids)} records of this data folder hold none; "
            "is it the folder of another task?"
        )
    return questions


def _questions_of(task: Task, record: RegionRecord, image_path: Path) -> Iterator[RegionQuestion]:
    for index, region in enumerate(record.regions):
        references = task.references(record, index)
        if references:
            yield RegionQuestion(
                id=f"{record.id}#{index + 1}",
                image=record.image,
                image_path=image_path,
                height=record.height,
                width=record.width,
                segmentation=region.segmentation,
                references=references,
            )


def shuffled_regions(questions: Sequence[RegionQuestion], seed: int) -> dict[str, RegionQuestion]:
    """For each question of ONE picture, a question about another region of it, whose mask is shown instead.

    A random cycle through the different masks of the picture, so that none is shown for itself (Sattolo's algorithm);
    it depends on the seed and the picture's path only. Empty where the picture has one mask, since there is no other.
    """
    masks: dict[str, RegionQuestion] = {}
    for question in questions:
        masks.setdefault(_mask_key(question), question)
    if len(masks) < 2:
        return {}
    rng = np.random.default_rng([seed, *questions[0].image.encode("utf-8")])
    order = list(masks)
    for last in range(len(order) - 1, 0, -1):
        other = int(rng.integers(last))
        order[last], order[other] = order[other], order[last]
    shown = {key: masks[replacement] for key, replacement in zip(masks, order, strict=True)}
    return {question.id: shown[_mask_key(question)] for question in questions}


def _mask_key(question: RegionQuestion) -> str:
    return str(question.segmentation["counts"])
