"""Pascal-Part as published: a MATLAB file a picture in `Annotations_Part/`, and the pictures of VOC2010.

```
2008_000008.mat   anno: {imname: "2008_000008", objects: [{class: "horse", class_ind: 13, mask: (height, width),
                         parts: [{part_name: "lear", mask: (height, width)}, ...]}, ...]}
   ─► RegionRecord("pascal-part:2008_000008", image="JPEGImages/2008_000008.jpg",
                   regions=(Region(mask, "horse"), Region(mask, "horse:ear"), ...))
```
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipelines.records import Region, RegionRecord, Rejection
from data_pipelines.sources.matlab_files import Value, load_matlab
from data_pipelines.sources.reader import Picture, SourceReader, Unusable, find_picture
from data_pipelines.sources.segmentation import box_of
from data_pipelines.sources.texts import shown, text_of
from data_pipelines.staging import StagingWriter, Unit
from osprey_tp.masks import to_rle

PICTURE_FOLDERS = ("", "JPEGImages/")
"""Where a picture may lie in the image folder."""

CLASS_NAMES = {"pottedplant": "potted plant", "diningtable": "dining table", "tvmonitor": "tv monitor"}
"""Classes that the MATLAB files write in one word."""

PART_NAMES = (
    (r"[lr]eye", "eye"),
    (r"[lr]ear", "ear"),
    (r"[lr]ebrow", "eyebrow"),
    (r"[lr]horn", "horn"),
    (r"[lr]wing", "wing"),
    (r"[lr]hand", "hand"),
    (r"[lr]foot", "foot"),
    (r"[lr][lu]?arm", "arm"),
    (r"[lr][fb]?[lu]?leg", "leg"),
    (r"[lr][fb]pa", "paw"),
    (r"[lr][fb]ho", "hoof"),
    (r"[fb]?wheel", "wheel"),
    (r"chainwheel", "chain wheel"),
    (r"[fb]liplate", "license plate"),
    (r"(left|right)mirror", "mirror"),
    (r"[hc]?(front|left|right|back|roof)side", r"\1 side"),
)
"""Patterns of the abbreviated part names, and the words of the json files; sides and numbers are left out."""

_NUMBERED = re.compile(r"_\d+$")


class PascalPartMatReader(SourceReader):
    """One record a file: its objects, each followed by its parts, which are named `object:part`.

    A region's id is its place, "2" for the second object and "2:lear" for a part of it as the file calls it. The
    metadata's object_ids has the id of the object that each part belongs to, "" for objects.
    """

    def stage(self, staging: StagingWriter) -> None:
        folder = self.options.annotations
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder of MATLAB files, as Pascal-Part's Annotations_Part is")
        names = sorted(path.name for path in folder.glob("*.mat"))
        if not names:
            raise ValueError(f"folder {folder} holds no .mat file, as Pascal-Part's Annotations_Part does")
        for name in names:
            staging.add_unit(Path(name).stem, {"file": name})

    def annotation_count(self, unit: Unit) -> int:
        """What is counted are the files: how much is in one is known only when it is read."""
        return 1

    def read(self, unit: Unit) -> Iterator[RegionRecord | Rejection]:
        record_id = f"{self.name}:{unit.key}"
        try:
            name, objects = _annotation(load_matlab(self.options.annotations / unit.body["file"]))
            path = find_picture(self.options.images, *(f"{folder}{name}.jpg" for folder in PICTURE_FOLDERS))
            height, width = _mask_of(objects[0]).shape
        except Unusable as problem:
            yield Rejection(record_id, problem.reason, problem.detail)
            return
        picture = Picture(path, height, width)
        regions: list[Region] = []
        owners: list[str] = []
        for number, entry in enumerate(objects, start=1):
            for item in _regions(record_id, str(number), entry, picture):
                if isinstance(item, Rejection):
                    yield item
                    continue
                regions.append(item)
                owners.append(str(number) if ":" in item.id else "")
        if not regions:
            yield Rejection(record_id, "picture without a usable region")
            return
        yield RegionRecord(record_id, self.name, path, height, width, tuple(regions), metadata={"object_ids": owners})


def spelled_out(part: str) -> str:
    """The words for a part that a file abbreviates: `lfuleg` is a leg, `headlight_2` a headlight."""
    name = _NUMBERED.sub("", part)
    for pattern, words in PART_NAMES:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(words)
    return name


def _annotation(variables: dict[str, Value]) -> tuple[str, list[Value]]:
    """Name of the picture, and its objects."""
    anno = _structures(variables.get("anno"))
    if len(anno) != 1:
        raise Unusable("MATLAB file without a structure anno")
    objects = _structures(anno[0].get("objects"))
    if not objects:
        raise Unusable("file without objects")
    return _text(anno[0].get("imname"), "file without the name of its picture"), objects


def _regions(record_id: str, number: str, entry: dict[str, Value], picture: Picture) -> Iterator[Region | Rejection]:
    """An object and its parts; a rejection counts no annotation, since those are counted by the file."""
    try:
        name = _text(entry.get("class"), "object without a class")
    except Unusable as problem:
        yield Rejection(f"{record_id}#{number}", problem.reason, problem.detail, annotations=0)
        return
    name = CLASS_NAMES.get(name, name)
    parts = _structures(entry.get("parts"))
    yield _region(record_id, number, name, entry, picture)
    for part in parts:
        try:
            short = _text(part.get("part_name"), "part without a name")
        except Unusable as problem:
            yield Rejection(f"{record_id}#{number}", problem.reason, problem.detail, annotations=0)
            continue
        yield _region(record_id, f"{number}:{short}", f"{name}:{spelled_out(short)}", part, picture)


def _region(record_id: str, region_id: str, name: str, entry: dict[str, Value], picture: Picture) -> Region | Rejection:
    own_id = f"{record_id}#{region_id}"
    try:
        mask = _mask_of(entry)
    except Unusable as problem:
        return Rejection(own_id, problem.reason, problem.detail, annotations=0)
    if mask.shape != (picture.height, picture.width):
        found = f"{mask.shape[0]} x {mask.shape[1]}, not {picture.height} x {picture.width} (height x width)"
        return Rejection(own_id, "mask of another size than the picture", found, annotations=0)
    if not mask.any():
        return Rejection(own_id, "segmentation covers no pixel", annotations=0)
    rle = to_rle(mask, picture.height, picture.width)
    return Region(rle, name, box_of(rle), region_id)


def _structures(value: Value) -> list[dict[str, Value]]:
    """The structures of an array of them; none if it is something else, as an empty one is."""
    return value if isinstance(value, list) else []


def _text(value: Value, reason: str) -> str:
    text = text_of(value, reason)
    if not text.isprintable():
        raise Unusable(reason, shown(text))
    return text


def _mask_of(entry: dict[str, Value]) -> np.ndarray:
    """(height, width), boolean: what is not zero is inside."""
    mask = entry.get("mask")
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.dtype.kind not in "biuf" or not mask.size:
        raise Unusable("malformed mask", shown(getattr(mask, "shape", None)))
    return mask != 0
