"""COCO's panoptic form, such as `panoptic_val2017.json` or `ade20k_panoptic_val.json` with a folder of PNG files.

```
{"images": [{"id": 439180, "file_name": "000000439180.jpg", "height": 360, "width": 640}],
 "categories": [{"id": 184, "name": "tree-merged", "isthing": 0}],
 "annotations": [{"image_id": 439180, "file_name": "000000439180.png",
                  "segments_info": [{"id": 2330219, "category_id": 184, "iscrowd": 0}]}]}
panoptic_val2017/000000439180.png: pixels whose R + 256 G + 256² B is 2330219
   ─► RegionRecord("panoptic:439180", regions=(Region(mask, "tree-merged", box, "2330219"),),
                   metadata={"category_ids": [184], "is_thing": [False]})
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from data_pipelines.records import Problem, Region, RegionRecord, Rejection
from data_pipelines.sources.coco import CocoReader
from data_pipelines.sources.formats import COCO_PANOPTIC
from data_pipelines.sources.id_maps import masks_of, read_id_map
from data_pipelines.sources.reader import Picture, Unusable, as_key
from data_pipelines.sources.segmentation import Rle
from data_pipelines.staging import StagingWriter, Unit

VOID = 0
"""The id of pixels that belong to no segment."""


class SegmentReader(CocoReader):
    """Reads annotations that have their mask, or None, as `mask`: those that a picture of ids gave."""

    def _mask(self, annotation: Mapping[str, Any], picture: Picture) -> tuple[Rle, list[Problem]]:
        if annotation["mask"] is None:
            raise Unusable("segment covers no pixel", f"id {annotation['id']!r} is not in the segment picture")
        return annotation["mask"], []

    def _metadata(self, unit: Unit, regions: Sequence[Region]) -> Mapping[str, Any]:
        categories = [annotation["category_id"] for annotation in self._annotations_of(unit, regions)]
        is_thing = [self._things.get(category) for category in categories]
        metadata: dict[str, Any] = {"category_ids": categories}
        if None not in is_thing:
            metadata["is_thing"] = is_thing
        return metadata

    @cached_property
    def _things(self) -> Mapping[Any, bool]:
        """By id of the category, whether it is of things that can be counted; those that do not say are left out."""
        said = {}
        for category in self.context["categories"]:
            key = as_key(category.get("id")) if isinstance(category, dict) else None
            if key is not None and category.get("isthing") in (0, 1):
                said[key] = bool(category["isthing"])
        return said


class PanopticReader(SegmentReader):
    """One record a picture, its segments as regions named after their categories, things and stuff alike.

    Left out, each with its reason: crowd segments unless they are asked for, segments that cover no pixel of the PNG
    file, and all segments of a picture whose PNG file is absent, broken or of another size. Ids in the PNG file that
    no segment has are counted once a picture; the id 0 is void.
    """

    format = COCO_PANOPTIC
    extra_inputs: ClassVar[Mapping[str, str]] = {"panoptic": "the folder of the PNG files"}

    def stage(self, staging: StagingWriter) -> None:
        _ = self._png_folder
        super().stage(staging)

    @cached_property
    def _png_folder(self) -> Path:
        return self.extra_input("panoptic", self.options.annotations.with_suffix(""))

    def _stage_annotation(self, staging: StagingWriter, entry: Any) -> None:
        """Stage each segment as an annotation, whose id is unique only together with that of its picture."""
        image = as_key(entry.get("image_id")) if isinstance(entry, dict) else None
        segments = entry.get("segments_info") if isinstance(entry, dict) else None
        if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
            staging.reject(Rejection(f"{self.name}:{image}", "annotation without segments", str(entry)[:80]))
            return
        if image is None:
            detail = f"image_id {entry.get('image_id')!r}"
            lost = len(segments)
            staging.reject(Rejection(f"{self.name}:?", "annotation of an unknown picture", detail, annotations=lost))
            return
        for segment in segments:
            own = as_key(segment.get("id"))
            body = {**segment, "png": entry.get("file_name")}
            if own is None:
                staging.reject(Rejection(f"{self.name}:{image}", "annotation without an id", str(segment)[:80]))
            elif not staging.add_annotation(f"{own!r} of {image!r}", image, body):
                staging.reject(Rejection(f"{self.name}:{image}#{own}", "annotation id stands twice"))

    def _read_picture(self, record_id: str, picture: Picture, unit: Unit) -> Iterator[RegionRecord | Rejection]:
        if not unit.annotations:
            yield Rejection(record_id, "picture without a usable region", annotations=0)
            return
        try:
            masks = self._masks(picture, unit)
        except Unusable as problem:
            yield Rejection(record_id, problem.reason, problem.detail, annotations=len(unit.annotations))
            return
        claimed = {annotation["id"] for annotation in unit.annotations}
        unclaimed = [number for number in masks if number not in claimed and number != VOID]
        if unclaimed:
            detail = f"{len(unclaimed)}, such as {', '.join(map(str, unclaimed[:3]))}"
            yield Rejection(record_id, "ids of the segment picture without a segment", detail, annotations=0)
        masked = tuple(
            {**annotation, "mask": None if annotation["id"] == VOID else masks.get(annotation["id"])}
            for annotation in unit.annotations
        )
        yield from super()._read_picture(record_id, picture, replace(unit, annotations=masked))

    def _masks(self, picture: Picture, unit: Unit) -> Mapping[Any, Rle]:
        name = _only([annotation["png"] for annotation in unit.annotations])
        return masks_of(read_id_map(self._png_folder, name, "rgb", (picture.height, picture.width)))


def _only(names: Sequence[Any]) -> str:
    """The name that all of them are."""
    name = names[0]
    if not isinstance(name, str):
        raise Unusable("segment picture without a file name", repr(name)[:80])
    others = [other for other in names if other != name]
    if others:
        raise Unusable("picture with several segment pictures", f"{name!r} and {others[0]!r}"[:80])
    return name
