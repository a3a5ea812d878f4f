"""A cleaned copy of a folder: what would break training is left out and written down, all else stays as it is.

```
broken region ─► removed, with the exchanges and the names that mention it; the others are numbered anew
broken exchange ─► removed          broken box ─► removed, its region stays
nothing left, unusable picture, repeated id, sample too long ─► the record is removed
```
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipelines.catalogue import Catalogue
from data_pipelines.checks import REPEATED_ID, box_problem, mask_problem, read_row
from data_pipelines.records import (
    MANIFEST_NAME,
    REGION_REFERENCE,
    Problem,
    Purpose,
    RecordFolder,
    Region,
    RegionRecord,
    Rejection,
    Turn,
    record_problems,
)
from data_pipelines.tally import Tally
from data_pipelines.validation import TokenBudget, ValidationReport, validate
from data_pipelines.writing import RecordWriter, refuse_taken

REGION_METADATA = ("category_ids", "is_thing", "object_ids")
"""Metadata that hold one value a region."""


@dataclass(frozen=True)
class FixReport:
    """What was found in the original, what the copy holds, and what was removed, by its reason."""

    report: ValidationReport
    counts: Mapping[str, int]
    removed: Tally


def fix(
    folder: RecordFolder,
    out: Path,
    *,
    budget: TokenBudget | None = None,
    processes: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> FixReport:
    """Validate a folder and write a copy to `out` that holds nothing of what would break training.

    Raises:
        ValueError: if `out` is taken, or no record is left.
    """
    from tqdm import tqdm

    out = Path(out).absolute()
    if out == folder.path.absolute():
        raise ValueError(f"{out} is the folder itself; name another one for the copy")
    refuse_taken(out, overwrite)
    with Catalogue() as catalogue:
        report = validate(folder, budget=budget, processes=processes, progress=progress, catalogue=catalogue)
        arguments = {
            "fixed": str(folder.path),
            "model": None if budget is None else str(budget.model),
            "limit": None if budget is None else budget.limit,
            "of": folder.manifest["arguments"],
        }
        with RecordWriter(
            out,
            source=folder.manifest["source"],
            image_root=folder.image_root,
            purpose=folder.purpose,
            arguments=arguments,
            inputs=[folder.path / MANIFEST_NAME],
            overwrite=overwrite,
        ) as writer:
            writer.counts_in = {"images": report.pictures, "annotations": report.regions}
            cleaned = _cleaned(folder, catalogue, budget)
            for item in tqdm(cleaned, total=len(folder), desc="writing", unit="record", disable=not progress):
                for rejection in item.removed:
                    writer.reject(rejection)
                if item.record is not None:
                    writer.add(item.record)
    return FixReport(report, dict(writer.counts), dict(sorted(writer.rejections.items())))


@dataclass(frozen=True)
class Cleaned:
    """What is left of a record, None if nothing is, and what was removed from it."""

    record: RegionRecord | None
    removed: tuple[Rejection, ...] = ()


def _cleaned(folder: RecordFolder, catalogue: Catalogue, budget: TokenBudget | None) -> Iterator[Cleaned]:
    """Every record of the folder; those without a finding as they are."""
    written: set[str] = set()
    for verdict in catalogue.verdicts():
        record = read_row(folder, verdict.place)
        if isinstance(record, Problem):
            yield Cleaned(None, (Rejection(verdict.id, record.reason, record.detail),))
            continue
        cleaned = Cleaned(record)
        if record.id in written:
            cleaned = _without(record, Problem(REPEATED_ID, f"row {verdict.place}"))
        elif verdict.picture is not None:
            cleaned = _without(record, verdict.picture)
        elif verdict.flagged:
            cleaned = _within_budget(clean_record(record, folder.purpose), folder.purpose, budget)
        if cleaned.record is not None and verdict.is_repeated:
            written.add(record.id)
        yield cleaned


def _within_budget(cleaned: Cleaned, purpose: Purpose, budget: TokenBudget | None) -> Cleaned:
    if cleaned.record is None or budget is None:
        return cleaned
    counts = budget.measure(cleaned.record, purpose)
    problem = counts if isinstance(counts, Problem) else budget.excess(counts)
    return cleaned if problem is None else _without(cleaned.record, problem, cleaned.removed)


def _without(record: RegionRecord, problem: Problem, removed: Sequence[Rejection] = ()) -> Cleaned:
    """The record removed as a whole, with the regions that it still has."""
    whole = Rejection(record.id, problem.reason, problem.detail, annotations=len(record.regions))
    return Cleaned(None, (*removed, whole))


_SOUND_TURNS = (Turn("user", "What?"), Turn("assistant", "That."))


def clean_record(record: RegionRecord, purpose: Purpose) -> Cleaned:
    """A record without the regions and exchanges that would break `purpose`; regions are numbered anew.

    A region's mask, box, name and metadata stay together, and every text goes on speaking of the same regions. Whether
    the picture can be used is not asked.
    """
    whole = record_problems(replace(record, regions=(), turns=_SOUND_TURNS), purpose)
    if whole:
        return _without(record, whole[0])
    broken = _broken_regions(record, purpose)
    kept = [number for number in range(1, len(record.regions) + 1) if number not in broken]
    removed = [
        Rejection(f"{record.id}/region{number}", problem.reason, problem.detail) for number, problem in broken.items()
    ]
    new_number = {number: place for place, number in enumerate(kept, start=1)}
    turns: list[Turn] = []
    for first, exchange in _exchanges(record.turns, purpose):
        problem = _exchange_problem(record, exchange, broken, purpose)
        if problem is None:
            turns += [replace(turn, text=_renumbered(turn.text, new_number)) for turn in exchange]
        else:
            removed.append(Rejection(f"{record.id}/turn{first}", problem.reason, problem.detail, annotations=0))
    regions = []
    for number in kept:
        region = record.regions[number - 1]
        problem = box_problem(region, record)
        if problem is not None:
            removed.append(Rejection(f"{record.id}/region{number}", problem.reason, problem.detail, annotations=0))
            region = replace(region, box=None)
        regions.append(replace(region, name=_renumbered(region.name, new_number)))
    metadata = _metadata_of(record, kept)
    cleaned = replace(record, regions=tuple(regions), turns=tuple(turns), metadata=metadata)
    if not turns and (record.turns or not regions):
        return _without(cleaned, Problem("nothing is left of the record"), removed)
    return Cleaned(cleaned, tuple(removed))


def _broken_regions(record: RegionRecord, purpose: Purpose) -> dict[int, Problem]:
    """Numbers of the regions that have to go, with the reason; a name that speaks of one of them is a reason too."""
    broken: dict[int, Problem] = {}
    for number, region in enumerate(record.regions, start=1):
        problem = mask_problem(region, record) or _name_problem(record, number, purpose)
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
    size = {"size": [record.height, record.width], "counts": ""}
    regions = [Region(size, "sound")] * len(record.regions)
    regions[number - 1] = replace(record.regions[number - 1], segmentation=size)
    turns = _SOUND_TURNS if record.turns else ()
    return next(iter(record_problems(replace(record, regions=tuple(regions), turns=turns), purpose)), None)


def _exchanges(turns: Sequence[Turn], purpose: Purpose) -> Iterator[tuple[int, tuple[Turn, ...]]]:
    """The number of the first turn, from 1, and the turns of each exchange; what is no exchange comes turn by turn."""
    place = 0
    while place < len(turns):
        pair = tuple(turns[place : place + 2])
        length = 2 if [turn.role for turn in pair] == ["user", "assistant"] else 1
        yield place + 1, pair[:length]
        place += length


def _exchange_problem(
    record: RegionRecord, exchange: tuple[Turn, ...], broken: Mapping[int, Problem], purpose: Purpose
) -> Problem | None:
    if purpose == "evaluation" and exchange[0] is not record.turns[-1]:
        purpose = "training"
    sound = Region({"size": [record.height, record.width], "counts": ""}, "sound")
    probe = replace(record, regions=(sound,) * len(record.regions), turns=exchange)
    problems = record_problems(probe, purpose)
    if problems:
        return problems[0]
    gone = sorted(set().union(*(_mentioned(turn.text) for turn in exchange)) & broken.keys())
    return Problem("exchange mentions a removed region", f"<region{gone[0]}>") if gone else None


def _mentioned(text: str) -> set[int]:
    return {int(number) for number in REGION_REFERENCE.findall(text)}


def _renumbered(text: str, new_number: Mapping[int, int]) -> str:
    return REGION_REFERENCE.sub(lambda match: f"<region{new_number[int(match[1])]}>", text)


def _metadata_of(record: RegionRecord, kept: Iterable[int]) -> dict[str, Any]:
    """The metadata with the values of the kept regions, where there is one value a region."""
    places = [number - 1 for number in kept]
    metadata = dict(record.metadata)
    for name in REGION_METADATA:
        values = metadata.get(name)
        if isinstance(values, (list, tuple)) and len(values) == len(record.regions):
            metadata[name] = [values[place] for place in places]
    return metadata
