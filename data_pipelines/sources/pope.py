"""POPE: `coco_pope_{random,popular,adversarial}.json`, one yes-or-no question about a whole picture a line.

```
{"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a dog in the image?", "label": "no"}
   ─► RegionRecord("pope:1", turns=(user "Is there a dog in the image?", assistant "no"), metadata={"label": "no"})
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_pipelines.records import RegionRecord, Turn
from data_pipelines.sources.entries import EntryReader, Read
from data_pipelines.sources.ferret_bench import question_key
from data_pipelines.sources.formats import POPE
from data_pipelines.sources.reader import Unusable, measured_picture
from data_pipelines.sources.texts import shown, text_of
from data_pipelines.staging import Key

_LABELS = ("yes", "no")


class PopeReader(EntryReader):
    """One record a question; the three files use the same ids, so prepare each by itself."""

    format = POPE

    def _key(self, place: int, entry: Mapping[str, Any]) -> Key:
        return question_key(entry)

    def _read_entry(self, record_id: str, entry: Mapping[str, Any]) -> Read:
        question = text_of(entry.get("text"), "question without text")
        label = text_of(entry.get("label"), "label that is neither yes nor no").lower()
        if label not in _LABELS:
            raise Unusable("label that is neither yes nor no", shown(entry["label"]))
        picture = measured_picture(self.options.images, entry.get("image"))
        turns = (Turn("user", question), Turn("assistant", label))
        metadata = {"question_id": entry["question_id"], "label": label}
        size = picture.height, picture.width
        return RegionRecord(record_id, self.name, picture.path, *size, turns=turns, metadata=metadata), []
