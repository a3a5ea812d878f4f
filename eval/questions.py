"""From a data folder to questions, picture by picture, and the shuffling of regions for the region-blind control."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from data_pipelines.records import RegionRecord
    from eval.tasks import Task
    from osprey_tp.tiling import Tiling


class Records(Protocol):
    """What is needed of a `data_pipelines.records.RecordFolder`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[RegionRecord]: ...

    def image_path(self, record: RegionRecord) -> Path:
        """The record's picture, confined to the image root."""
        ...


@dataclass(frozen=True)
class Question:
    """One thing to ask about a picture and its regions.

    Attributes:
        id: `<record id>#<region number>`, numbered from 1, for a question about one region of its record; else one
            that is the task's own, such as `<record id>`.
        image: path relative to the image root; `image_path` is the file.
        height, width: of the picture, in source pixels.
        text: what is asked, with one `<mask>` for each region, in order.
        regions: compressed COCO RLE of each region, in source pixels; none for a question about the whole picture.
        references: right answers.
        category: what scores are grouped by in the report; "" for nothing.
        facts: what else the task's scorers need, such as a label.
    """

    id: str
    image: str
    image_path: Path
    height: int
    width: int
    text: str
    regions: tuple[dict[str, Any], ...]
    references: tuple[str, ...]
    category: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def area_share(self) -> float | None:
        """Share of the picture's pixels inside the regions, 0 to 1; None for a question about the whole picture."""
        from pycocotools import mask as mask_utils

        if not self.regions:
            return None
        together = self.regions[0] if len(self.regions) == 1 else mask_utils.merge(list(self.regions))
        return float(mask_utils.area(together)) / (self.height * self.width)

    def cells(self, tiling: Tiling) -> float | None:
        """Area of the regions on the canvas, in cells; None for a question about the whole picture."""
        share = self.area_share
        if share is None:
            return None
        plan = tiling.plan(self.height, self.width)
        return share * self.height * self.width * plan.cells_per_source_pixel


def region_question(
    record: RegionRecord, index: int, image_path: Path, text: str, references: tuple[str, ...], **facts: Any
) -> Question:
    """The question `text` about the region of a record at `index`, counted from 0; grouped by the region's name."""
    return Question(
        id=f"{record.id}#{index + 1}",
        image=record.image,
        image_path=image_path,
        height=record.height,
        width=record.width,
        text=text,
        regions=(record.regions[index].segmentation,),
        references=references,
        category=record.regions[index].name,
        facts=facts,
    )


def require_masks(record: RegionRecord) -> None:
    """Refuse masks whose runs do not add up, before pycocotools trusts them with its memory.

    Raises:
        ValueError: naming record and region.
    """
    from osprey_tp.masks import rle_area

    for number, region in enumerate(record.regions, start=1):
        try:
            rle_area(region.segmentation, *region.segmentation["size"])
        except ValueError as error:
            raise ValueError(f"region {number} of record {record.id}: {error}; prepare the data again") from None


def collect_questions(task: Task, records: Records, text: str | None = None) -> list[Question]:
    """Everything that the task asks, questions about one picture side by side.

    Args:
        task: says what is asked of a record.
        records: the data.
        text: asked in place of the task's own question.

    Raises:
        ValueError: there is nothing to ask, two records have the same id, or a mask is malformed.
    """
    by_image: dict[str, list[Question]] = {}
    record_ids: Counter[str] = Counter()
    for record in records:
        require_masks(record)
        record_ids[record.id] += 1
        for question in task.questions(record, records.image_path(record), text or task.question):
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


def shuffled_regions(questions: Sequence[Question], seed: int) -> dict[str, Question]:
    """For each question of ONE picture, a question about another region of it, whose mask is shown instead.

    A random cycle through the different masks of the picture, so that none is shown for itself (Sattolo's algorithm);
    it depends on the seed and the picture's path only. Empty where the picture has one mask, since there is no other.
    Questions about no region, or several, take no part.
    """
    questions = [question for question in questions if len(question.regions) == 1]
    masks: dict[str, Question] = {}
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


def _mask_key(question: Question) -> str:
    return str(question.regions[0]["counts"])
