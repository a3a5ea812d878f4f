"""Files of COCO's form: `images`, and `annotations` that point to them.

Every reader of such a file says what one picture with its annotations becomes; this is what they share.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from data_pipelines.records import RegionRecord, Rejection
from data_pipelines.sources.formats import FormatCheck
from data_pipelines.sources.json_stream import stream_json
from data_pipelines.sources.reader import Picture, SourceReader, Unusable, as_key
from data_pipelines.staging import StagingWriter, Unit


class CocoLikeReader(SourceReader):
    """Reads a file of COCO's form; a unit is a picture.

    Attributes:
        format: The format that the file must have (`data_pipelines.sources.formats`).
        also: Further formats that it may have.
    """

    format: ClassVar[str]
    also: ClassVar[tuple[str, ...]] = ()

    def stage(self, staging: StagingWriter) -> None:
        check = FormatCheck(self.options.annotations, self.format, *self.also)
        staging.set_context("categories", [])
        categories = []
        for item in stream_json(self.options.annotations):
            check.see(item)
            if not item.listed:
                continue
            if item.key == "images":
                self._stage_image(staging, item.value)
            elif item.key == "annotations":
                self._stage_annotation(staging, item.value)
            elif item.key == "categories":
                categories.append(item.value)
        check.finish()
        staging.set_context("categories", categories)
        for annotation_id, image_id in staging.orphans():
            staging.reject(Rejection(f"{self.name}:{image_id}#{annotation_id}", "annotation of an unknown picture"))

    def _stage_image(self, staging: StagingWriter, entry: Any) -> None:
        key = as_key(entry.get("id")) if isinstance(entry, dict) else None
        if key is None:
            staging.reject(Rejection(f"{self.name}:?", "image entry without an id", repr(entry)[:80], annotations=0))
        elif not staging.add_unit(key, entry):
            staging.reject(Rejection(f"{self.name}:{key}", "image id stands twice", annotations=0))

    def _stage_annotation(self, staging: StagingWriter, entry: Any) -> None:
        own = as_key(entry.get("id")) if isinstance(entry, dict) else None
        image = as_key(entry.get("image_id")) if isinstance(entry, dict) else None
        if own is None:
            staging.reject(Rejection(f"{self.name}:?", "annotation without an id", repr(entry)[:80]))
        elif image is None:
            detail = f"image_id {entry.get('image_id')!r}"
            staging.reject(Rejection(f"{self.name}:?#{own}", "annotation of an unknown picture", detail))
        elif not staging.add_annotation(own, image, entry):
            staging.reject(Rejection(f"{self.name}:{image}#{own}", "annotation id stands twice"))

    def read(self, unit: Unit) -> Iterator[RegionRecord | Rejection]:
        record_id = f"{self.name}:{unit.key}"
        try:
            picture = self._picture(unit.body)
        except Unusable as problem:
            yield Rejection(record_id, problem.reason, problem.detail, annotations=len(unit.annotations))
            return
        yield from self._read_picture(record_id, picture, unit)

    @abstractmethod
    def _read_picture(self, record_id: str, picture: Picture, unit: Unit) -> Iterator[RegionRecord | Rejection]:
        """The records of one picture, and a rejection for each of its annotations that is in none."""

    def _category_names(self) -> Mapping[Any, str]:
        """Names of the categories by their ids; those without a name are left out."""
        names = {}
        for category in self.context["categories"]:
            key = as_key(category.get("id")) if isinstance(category, dict) else None
            name = category.get("name") if isinstance(category, dict) else None
            if key is not None and isinstance(name, str) and name.strip():
                names[key] = name.strip()
        return names
