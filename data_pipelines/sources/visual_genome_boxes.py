"""Visual Genome as published: `region_descriptions.json`, boxes with phrases, and `image_data.json` beside it.

```
[{"id": 1, "regions": [{"region_id": 1382, "image_id": 1, "x": 421, "y": 57, "width": 82, "height": 139,
                        "phrase": "the clock is green"}]}]
[{"image_id": 1, "width": 800, "height": 600, "url": ...}]
   ─► RegionRecord("visual-genome:1", image="VG_100K_2/1.jpg", regions=(Region(box, "the clock is green"), ...))
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from data_pipelines.records import Problem, Region, RegionRecord, Rejection
from data_pipelines.sources.formats import IMAGE_DATA, REGION_DESCRIPTIONS, FormatCheck
from data_pipelines.sources.json_stream import stream_json
from data_pipelines.sources.plain_text import plain_text
from data_pipelines.sources.reader import Picture, SourceReader, Unusable, as_key
from data_pipelines.sources.segmentation import Rle, box_of, read_corner_box
from data_pipelines.sources.texts import shown
from data_pipelines.sources.visual_genome import PICTURE_FOLDERS
from data_pipelines.staging import StagingWriter, Unit
from osprey_tp.images import load_image
from osprey_tp.masks import to_rle
from osprey_tp.outside import confined_path
from osprey_tp.segmenters import SegmentedImage, Segmenter, load_segmenter

BOX_KEPT = "segmenter found nothing, box kept"


class RegionDescriptionReader(SourceReader):
    """One record a picture; each region is named by its phrase, and is its box or what a segmenter finds in that.

    Where the segmenter finds nothing, the box stays the region, which is noted.
    """

    makes_masks: ClassVar[bool] = True
    extra_inputs: ClassVar[Mapping[str, str]] = {"image_data": "the image_data.json with the sizes of the pictures"}

    @property
    def _image_data(self) -> Path:
        return self.extra_input("image_data", self.options.annotations.with_name("image_data.json"))

    def input_files(self) -> list[Path]:
        return [self.options.annotations, self._image_data]

    def stage(self, staging: StagingWriter) -> None:
        if self.options.segmenter is not None:
            _segmenter(self.options.segmenter)
        self._stage_pictures(staging)
        counts = self._stage_regions(staging)
        for own, _ in staging.orphans():
            lost = counts[str(own)]
            staging.reject(Rejection(f"{self.name}:{own}", "regions of an unknown picture", annotations=lost))

    def _stage_pictures(self, staging: StagingWriter) -> None:
        check = FormatCheck(self._image_data, IMAGE_DATA)
        for item in stream_json(self._image_data):
            check.see(item)
            key = as_key(item.value.get("image_id")) if isinstance(item.value, dict) else None
            if key is None:
                entry = shown(item.value)
                staging.reject(Rejection(f"{self.name}:?", "image entry without an id", entry, annotations=0))
            elif not staging.add_unit(key, {side: item.value.get(side) for side in ("height", "width")}):
                staging.reject(Rejection(f"{self.name}:{key}", "image id stands twice", annotations=0))
        check.finish()

    def _stage_regions(self, staging: StagingWriter) -> dict[str, int]:
        """Stage the regions of each picture together; how many there are, by the picture's id."""
        counts: dict[str, int] = {}
        check = FormatCheck(self.options.annotations, REGION_DESCRIPTIONS)
        for item in stream_json(self.options.annotations):
            check.see(item)
            key = as_key(item.value.get("id")) if isinstance(item.value, dict) else None
            regions = item.value.get("regions") if isinstance(item.value, dict) else None
            if key is None or not isinstance(regions, list):
                staging.reject(Rejection(f"{self.name}:?", "picture without its regions", shown(item.value)))
            elif staging.add_annotation(key, key, regions):
                counts[str(key)] = len(regions)
            else:
                lost = len(regions)
                staging.reject(Rejection(f"{self.name}:{key}", "image id stands twice", annotations=lost))
        check.finish()
        return counts

    def annotation_count(self, unit: Unit) -> int:
        return sum(map(len, unit.annotations))

    def read(self, unit: Unit) -> Iterator[RegionRecord | Rejection]:
        record_id = f"{self.name}:{unit.key}"
        try:
            picture = self._picture({**unit.body, "file_name": f"{unit.key}.jpg"})
            segmented = self._segmented(picture)
        except Unusable as problem:
            lost = self.annotation_count(unit)
            yield Rejection(record_id, problem.reason, problem.detail, annotations=lost)
            return
        regions = []
        for entry in (entry for listed in unit.annotations for entry in listed):
            number = as_key(entry.get("region_id")) if isinstance(entry, dict) else None
            region_id = f"{record_id}#{'?' if number is None else number}"
            try:
                region, notes = _region(entry, number, picture, segmented)
            except Unusable as problem:
                yield Rejection(region_id, problem.reason, problem.detail)
                continue
            yield from (Rejection(region_id, note.reason, note.detail, annotations=0) for note in notes)
            regions.append(region)
        if not regions:
            yield Rejection(record_id, "picture without a usable region", annotations=0)
            return
        yield RegionRecord(record_id, self.name, picture.path, picture.height, picture.width, tuple(regions))

    def _picture_names(self, entry: Mapping[str, Any]) -> Sequence[str]:
        name = entry["file_name"]
        return [name, *(f"{folder}/{name}" for folder in PICTURE_FOLDERS)]

    def _segmented(self, picture: Picture) -> SegmentedImage | None:
        """The picture as the segmenter has taken it in, None without a segmenter."""
        if self.options.segmenter is None:
            return None
        segmenter = _segmenter(self.options.segmenter)
        try:
            image = load_image(confined_path(self.options.images, picture.path))
        except ValueError as error:
            raise Unusable("picture cannot be read", str(error)) from None
        if (image.height, image.width) != (picture.height, picture.width):
            found = f"{image.height} x {image.width}, not {picture.height} x {picture.width} (height x width)"
            raise Unusable("picture of another size than the annotations say", found)
        return segmenter.open(image)


@lru_cache(maxsize=1)
def _segmenter(specification: str) -> Segmenter:
    """The segmenter, loaded once a process.

    Raises:
        ValueError: if it cannot be loaded, with what to install or to give.
    """
    try:
        return load_segmenter(specification)
    except (ImportError, OSError) as error:
        raise ValueError(str(error)) from None


def _region(
    entry: Any, number: int | str | None, picture: Picture, segmented: SegmentedImage | None
) -> tuple[Region, list[Problem]]:
    if not isinstance(entry, dict):
        raise Unusable("malformed region", shown(entry))
    phrase = plain_text(entry.get("phrase"))
    corners = [entry.get(name) for name in ("x", "y", "width", "height")]
    rle, notes = read_corner_box(corners, picture.height, picture.width)
    if segmented is not None:
        rle, found = _segment(segmented, rle, picture)
        notes += found
    return Region(rle, phrase, box_of(rle), "" if number is None else str(number)), notes


def _segment(segmented: SegmentedImage, box: Rle, picture: Picture) -> tuple[Rle, list[Problem]]:
    """What the segmenter finds in a box, the box itself if that is nothing."""
    try:
        best = segmented.segment([], [], box_of(box))[0]
        return to_rle(best.mask, picture.height, picture.width), []
    except ValueError as error:
        return box, [Problem(BOX_KEPT, str(error))]
