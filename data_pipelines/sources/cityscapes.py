"""Cityscapes: the fine annotations `gtFine`, as published or in the panoptic form of its own scripts.

```
gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_instanceIds.png, or
cityscapes_panoptic_val.json with cityscapes_panoptic_val/frankfurt_000000_000294_gtFine_panoptic.png
leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png
   ─► RegionRecord("cityscapes:frankfurt_000000_000294", regions=(Region(mask, "road", box, "7"),
                   Region(mask, "car", box, "26001"), ...), metadata={"split": "val", "category_ids": [7, 26], ...})
```

Both forms hold the same segments and give the same records. An id below 1000 is that of a label: all pixels of stuff,
or a group of things that are not told apart, which is a crowd. Others are the label's id times 1000 plus a number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from data_pipelines.records import Region, RegionRecord, Rejection
from data_pipelines.sources.formats import CITYSCAPES_PANOPTIC
from data_pipelines.sources.id_maps import masks_of, read_id_map
from data_pipelines.sources.panoptic import PanopticReader, SegmentReader
from data_pipelines.sources.reader import Picture, SourceOptions, SourceReader, Unusable, find_picture
from data_pipelines.sources.segmentation import Rle
from data_pipelines.staging import StagingWriter, Unit

SPLITS = ("train", "val", "test")
_INSTANCE_IDS = "_gtFine_instanceIds.png"
_INSTANCES_A_LABEL = 1000


class Label(NamedTuple):
    """A class of Cityscapes: whether it is of things, and whether the benchmark evaluates it."""

    name: str
    is_thing: bool = False
    evaluated: bool = True


LABELS: Mapping[int, Label] = {
    4: Label("static", evaluated=False),
    5: Label("dynamic", evaluated=False),
    6: Label("ground", evaluated=False),
    7: Label("road"),
    8: Label("sidewalk"),
    9: Label("parking", evaluated=False),
    10: Label("rail track", evaluated=False),
    11: Label("building"),
    12: Label("wall"),
    13: Label("fence"),
    14: Label("guard rail", evaluated=False),
    15: Label("bridge", evaluated=False),
    16: Label("tunnel", evaluated=False),
    17: Label("pole"),
    18: Label("polegroup", evaluated=False),
    19: Label("traffic light"),
    20: Label("traffic sign"),
    21: Label("vegetation"),
    22: Label("terrain"),
    23: Label("sky"),
    24: Label("person", is_thing=True),
    25: Label("rider", is_thing=True),
    26: Label("car", is_thing=True),
    27: Label("truck", is_thing=True),
    28: Label("bus", is_thing=True),
    29: Label("caravan", is_thing=True, evaluated=False),
    30: Label("trailer", is_thing=True, evaluated=False),
    31: Label("train", is_thing=True),
    32: Label("motorcycle", is_thing=True),
    33: Label("bicycle", is_thing=True),
}
"""The 30 classes by their ids; 0 to 3 are void: unlabelled, the own car, the border, out of view."""

_VOID = range(4)


def open_cityscapes(name: str, options: SourceOptions) -> SourceReader:
    """The reader of a panoptic json file, or of the folder that holds `gtFine`."""
    return (InstanceIdReader if options.annotations.is_dir() else CityscapesPanopticReader)(name, options)


class CityscapesPanopticReader(PanopticReader):
    """As the panoptic form of COCO; pictures are found by their ids, since the file names in it are no real ones."""

    format = CITYSCAPES_PANOPTIC
    splits = SPLITS

    def __init__(self, name: str, options: SourceOptions) -> None:
        super().__init__(name, options)
        named = [split for split in SPLITS if split in options.annotations.stem.split("_")]
        if options.split and named and named != [options.split]:
            raise ValueError(f"{options.annotations} is of split {named[0]}, not {options.split}")
        self._split = options.split or (named[0] if len(named) == 1 else None)

    def _picture_names(self, entry: Mapping[str, Any]) -> Sequence[str]:
        key = entry.get("id")
        splits = SPLITS if self._split is None else (self._split,)
        return [name for split in splits for name in _picture_names(split, key)] if isinstance(key, str) else []

    def _metadata(self, unit: Unit, regions: Sequence[Region]) -> Mapping[str, Any]:
        split = {} if self._split is None else {"split": self._split}
        return {**split, **super()._metadata(unit, regions)}


class InstanceIdReader(SegmentReader):
    """One record a picture, its segments of the 19 evaluated classes as regions.

    Left out, each with its reason: segments of the other classes, and groups unless crowds are asked for.
    """

    splits = SPLITS

    def __init__(self, name: str, options: SourceOptions) -> None:
        super().__init__(name, options)
        inside = options.annotations / "gtFine"
        self._folder = inside if inside.is_dir() else options.annotations
        self._last: tuple[Any, tuple[int, int], Mapping[int, Rle]] | None = None

    def stage(self, staging: StagingWriter) -> None:
        categories = [
            {"id": number, "name": label.name, "isthing": label.is_thing}
            for number, label in LABELS.items()
            if label.evaluated
        ]
        staging.set_context("categories", categories)
        splits = SPLITS if self.options.split is None else (self.options.split,)
        paths = [path for split in splits for path in sorted((self._folder / split).glob(f"*/*{_INSTANCE_IDS}"))]
        if not paths:
            where = f"{self._folder}/{{{','.join(splits)}}}/CITY"
            raise ValueError(f"no *{_INSTANCE_IDS} in {where}: name the folder that holds gtFine, or a panoptic json")
        for path in paths:
            key = path.name.removesuffix(_INSTANCE_IDS)
            body = {"png": path.relative_to(self._folder).as_posix(), "split": path.relative_to(self._folder).parts[0]}
            if not staging.add_unit(key, body):
                staging.reject(Rejection(f"{self.name}:{key}", "image id stands twice", body["png"], annotations=0))

    def annotation_count(self, unit: Unit) -> int:
        try:
            return len(self._segments(unit)[1])
        except Unusable:
            return 0

    def read(self, unit: Unit) -> Iterator[RegionRecord | Rejection]:
        record_id = f"{self.name}:{unit.key}"
        masks: Mapping[int, Rle] = {}
        try:
            size, masks = self._segments(unit)
            path = find_picture(self.options.images, *_picture_names(unit.body["split"], str(unit.key)))
        except Unusable as problem:
            yield Rejection(record_id, problem.reason, problem.detail, annotations=len(masks))
            return
        annotations = tuple(_annotation(number, mask) for number, mask in masks.items())
        yield from self._read_picture(record_id, Picture(path, *size), replace(unit, annotations=annotations))

    def _segments(self, unit: Unit) -> tuple[tuple[int, int], Mapping[int, Rle]]:
        """Size of the picture and masks of its segments; the last ones are kept, since they are asked for twice."""
        if self._last is None or self._last[0] != unit.key:
            ids = read_id_map(self._folder, unit.body["png"], "grey")
            masks = {number: mask for number, mask in masks_of(ids).items() if number not in _VOID}
            self._last = unit.key, (ids.shape[0], ids.shape[1]), masks
        return self._last[1:]

    def _name(self, annotation: Mapping[str, Any]) -> str:
        label = LABELS.get(annotation["category_id"])
        if label is not None and not label.evaluated:
            raise Unusable("class that Cityscapes does not evaluate", label.name)
        return super()._name(annotation)

    def _metadata(self, unit: Unit, regions: Sequence[Region]) -> Mapping[str, Any]:
        return {"split": unit.body["split"], **super()._metadata(unit, regions)}


def _annotation(number: int, mask: Rle) -> dict[str, Any]:
    """What COCO would say of the segment of that id."""
    is_group = number < _INSTANCES_A_LABEL
    category = number if is_group else number // _INSTANCES_A_LABEL
    label = LABELS.get(category)
    is_crowd = is_group and label is not None and label.is_thing
    return {"id": number, "category_id": category, "iscrowd": int(is_crowd), "mask": mask}


def _picture_names(split: str, key: str) -> list[str]:
    """Where the picture of that id may be: below the folder of the data set, or below `leftImg8bit`."""
    path = f"{split}/{key.partition('_')[0]}/{key}_leftImg8bit.png"
    return [f"leftImg8bit/{path}", path]
