"""Visual Commonsense Reasoning: `train.jsonl`, and a metadata file a picture among the pictures.

```
{"annot_id": "train-0", "img_fn": "movie/a.jpg", "metadata_fn": "movie/a.json", "objects": ["person", "person", "car"],
 "question_orig": "Does 2 like 3?", "answer_orig": "No.", "rationale_orig": "2 frowns at 3."}
movie/a.json   {"boxes": [[x1, y1, x2, y2, score], ...], "segms": [[[[x, y], ...]], ...], "width": ..., "height": ...}
   ─► RegionRecord("vcr:train-0", regions=(Region(mask, "person"), Region(mask, "person"), Region(mask, "car")),
                   turns=(user "Does <region2> like <region3>?", assistant "No."),
                   metadata={"rationale": "<region2> frowns at <region3>."})
```

Bare numbers in these texts count the objects from 1, although the tokenised `question` beside them counts from 0: the
`question_orig` "Does 3 feel comfortable?" has the `question` `["Does", [2], "feel", "comfortable", "?"]`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from data_pipelines.records import Problem, Region, RegionRecord, Turn
from data_pipelines.sources.entries import EntryReader, Read
from data_pipelines.sources.formats import VCR
from data_pipelines.sources.reader import Picture, Unusable, as_key
from data_pipelines.sources.segmentation import Rle, box_of, read_box, read_segmentation
from data_pipelines.sources.texts import shown, text_of
from data_pipelines.staging import Key
from osprey_tp.outside import confined_path

LARGEST_METADATA = 1 << 26
"""Bytes."""

BOX_KEPT = "outline cannot be used, box kept"
_BARE_NUMBER = re.compile(r"\b[0-9]+\b")
_LONGEST_NUMBER = 9
_SHOWN = 200


class VcrReader(EntryReader):
    """One record a question: all objects of the picture are regions, in their order; box where there is no outline."""

    format = VCR

    def _key(self, place: int, entry: Mapping[str, Any]) -> Key:
        own = as_key(entry.get("annot_id"))
        return place if own is None else own

    def _read_entry(self, record_id: str, entry: Mapping[str, Any]) -> Read:
        names = _names(entry.get("objects"))
        question, answer = (
            _with_references(text_of(entry.get(f"{part}_orig"), f"{part} without text"), len(names))
            for part in ("question", "answer")
        )
        metadata = {}
        if entry.get("rationale_orig"):
            rationale = text_of(entry["rationale_orig"], "rationale without text")
            metadata["rationale"] = _with_references(rationale, len(names))
        details = self._metadata_file(entry.get("metadata_fn"))
        sides = {side: details.get(side) for side in ("height", "width")}
        picture = self._picture({"file_name": entry.get("img_fn"), **sides})
        regions, notes = _regions(names, details, picture)
        turns = (Turn("user", question), Turn("assistant", answer))
        size = picture.height, picture.width
        return RegionRecord(record_id, self.name, picture.path, *size, tuple(regions), turns, metadata), notes

    def _metadata_file(self, name: Any) -> Mapping[str, Any]:
        if not isinstance(name, str):
            raise Unusable("question without a metadata file", shown(name))
        try:
            path = confined_path(self.options.images, name)
        except ValueError as error:
            raise Unusable("metadata path leaves the image folder", str(error)) from None
        try:
            if path.stat().st_size > LARGEST_METADATA:
                raise Unusable("metadata file cannot be read", f"{name} has more than {LARGEST_METADATA} bytes")
            value = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise Unusable("metadata file not found", shown(name)) from None
        except (OSError, ValueError, RecursionError) as error:
            raise Unusable("metadata file cannot be read", f"{shown(name)}: {error}".splitlines()[0][:_SHOWN]) from None
        if not isinstance(value, dict):
            raise Unusable("metadata file cannot be read", f"{shown(name)} holds {shown(value)}")
        return value


def _names(objects: Any) -> list[str]:
    if not isinstance(objects, list) or not objects:
        raise Unusable("question without objects", shown(objects))
    return [text_of(name, "object without a name") for name in objects]


def _with_references(text: str, objects: int) -> str:
    """The text with every bare number n as `<regionn>`."""

    def reference(match: re.Match[str]) -> str:
        number = match[0]
        if len(number) > _LONGEST_NUMBER or not 1 <= int(number) <= objects:
            raise Unusable("number that is no object", f"{shown(number)} in {shown(text)}, {objects} objects")
        return f"<region{int(number)}>"

    return _BARE_NUMBER.sub(reference, text)


def _regions(names: list[str], details: Mapping[str, Any], picture: Picture) -> tuple[list[Region], list[Problem]]:
    boxes, outlines = details.get("boxes"), details.get("segms")
    if not isinstance(boxes, list) or not isinstance(outlines, list) or not len(boxes) == len(outlines) == len(names):
        detail = f"{len(names)} objects, boxes {shown(boxes)}, segms {shown(outlines)}"
        raise Unusable("objects and metadata differ", detail)
    regions, notes = [], []
    for number, (name, box, outline) in enumerate(zip(names, boxes, outlines, strict=True), start=1):
        try:
            rle, found = _mask(box, outline, picture)
        except Unusable as problem:
            raise Unusable(problem.reason, f"object {number} {problem.detail}") from None
        regions.append(Region(rle, name, box_of(rle), str(number)))
        notes += [Problem(note.reason, f"object {number} {note.detail}") for note in found]
    return regions, notes


def _mask(box: Any, outline: Any, picture: Picture) -> tuple[Rle, list[Problem]]:
    """The mask of an object's outline; of its box, if it has no outline or one that cannot be used."""
    size = picture.height, picture.width
    notes = []
    if outline:
        try:
            return read_segmentation(_flat(outline), *size)
        except Unusable as problem:
            notes.append(Problem(BOX_KEPT, f"{problem.reason} {problem.detail}"))
    rle, found = read_box(box[:4] if isinstance(box, list) else box, *size)
    return rle, notes + found


def _flat(outline: Any) -> list[list[Any]]:
    """Polygons `[[x, y], ...]` as COCO's `[x, y, ...]`."""
    try:
        return [[value for x, y in polygon for value in (x, y)] for polygon in outline]
    except (TypeError, ValueError):
        raise Unusable("malformed segmentation", shown(outline)) from None
