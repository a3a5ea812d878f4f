"""Yes/no questions about categories, made by rule from records with federated negatives, as LVIS has them.

For every named region one question whose answer is yes, with its own category, and one whose answer is no, with a
category that somebody has looked for in the picture and not found (`metadata["negative_categories"]`). Nothing else
is certain to be absent: LVIS annotates each picture with some categories only. A record without such a category gives
no record at all, since questions that are all answered by yes teach to say yes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipelines.generation.scenes import spoken_name
from data_pipelines.records import Region, RegionRecord, Rejection, Turn
from osprey_tp.outside import of_record

SOURCE = "osprey-lvis-positive-negative"

QUESTIONS: tuple[str, ...] = (
    "Does the category {category} fit {region}?",
    "Does {region} show something of the category {category}?",
    "Would you file {region} under {category}?",
    "Is {category} the right name for what {region} shows?",
    "Is what you see in {region} an example of {category}?",
)
"""Wordings that need no article before the category; a region's two questions have different ones."""


def absent_categories(record: RegionRecord) -> list[str]:
    """The categories that are certain not to be in the picture, in the order of the record, each once.

    Raises:
        ValueError: naming the record, if its lists of categories are not lists of texts.
    """
    unsure = {_compared(name) for name in _names(record.metadata, "not_exhaustive_categories", record)}
    unsure |= {_compared(region.name) for region in record.regions}
    found = {_compared(name): name for name in _names(record.metadata, "negative_categories", record)}
    return [name for compared, name in found.items() if compared and compared not in unsure]


def positive_negative_records(
    record: RegionRecord, *, max_regions: int, seed: int
) -> Iterator[RegionRecord | Rejection]:
    """The questions on a record, in records of at most `max_regions` regions each, and what is left out.

    `seed` and the record's id draw absent categories, wordings and the order of the questions. The absent categories
    take turns, so that none comes up more than once more often than another.
    """
    named = [number for number, region in enumerate(record.regions, start=1) if region.name.strip()]
    for number in sorted(set(range(1, len(record.regions) + 1)) - set(named)):
        yield Rejection(f"{record.id}#{record.regions[number - 1].id or number}", "region without a name")
    absent = absent_categories(record)
    if not named or not absent:
        reason = "record without a category that is certain to be absent" if named else "record without named regions"
        yield Rejection(record.id, reason, annotations=len(named))
        return
    chooser = random.Random(f"{seed}/{record.id}")
    chooser.shuffle(absent)
    groups = [named[start : start + max_regions] for start in range(0, len(named), max_regions)]
    for place, group in enumerate(groups, start=1):
        first = (place - 1) * max_regions
        drawn = [absent[(first + index) % len(absent)] for index in range(len(group))]
        suffix = f"/{place}" if len(groups) > 1 else ""
        yield _questions_record(record, suffix, [record.regions[number - 1] for number in group], drawn, chooser)


def _questions_record(
    record: RegionRecord, suffix: str, regions: Sequence[Region], absent: Sequence[str], chooser: random.Random
) -> RegionRecord:
    pairs = []
    for number, (region, negative) in enumerate(zip(regions, absent, strict=True), start=1):
        for wording, category, answer in zip(
            chooser.sample(QUESTIONS, 2), (region.name, negative), ("Yes", "No"), strict=True
        ):
            question = wording.format(category=spoken_name(category), region=f"<region{number}>")
            pairs.append((Turn("user", question), Turn("assistant", answer)))
    chooser.shuffle(pairs)
    return RegionRecord(
        f"{SOURCE}:{record.id}{suffix}",
        SOURCE,
        record.image,
        record.height,
        record.width,
        tuple(regions),
        tuple(turn for pair in pairs for turn in pair),
        {name: record.metadata[name] for name in ("split",) if name in record.metadata},
    )


def _names(metadata: Mapping[str, Any], key: str, record: RegionRecord) -> list[str]:
    names = metadata.get(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{key} is not a list of names {of_record(record.id)}; prepare the records again")
    return names


def _compared(name: str) -> str:
    """A name in the form in which two that mean the same are equal."""
    return " ".join(name.replace("_", " ").split()).casefold()
