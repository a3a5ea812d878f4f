"""COCO captions: `captions_{train,val}2017.json`.

```
{"images": [{"id": 9, "file_name": "000000000009.jpg", "height": 480, "width": 640}],
 "annotations": [{"id": 661611, "image_id": 9, "caption": "Closeup of bins of food."}]}
   ─► RegionRecord("captions:661611", turns=(user "", assistant "Closeup of bins of food."))
```
"""

from __future__ import annotations

from collections.abc import Iterator

from data_pipelines.records import RegionRecord, Rejection, Turn
from data_pipelines.sources.coco_like import CocoLikeReader
from data_pipelines.sources.formats import COCO_CAPTIONS
from data_pipelines.sources.reader import Picture
from data_pipelines.staging import Unit


class CaptionReader(CocoLikeReader):
    """One record a caption, without regions; the whole picture is asked about."""

    format = COCO_CAPTIONS

    def _read_picture(self, record_id: str, picture: Picture, unit: Unit) -> Iterator[RegionRecord | Rejection]:
        for annotation in unit.annotations:
            own_id, caption = f"{self.name}:{annotation['id']}", annotation.get("caption")
            if not isinstance(caption, str) or not caption.strip():
                yield Rejection(own_id, "caption without text", repr(caption))
                continue
            turns = (Turn("user", ""), Turn("assistant", caption.strip()))
            yield RegionRecord(own_id, self.name, picture.path, picture.height, picture.width, turns=turns)
