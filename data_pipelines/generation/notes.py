"""What is said about the pictures elsewhere: sentences about the whole picture, phrases about things in it."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath

from data_pipelines.records import REGION_REFERENCE, RecordFolder, Region, RegionRecord
from osprey_tp.run_lengths import Runs

Box = tuple[int, int, int, int]
"""(x0, y0, x1, y1) in source pixels, the far ends exclusive, rounded."""

_COCO_PREFIX = re.compile(r"^COCO_(?:train|val|test)\d{4}_")


@dataclass(frozen=True)
class Notes:
    """What is said about one picture: `captions` of all of it, and `phrases` with the box of what each means."""

    captions: tuple[str, ...] = ()
    phrases: tuple[tuple[str, Box], ...] = ()

    def __add__(self, other: Notes) -> Notes:
        return Notes(
            tuple(dict.fromkeys(self.captions + other.captions)), tuple(dict.fromkeys(self.phrases + other.phrases))
        )


def picture_name(image: str) -> str:
    """What two records of one picture have in common: the file's name, without a prefix such as `COCO_train2014_`."""
    return _COCO_PREFIX.sub("", PurePosixPath(image.replace("\\", "/")).name)


def box_of(region: Region) -> Box:
    """The box of a region; from its mask if the source gave none."""
    if region.box is not None:
        x0, y0, x1, y1 = region.box
    else:
        x0, y0, x1, y1 = Runs.of_rle(region.segmentation, *region.segmentation["size"]).box
    return round(x0), round(y0), round(x1), round(y1)


def notes_of(record: RegionRecord) -> Notes:
    """What a record's turns say.

    An answer to the source's own question is a caption or, about one region, a phrase. Other exchanges count as
    captions if they speak of no region: question and answer together, since the answer alone may say nothing.
    """
    captions, phrases = [], []
    for asked, answered in zip(record.turns[::2], record.turns[1::2], strict=False):
        question, answer = " ".join(asked.text.split()), " ".join(answered.text.split())
        reference = REGION_REFERENCE.fullmatch(question)
        if reference and not REGION_REFERENCE.search(answer):
            phrases.append((answer, box_of(record.regions[int(reference[1]) - 1])))
        elif not REGION_REFERENCE.search(question + answer):
            captions.append(f"{question} {answer}".strip())
    return Notes(tuple(captions), tuple(phrases))


def collect_notes(folders: Collection[RecordFolder], pictures: Collection[str]) -> dict[str, Notes]:
    """The notes on each of `pictures` (by `picture_name`) that the folders have.

    Raises:
        ValueError: if a folder shares no picture with `pictures`.
    """
    wanted = frozenset(pictures)
    found: dict[str, Notes] = {}
    for folder in folders:
        shared = 0
        for record in folder:
            name = picture_name(record.image)
            if record.has_image and name in wanted:
                shared += 1
                found[name] = found.get(name, Notes()) + notes_of(record)
        if not shared:
            raise ValueError(
                f"{folder.path} shares no picture with the records, going by file names; give the captions of the "
                "same pictures"
            )
    return found
