"""LLaVA's image-level conversations: the 558K captions, the 665K instructions, and MGM's mixes.

```
[{"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
  "conversations": [{"from": "human", "value": "<image> What colour is it?"}, {"from": "gpt", "value": "White."}]}]
   ─► RegionRecord("llava:000000033471", image="coco/train2017/000000033471.jpg",
                   turns=(user "What colour is it?", assistant "White."))

without "image" ─► a record of text alone: image "", height 0, width 0
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_pipelines.records import RegionRecord
from data_pipelines.sources.entries import EntryReader, Read
from data_pipelines.sources.formats import LLAVA
from data_pipelines.sources.reader import Picture, Unusable, as_key, measured_picture
from data_pipelines.sources.texts import check_references, read_dialogue
from data_pipelines.staging import Key
from osprey_tp.prompts import IMAGE_TOKEN

_TEXT_ALONE = Picture("", 0, 0)


class LlavaReader(EntryReader):
    """One record an entry, named by its id.

    Published mixes use an id for several conversations. The first has it; each later one has its place in the file,
    counted from 0, behind it: `llava:000000033471@17`. An entry without an id is `llava:@17`.
    """

    format = LLAVA

    def _key(self, place: int, entry: Mapping[str, Any]) -> Key:
        own = as_key(entry.get("id"))
        return f"@{place}" if own is None or own == "" else str(own)

    def _other_key(self, place: int, key: Key) -> Key:
        return f"{key}@{place}"

    def _read_entry(self, record_id: str, entry: Mapping[str, Any]) -> Read:
        image = entry.get("image") or None
        if isinstance(image, list) or _marks(entry.get("conversations")) > 1:
            raise Unusable("several pictures", f"{_marks(entry.get('conversations'))} marks")
        if image is None and _marks(entry.get("conversations")):
            raise Unusable("picture mark without a picture")
        turns, notes = read_dialogue(entry.get("conversations"), trim=True)
        if image is None and not all(turn.text for turn in turns):
            raise Unusable("question without text")
        check_references((turn.text for turn in turns), 0)
        picture = _TEXT_ALONE if image is None else measured_picture(self.options.images, image)
        return RegionRecord(record_id, self.name, picture.path, picture.height, picture.width, turns=turns), notes


def _marks(conversations: Any) -> int:
    """How often the questions show a picture; an answer may speak of `<image>`."""
    entries = conversations if isinstance(conversations, list) else []
    values = [entry.get("value") for entry in entries if isinstance(entry, dict) and entry.get("from") == "human"]
    return sum(value.count(IMAGE_TOKEN) for value in values if isinstance(value, str))
