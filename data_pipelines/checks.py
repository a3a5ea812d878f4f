"""What can be wrong with one record or one picture, beside what `records.record_problems` tells of the record alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipelines.conversations import conversation_of
from data_pipelines.records import (
    REGION_REFERENCE,
    Problem,
    Purpose,
    RecordFolder,
    Region,
    RegionRecord,
    Turn,
    record_problems,
)
from osprey_tp.images import load_image
from osprey_tp.masks import rle_area
from osprey_tp.outside import confined_path

NO_RECORD = "row that is no record"
REPEATED_ID = "record id stands twice"
OTHER_SIZE = "picture of another size than the record"
NO_CONVERSATION = "record that makes no conversation"
TOO_LONG = "sample longer than the model takes"
UNLABELLED = "sample without an answer to learn from"
NOT_RENDERED = "sample that the model's processor does not take"

SPOKEN_METADATA = ("rationale",)
"""Metadata that prompts make answers of; it refers to regions as turns do."""

_BOX_MARGIN = 1.0
"""Source pixels by which the box of an annotation tool may leave the picture."""


def read_row(folder: RecordFolder, place: int) -> RegionRecord | Problem:
    """The record at that place of a folder, or why the row cannot be one."""
    try:
        record = folder[place]
        texts = [record.id, record.source, record.image, *(region.name for region in record.regions)]
        texts += [text for turn in record.turns for text in (turn.role, turn.text)]
        texts += [region.segmentation["counts"] for region in record.regions]
        if not all(isinstance(text, str) for text in texts) or None in (record.height, record.width):
            return Problem(NO_RECORD, f"row {place} lacks a value")
    except (ValueError, TypeError, KeyError) as error:
        return Problem(NO_RECORD, f"row {place}: {error}")
    return record


def problems_of(record: RegionRecord, purpose: Purpose, areas: Sequence[int | Problem] | None = None) -> list[Problem]:
    """Everything that would break `purpose` on this record and can be told without its picture.

    `areas` is what `mask_area` says of each region, if that is known already.
    """
    problems = record_problems(record, purpose)
    areas = [mask_area(region, record) for region in record.regions] if areas is None else areas
    for number, (region, area) in enumerate(zip(record.regions, areas, strict=True), start=1):
        for problem in (area, box_problem(region, record)):
            if isinstance(problem, Problem):
                problems.append(Problem(problem.reason, f"region{number}: {problem.detail}"))
    for name in SPOKEN_METADATA:
        problem = spoken_problem(record.metadata.get(name, ""), record)
        if problem is not None:
            problems.append(Problem(problem.reason, f"{name}: {problem.detail}"))
    return problems


def spoken_problem(text: Any, record: RegionRecord) -> Problem | None:
    """Why a text of the metadata cannot be an answer about the record's regions."""
    if not text:
        return None
    if not isinstance(text, str):
        return Problem("metadata that is no text", repr(text)[:80])
    sound = Region({"size": [record.height, record.width], "counts": ""}, "sound")
    spoken = (Turn("user", "Why?"), Turn("assistant", text))
    probe = replace(record, regions=(sound,) * len(record.regions), turns=spoken)
    return next(iter(record_problems(probe, "training")), None)


def mask_area(region: Region, record: RegionRecord) -> int | Problem:
    """Source pixels inside the region, or why its mask cannot be used."""
    try:
        area = rle_area(region.segmentation, record.height, record.width)
    except ValueError as error:
        return Problem("malformed mask", str(error))
    return area or Problem("empty region", "no pixel is inside")


def box_problem(region: Region, record: RegionRecord) -> Problem | None:
    """Why the region's box cannot be used; up to a pixel beyond the picture passes."""
    if region.box is None:
        return None
    if len(region.box) != 4 or not all(value is not None and math.isfinite(value) for value in region.box):
        return Problem("malformed box", f"{list(region.box)}")
    x0, y0, x1, y1 = region.box
    if x1 <= x0 or y1 <= y0:
        return Problem("malformed box", f"{list(region.box)} has no area")
    if min(x0, y0) < -_BOX_MARGIN or x1 > record.width + _BOX_MARGIN or y1 > record.height + _BOX_MARGIN:
        size = f"{record.height} x {record.width} (height x width)"
        return Problem("box beyond the picture", f"{list(region.box)}, the picture is {size}")
    return None


def regions_in_conversation(record: RegionRecord) -> set[int] | Problem:
    """Numbers of the regions that the record's conversation holds, or why it makes none."""
    try:
        conversation = conversation_of(record, None)
    except ValueError as error:
        return Problem(NO_CONVERSATION, str(error))
    return set(region_numbers(record, conversation))


def region_numbers(record: RegionRecord, conversation: Sequence[Mapping[str, Any]]) -> list[int]:
    """Number of the region, from 1, that each `<mask>` of a record's conversation stands for."""
    numbers = {id(region.segmentation): number for number, region in enumerate(record.regions, start=1)}
    content = conversation[0]["content"]
    masks = [] if isinstance(content, str) else content[0]["regions"]
    return [numbers[id(mask)] for mask in masks]


def unmentioned_regions(record: RegionRecord, in_conversation: Collection[int]) -> list[int]:
    """Numbers of the regions that no turn of a dialogue speaks of and no prompt introduces; they are never seen."""
    if not record.turns:
        return []
    texts = [*(turn.text for turn in record.turns), *(str(record.metadata.get(name)) for name in SPOKEN_METADATA)]
    mentioned = {int(number) for text in texts for number in REGION_REFERENCE.findall(text)}
    numbers = range(1, len(record.regions) + 1)
    return [number for number in numbers if number not in mentioned and number not in in_conversation]


def picture_size(root: Path, image: str) -> tuple[int, int] | Problem:
    """(height, width) of the decoded picture at `image` below `root`, or why it cannot be used."""
    try:
        path = confined_path(root, image)
    except ValueError as error:
        return Problem("image path leaves the image folder", str(error))
    if not path.is_file():
        return Problem("picture not found", image)
    try:
        picture = load_image(path)
    except (OSError, ValueError) as error:
        return Problem("unreadable picture", str(error))
    return picture.height, picture.width


def size_problem(image: str, found: Sequence[int], stated: Sequence[int]) -> Problem:
    """A picture whose (height, width) is not the one that its record states."""
    detail = f"{image} is {found[0]} x {found[1]}, the record {stated[0]} x {stated[1]} (height x width)"
    return Problem(OTHER_SIZE, detail)


REMEDIES = {
    NO_RECORD: "the folder was not written by this program; prepare it again",
    REPEATED_ID: "give each record its own id, or let --fix keep the first",
    OTHER_SIZE: "prepare the folder again with these pictures, or name the right ones with --images",
    TOO_LONG: "fewer regions a sample (--max-regions), fewer tiles (max_tiles), or let --fix leave them out",
    UNLABELLED: "the chat template needs {% generation %} marks around answers; see osprey_tp/chat_templates",
    NOT_RENDERED: "look at the record with `show --model`",
    "shard differs from its checksum": "the file was changed or damaged after it was written; prepare or copy it again",
    "picture not found": "name the folder of pictures with --images, or fetch what is missing",
    "unreadable picture": "fetch the file again",
    "image path leaves the image folder": "paths are relative to the folder of pictures and stay inside it",
    "region never mentioned": "nothing is learned about it; remove it, or ask about it",
    "one answer stands for most": "a model learns to say it always; take fewer of these records",
}
"""What to do about a reason, where it is not plain."""

GENERAL_REMEDY = "`validate --fix OUT` writes a copy without it"
