"""LVIS v1 and v0.5: `lvis_v1_{train,val}.json`, `lvis_v0.5_{train,val}.json`.

```
{"images": [{"id": 391895, "coco_url": "http://.../train2017/000000391895.jpg", "height": 360, "width": 640,
             "neg_category_ids": [1], "not_exhaustive_category_ids": [7]}],
 "categories": [{"id": 7, "name": "bow_(weapon)"}, ...], "annotations": as in COCO}
   ─► RegionRecord("lvis:391895", metadata={"category_ids": [7], "negative_categories": ["aerosol_can"],
                                            "not_exhaustive_categories": ["bow_(weapon)"]})
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from data_pipelines.records import Region, RegionRecord, Rejection
from data_pipelines.sources.coco import CocoReader
from data_pipelines.sources.formats import LVIS
from data_pipelines.sources.reader import Picture, as_key
from data_pipelines.staging import Unit

_LISTS = {
    "negative_categories": "neg_category_ids",
    "not_exhaustive_categories": "not_exhaustive_category_ids",
}
"""Metadata of a record, and the member of the picture's entry that it is from."""


class LvisReader(CocoReader):
    """As COCO, with the categories that were looked for and not found, and those of which not all are annotated.

    Names stay as published, with `_` and the sense in brackets; evaluation and prompts turn `_` into spaces. A picture
    without `file_name` is looked for under the end of its `coco_url`, with and without the split's folder.
    """

    format = LVIS

    def _picture_names(self, entry: Mapping[str, Any]) -> Sequence[str]:
        names = list(super()._picture_names(entry))
        names += [name.rpartition("/")[2] for name in names]
        url = entry.get("coco_url")
        if isinstance(url, str):
            parts = urlsplit(url).path.strip("/").split("/")
            names += ["/".join(parts[-2:]), parts[-1]]
        return [name for name in dict.fromkeys(names) if name]

    def _read_picture(self, record_id: str, picture: Picture, unit: Unit) -> Iterator[RegionRecord | Rejection]:
        for member in _LISTS.values():
            unknown = [category for category in self._listed(unit, member) if self._listed_name(category) is None]
            if unknown:
                detail = f"{member} {unknown[:3]!r}"[:80]
                yield Rejection(record_id, "unknown category in a list of the picture", detail, annotations=0)
        yield from super()._read_picture(record_id, picture, unit)

    def _metadata(self, unit: Unit, regions: Sequence[Region]) -> Mapping[str, Any]:
        annotations = self._annotations_of(unit, regions)
        metadata: dict[str, Any] = {"category_ids": [annotation["category_id"] for annotation in annotations]}
        for name, member in _LISTS.items():
            names = [self._listed_name(category) for category in self._listed(unit, member)]
            metadata[name] = [name for name in names if name is not None]
        return metadata

    def _listed(self, unit: Unit, member: str) -> list[Any]:
        listed = unit.body.get(member, [])
        return listed if isinstance(listed, list) else [listed]

    def _listed_name(self, category: Any) -> str | None:
        return self._names.get(category) if as_key(category) is not None else None
