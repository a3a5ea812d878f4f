"""A user's own file of COCO's form, with a caption, a text or a category per annotation.

```
{"images": [{"id": 1, "file_name": "a.jpg", "height": 360, "width": 640}], "categories": [{"id": 1, "name": "valve"}],
 "annotations": [{"id": 7, "image_id": 1, "segmentation": ..., "caption": "a valve with a red handle"},
                 {"id": 8, "image_id": 1, "bbox": [3, 5, 20, 20], "category_id": 1},
                 {"id": 9, "image_id": 1, "caption": "A pump room."}]}
   ─► RegionRecord("custom:1", regions=(mask of 7, box of 8), turns=...), RegionRecord("custom:1#9", turns=...)
```

What is said of an annotation is its `caption`; without one its `text`; without both the name of its category. Where
it is, is its `segmentation`; without one its `bbox`; without both it is about the whole picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from data_pipelines.records import Problem, Region, RegionRecord, Rejection, Turn
from data_pipelines.sources import formats
from data_pipelines.sources.coco import CocoReader
from data_pipelines.sources.plain_text import plain_text
from data_pipelines.sources.reader import Picture, Unusable
from data_pipelines.sources.segmentation import Rle, read_corner_box
from data_pipelines.staging import Unit
from osprey_tp.prompts import CATEGORY_QUESTION, REGION_TOKEN


class CustomReader(CocoReader):
    """One record for the regions of a picture, and one for each caption of the whole picture.

    Regions that all have a category alone make a record without turns, as in COCO. Where one has a caption, the
    source's own question asks for captions, and those without are asked for their category in words.
    """

    format = "a COCO file with captions, texts or categories"
    also = (
        formats.COCO_INSTANCES,
        formats.COCO_CAPTIONS,
        formats.CAPTIONED_BOXES,
        formats.COCO_TEXTS,
        formats.VISUAL_GENOME_REEXPORT,
        formats.PASCAL_PART,
        formats.PARTIMAGENET,
    )

    def _read_picture(self, record_id: str, picture: Picture, unit: Unit) -> Iterator[RegionRecord | Rejection]:
        placed = tuple(annotation for annotation in unit.annotations if _is_placed(annotation))
        if placed or not unit.annotations:
            yield from super()._read_picture(record_id, picture, replace(unit, annotations=placed))
        for annotation in unit.annotations:
            if not _is_placed(annotation):
                yield self._caption_of_picture(f"{record_id}#{annotation['id']}", picture, annotation)

    def _caption_of_picture(
        self, record_id: str, picture: Picture, annotation: Mapping[str, Any]
    ) -> RegionRecord | Rejection:
        try:
            caption = _caption(annotation)
        except Unusable as problem:
            return Rejection(record_id, problem.reason, problem.detail)
        if not caption:
            return Rejection(record_id, "annotation without segmentation, box and caption")
        turns = (Turn("user", ""), Turn("assistant", caption))
        return RegionRecord(record_id, self.name, picture.path, picture.height, picture.width, turns=turns)

    def _turns(self, unit: Unit, regions: Sequence[Region]) -> Sequence[Turn]:
        captions = [_caption(annotation) for annotation in self._annotations_of(unit, regions)]
        if not any(captions):
            return ()
        turns = []
        for number, (caption, region) in enumerate(zip(captions, regions, strict=True), start=1):
            reference = f"<region{number}>"
            question = reference if caption else CATEGORY_QUESTION.replace(REGION_TOKEN, reference)
            turns += [Turn("user", question), Turn("assistant", caption or region.name)]
        return turns

    def _mask(self, annotation: Mapping[str, Any], picture: Picture) -> tuple[Rle, list[Problem]]:
        if annotation.get("segmentation"):
            return super()._mask(annotation, picture)
        return read_corner_box(annotation["bbox"], picture.height, picture.width)

    def _name(self, annotation: Mapping[str, Any]) -> str:
        return self._category_name(annotation) if _caption(annotation) else super()._name(annotation)


def _is_placed(annotation: Mapping[str, Any]) -> bool:
    """Whether the annotation says where in the picture it is."""
    return bool(annotation.get("segmentation") or annotation.get("bbox"))


def _caption(annotation: Mapping[str, Any]) -> str:
    """What is said of the annotation beside its category; "" if nothing is; may raise `Unusable`."""
    for key in ("caption", "text"):
        value = annotation.get(key)
        if value is not None and not (isinstance(value, str) and not value.strip()):
            return plain_text(value)
    return ""
