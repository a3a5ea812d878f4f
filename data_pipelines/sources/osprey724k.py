"""The five parts of Osprey-724K.

```
[{"file_name": "COCO_train2014_000000000025.jpg", "height": 426, "width": 640, "annotation": [{"segmentation": ...}],
  "conversations": [{"from": "human", "value": "What is <region1>?"}, {"from": "gpt", "value": "A giraffe."}]}]
   ─► RegionRecord("osprey-conversation:0", regions=(Region(mask),), turns=(user "What is <region1>?", ...))

the detailed descriptions have, in place of conversations, "description": ["<region1>: A tall giraffe ..."]
   ─► turns=(user "<region1>", assistant "A tall giraffe ...")
```
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from data_pipelines.records import REGION_REFERENCE, Problem, Region, RegionRecord, Rejection, Turn
from data_pipelines.sources.entries import EntryReader, Read
from data_pipelines.sources.formats import OSPREY_CONVERSATIONS, OSPREY_DESCRIPTIONS
from data_pipelines.sources.reader import Picture, Unusable
from data_pipelines.sources.segmentation import box_of, read_segmentation
from data_pipelines.sources.texts import check_references, read_dialogue, shown, text_of
from data_pipelines.staging import Unit

_DESCRIPTION = re.compile(r"\s*<region(\d{1,9})>\s*:\s*(.*)", re.DOTALL)


class OspreyReader(EntryReader):
    """One record an entry, named by its place in the file, counted from 0.

    Texts refer to regions by their numbers, so an entry is left out as a whole if one of its regions gives no mask.
    Regions that stand for a crowd stay: the conversation is about them. What is counted are regions.
    """

    format = OSPREY_CONVERSATIONS

    def annotation_count(self, unit: Unit) -> int:
        listed = unit.body.get("annotation")
        return max(1, len(listed)) if isinstance(listed, list) else 1

    def _read_entry(self, record_id: str, entry: Mapping[str, Any]) -> Read:
        picture = self._picture(entry)
        turns, _ = read_dialogue(entry.get("conversations"))
        if not all(turn.text for turn in turns):
            raise Unusable("question without text")
        regions, notes = [], []
        for number, annotation in enumerate(_annotations(entry), start=1):
            region, found = _region(annotation, number, picture)
            regions.append(region)
            notes += found
        check_references((turn.text for turn in turns), len(regions))
        return self._record(record_id, picture, regions, turns), notes

    def _record(self, record_id: str, picture: Picture, regions: list[Region], turns: tuple[Turn, ...]) -> RegionRecord:
        return RegionRecord(record_id, self.name, picture.path, picture.height, picture.width, tuple(regions), turns)


class OspreyDescriptionReader(OspreyReader):
    """One record an entry: its regions are described one by one.

    A description is that of the region which it names, wherever it stands. A region without a usable mask or without a
    usable description is left out, with the reason.
    """

    format = OSPREY_DESCRIPTIONS

    def _read_entry(self, record_id: str, entry: Mapping[str, Any]) -> Read:
        picture = self._picture(entry)
        annotations = _annotations(entry)
        answers, left_out = _descriptions(entry.get("description"), len(annotations))
        notes: list[Problem | Rejection] = [*left_out]
        regions, numbers = [], {}
        for number, annotation in enumerate(annotations, start=1):
            try:
                if number not in answers:
                    raise Unusable("region without a description")
                region, found = _region(annotation, number, picture)
            except Unusable as problem:
                notes.append(Rejection(f"{record_id}#{number}", problem.reason, problem.detail))
                continue
            notes += found
            regions.append(region)
            numbers[number] = len(regions)
        if not regions:
            raise Unusable("no region with a description", notes[0].reason)
        turns: list[Turn] = []
        for number, new in numbers.items():
            turns += [Turn("user", f"<region{new}>"), Turn("assistant", _renumbered(answers[number], numbers))]
        return self._record(record_id, picture, regions, tuple(turns)), notes


def _annotations(entry: Mapping[str, Any]) -> list[Any]:
    listed = entry.get("annotation")
    if not isinstance(listed, list) or not listed:
        raise Unusable("entry without regions", shown(listed))
    return listed


def _region(annotation: Any, number: int, picture: Picture) -> tuple[Region, list[Problem]]:
    if not isinstance(annotation, dict):
        raise Unusable("malformed annotation", f"region{number} is {shown(annotation)}")
    try:
        rle, notes = read_segmentation(annotation.get("segmentation"), picture.height, picture.width)
    except Unusable as problem:
        raise Unusable(problem.reason, f"region{number} {problem.detail}".strip()) from None
    notes = [replace(note, detail=f"region{number} {note.detail}") for note in notes]
    return Region(rle, "", box_of(rle), str(number)), notes


def _descriptions(listed: Any, regions: int) -> tuple[dict[int, str], list[Problem]]:
    """The description of each region by its number, and a note for each that cannot be used."""
    if not isinstance(listed, list):
        raise Unusable("entry without descriptions", shown(listed))
    answers: dict[int, str] = {}
    notes = []
    for text in listed:
        try:
            match = _DESCRIPTION.fullmatch(text_of(text, "description without text"))
            if match is None:
                raise Unusable("description that names no region", shown(text))
            number, answer = int(match[1]), text_of(match[2], "description without text")
            check_references((f"<region{number}>", answer), regions)
            if number in answers:
                raise Unusable("region described twice", f"region{number}")
        except Unusable as problem:
            notes.append(Problem(problem.reason, problem.detail))
            continue
        answers[number] = answer
    return answers, notes


def _renumbered(text: str, numbers: Mapping[int, int]) -> str:
    """The text with references to the regions that are left; raises `Unusable` if it speaks of another."""
    gone = [number for number in REGION_REFERENCE.findall(text) if int(number) not in numbers]
    if gone:
        raise Unusable("description speaks of a region that was left out", f"region{gone[0]}")
    return REGION_REFERENCE.sub(lambda match: f"<region{numbers[int(match[1])]}>", text)
