"""Ferret-Bench: `box_refer_caption.json` and `box_refer_reason.json`, questions about one region each.

```
[{"question_id": 0, "image": "000000069138.jpg", "category": "description", "text": "What surrounds <region>?",
  "annotation": {"bbox": [230, 52, 56, 32], "segmentation": [[...]]}}]
   ─► RegionRecord("ferret-bench:0", regions=(Region(mask),), turns=(user "What surrounds <region1>?",))
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_pipelines.records import Region, RegionRecord, Turn
from data_pipelines.sources.entries import EntryReader, Read
from data_pipelines.sources.formats import FERRET_BENCH
from data_pipelines.sources.reader import Unusable, as_key, measured_picture
from data_pipelines.sources.segmentation import box_of, read_corner_box, read_segmentation
from data_pipelines.sources.texts import shown, text_of
from data_pipelines.staging import Key

_REGION_MARK = "<region>"


class FerretBenchReader(EntryReader):
    """One record a question, which nobody has answered; the two files count from 0 both, so prepare each by itself."""

    format = FERRET_BENCH

    def _key(self, place: int, entry: Mapping[str, Any]) -> Key:
        return question_key(entry)

    def _read_entry(self, record_id: str, entry: Mapping[str, Any]) -> Read:
        question = text_of(entry.get("text"), "question without text")
        if _REGION_MARK not in question:
            raise Unusable("question that names no region", shown(question))
        picture = measured_picture(self.options.images, entry.get("image"))
        annotation = entry.get("annotation")
        if not isinstance(annotation, dict):
            raise Unusable("question without a region", shown(annotation))
        if annotation.get("segmentation"):
            rle, notes = read_segmentation(annotation["segmentation"], picture.height, picture.width)
        else:
            rle, notes = read_corner_box(annotation.get("bbox"), picture.height, picture.width)
        turns = (Turn("user", question.replace(_REGION_MARK, "<region1>")),)
        category = entry.get("category")
        metadata = {"question_id": entry["question_id"]} | ({"category": category} if as_key(category) else {})
        size = picture.height, picture.width
        record = RegionRecord(
            record_id, self.name, picture.path, *size, (Region(rle, "", box_of(rle)),), turns, metadata
        )
        return record, notes


def question_key(entry: Mapping[str, Any]) -> Key:
    """The entry's `question_id`.

    Raises:
        Unusable: if it has none.
    """
    key = as_key(entry.get("question_id"))
    if key is None:
        raise Unusable("question without an id", shown(entry.get("question_id")))
    return key
