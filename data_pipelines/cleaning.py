"""One record without what would break training.

```
broken region ─► removed, with the exchanges and the names that mention it; the others are numbered anew
broken exchange ─► removed          broken box ─► removed, its region stays
nothing left ─► the record is removed
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_pipelines.checks import SPOKEN_METADATA, box_problem, mask_area, spoken_problem
from data_pipelines.records import (
    REGION_REFERENCE,
    Problem,
    Purpose,
    Region,
    RegionRecord,
    Rejection,
    Turn,
    record_problems,
)

REGION_METADATA = ("category_ids", "is_thing", "object_ids")
"""Metadata that hold one value a region."""

_SOUND_TURNS = (Turn("user", "What?"), Turn("assistant", "That."))


@dataclass(frozen=True)
class Cleaned:
    """What is left of a record, None if nothing is, and what was removed from it."""

    record: RegionRecord | None
    removed: tuple[Rejection, ...] = ()


def without(record: RegionRecord, problem: Problem, removed: Sequence[Rejection] = ()) -> Cleaned:
    """The record removed as a whole, with the regions that it still has."""
    whole = Rejection(record.id, problem.reason, problem.detail, annotations=len(record.regions))
    return Cleaned(None, (*removed, whole))


def clean_record(record: RegionRecord, purpose: Purpose) -> Cleaned:
    """A record without the regions and exchanges that would break `purpose`; regions are numbered anew.

    A region's mask, box, name and metadata stay together, and every text goes on speaking of the same regions. Whether
    the picture can be used is not asked.
    """
    whole = record_problems(replace(record, regions=(), turns=_SOUND_TURNS, metadata={}), purpose)
    if whole:
        return without(record, whole[0])
    cleaner = _Cleaner(record, purpose)
    cleaned = replace(record, regions=cleaner.regions(), turns=cleaner.turns(), metadata=cleaner.metadata())
    if not cleaned.turns and (record.turns or not cleaned.regions):
        return without(cleaned, Problem("nothing is left of the record"), cleaner.removed)
    return Cleaned(cleaned, tuple(cleaner.removed))


class _Cleaner:
    """Takes a record apart; what is left out is noted in `removed`."""

    def __init__(self, record: RegionRecord, purpose: Purpose) -> None:
        self._record = record
        self._purpose = purpose
        broken = _broken_regions(record, purpose)
        self._broken = broken.keys()
        self._kept = [number for number in range(1, len(record.regions) + 1) if number not in broken]
        self._new_number = {number: place for place, number in enumerate(self._kept, start=1)}
        self.removed: list[Rejection] = []
        for number, problem in broken.items():
            self._remove(f"region{number}", problem, annotations=1)

    def _remove(self, part: str, problem: Problem, annotations: int = 0) -> None:
        name = f"{self._record.id}/{part}"
        self.removed.append(Rejection(name, problem.reason, problem.detail, annotations=annotations))

    def regions(self) -> tuple[Region, ...]:
        """The regions that stay, without boxes that cannot be used."""
        regions = []
        for number in self._kept:
            region = self._record.regions[number - 1]
            problem = box_problem(region, self._record)
            if problem is not None:
                self._remove(f"region{number}", problem)
                region = replace(region, box=None)
            regions.append(replace(region, name=self._renumbered(region.name)))
        return tuple(regions)

    def turns(self) -> tuple[Turn, ...]:
        """The exchanges that stay."""
        turns: list[Turn] = []
        for first, exchange in _exchanges(self._record.turns):
            problem = self._exchange_problem(exchange)
            if problem is None:
                turns += [replace(turn, text=self._renumbered(turn.text)) for turn in exchange]
            else:
                self._remove(f"turn{first}", problem)
        return tuple(turns)

    def metadata(self) -> dict[str, Any]:
        """The metadata of the regions that stay, and texts that speak of no other."""
        metadata = dict(self._record.metadata)
        for name in REGION_METADATA:
            values = metadata.get(name)
            if isinstance(values, (list, tuple)) and len(values) == len(self._record.regions):
                metadata[name] = [values[number - 1] for number in self._kept]
        for name in SPOKEN_METADATA:
            if not metadata.get(name):
                continue
            problem = spoken_problem(metadata[name], self._record) or self._mention_problem([metadata[name]])
            if problem is None:
                metadata[name] = self._renumbered(metadata[name])
            else:
                self._remove(name, problem)
                del metadata[name]
        return metadata

    def _exchange_problem(self, exchange: tuple[Turn, ...]) -> Problem | None:
        ends = exchange[-1] is self._record.turns[-1]
        purpose = self._purpose if ends else "training"
        regions = (_sound_region(self._record),) * len(self._record.regions)
        problems = record_problems(replace(self._record, regions=regions, turns=exchange), purpose)
        return problems[0] if problems else self._mention_problem([turn.text for turn in exchange])

    def _mention_problem(self, texts: Sequence[str]) -> Problem | None:
        gone = sorted(set().union(*map(_mentioned, texts)) & self._broken)
        return Problem("text mentions a removed region", f"<region{gone[0]}>") if gone else None

    def _renumbered(self, text: str) -> str:
        return REGION_REFERENCE.sub(lambda match: f"<region{self._new_number[int(match[1])]}>", text)


def _broken_regions(record: RegionRecord, purpose: Purpose) -> dict[int, Problem]:
    """Numbers of the regions that have to go, with the reason; a name that speaks of one of them is a reason too."""
    broken: dict[int, Problem] = {}
    for number, region in enumerate(record.regions, start=1):
        area = mask_area(region, record)
        problem = area if isinstance(area, Problem) else _name_problem(record, number, purpose)
        if problem is not None:
            broken[number] = problem
    while True:
        grown = {
            number: Problem("name mentions a removed region", region.name[:80])
            for number, region in enumerate(record.regions, start=1)
            if number not in broken and _mentioned(region.name) & broken.keys()
        }
        if not grown:
            return dict(sorted(broken.items()))
        broken |= grown


def _name_problem(record: RegionRecord, number: int, purpose: Purpose) -> Problem | None:
    """What is wrong with a region beside its mask: all other regions are taken for sound."""
    regions = [_sound_region(record)] * len(record.regions)
    regions[number - 1] = replace(regions[0], name=record.regions[number - 1].name)
    turns = _SOUND_TURNS if record.turns else ()
    return next(iter(record_problems(replace(record, regions=tuple(regions), turns=turns), purpose)), None)


def _sound_region(record: RegionRecord) -> Region:
    return Region({"size": [record.height, record.width], "counts": ""}, "sound")


def _exchanges(turns: Sequence[Turn]) -> Iterator[tuple[int, tuple[Turn, ...]]]:
    """The number of the first turn, from 1, and the turns of each exchange; what is no exchange comes turn by turn."""
    place = 0
    while place < len(turns):
        pair = tuple(turns[place : place + 2])
        length = 2 if [turn.role for turn in pair] == ["user", "assistant"] else 1
        yield place + 1, pair[:length]
        place += length


def _mentioned(text: str) -> set[int]:
    return {int(number) for number in REGION_REFERENCE.findall(text)}
