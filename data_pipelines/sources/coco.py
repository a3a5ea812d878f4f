"""COCO instances: `instances_{train,val}2017.json`, and every file of that form.

```
{"images": [{"id": 439180, "file_name": "000000439180.jpg", "height": 360, "width": 640}],
 "categories": [{"id": 1, "name": "person"}],
 "annotations": [{"id": 18, "image_id": 439180, "category_id": 1, "iscrowd": 0, "segmentation": ..., "bbox": ...}]}
   ─► RegionRecord("coco:439180", regions=(Region(mask, "person", box), ...))
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from data_pipelines.records import Problem, Region, RegionRecord, Rejection, Turn
from data_pipelines.sources.coco_like import CocoLikeReader
from data_pipelines.sources.formats import COCO_INSTANCES
from data_pipelines.sources.reader import Picture, Unusable, as_key
from data_pipelines.sources.segmentation import Rle, box_of, read_segmentation
from data_pipelines.staging import Unit


class CocoReader(CocoLikeReader):
    """One record a picture; its regions are named after their categories.

    Left out, each with its reason: crowd regions unless they are asked for, annotations of an unknown category, and
    those whose segmentation gives no mask. Regions are kept however small they are. Boxes are those of the masks.
    """

    format = COCO_INSTANCES

    @cached_property
    def _names(self) -> Mapping[Any, str]:
        return self._category_names()

    def _read_picture(self, record_id: str, picture: Picture, unit: Unit) -> Iterator[RegionRecord | Rejection]:
        regions = []
        for annotation in unit.annotations:
            region_id = f"{record_id}#{annotation['id']}"
            try:
                region, notes = self._region(annotation, picture)
            except Unusable as problem:
                yield Rejection(region_id, problem.reason, problem.detail)
                continue
            for note in notes:
                yield Rejection(region_id, note.reason, note.detail, annotations=0)
            regions.append(region)
        try:
            yield self._record(record_id, picture, unit, regions)
        except Unusable as problem:
            yield Rejection(record_id, problem.reason, problem.detail, annotations=len(regions))

    def _record(self, record_id: str, picture: Picture, unit: Unit, regions: Sequence[Region]) -> RegionRecord:
        if not regions:
            raise Unusable("picture without a usable region")
        turns, metadata = tuple(self._turns(unit, regions)), self._metadata(unit, regions)
        return RegionRecord(
            record_id, self.name, picture.path, picture.height, picture.width, tuple(regions), turns, metadata
        )

    def _turns(self, unit: Unit, regions: Sequence[Region]) -> Sequence[Turn]:
        """What is said about the regions, beside their names; may raise `Unusable`."""
        return ()

    def _metadata(self, unit: Unit, regions: Sequence[Region]) -> Mapping[str, Any]:
        """What else the source says of the picture; may raise `Unusable`."""
        return {}

    def _annotations_of(self, unit: Unit, regions: Sequence[Region]) -> list[Mapping[str, Any]]:
        """The annotation that each region was made from."""
        by_id = {str(annotation["id"]): annotation for annotation in unit.annotations}
        return [by_id[region.id] for region in regions]

    def _region(self, annotation: Mapping[str, Any], picture: Picture) -> tuple[Region, list[Problem]]:
        """The region, and a note for what was left out of it."""
        if annotation.get("iscrowd") and not self.options.include_crowd:
            raise Unusable("crowd region")
        name = self._name(annotation)
        rle, notes = self._mask(annotation, picture)
        return Region(rle, name, box_of(rle), str(annotation["id"])), notes

    def _mask(self, annotation: Mapping[str, Any], picture: Picture) -> tuple[Rle, list[Problem]]:
        """The annotation's mask, and a note for what was left out of it; may raise `Unusable`."""
        return read_segmentation(annotation.get("segmentation"), picture.height, picture.width)

    def _name(self, annotation: Mapping[str, Any]) -> str:
        """The name of the region; may raise `Unusable`."""
        name = self._category_name(annotation)
        if not name:
            raise Unusable("unknown category", f"category_id {annotation.get('category_id')!r}")
        return name

    def _category_name(self, annotation: Mapping[str, Any]) -> str:
        """The name of the annotation's category, "" if the file does not say it."""
        category = annotation.get("category_id")
        return self._names.get(category, "") if as_key(category) is not None else ""
