"""A cleaned copy of a folder: what would break training is left out and written down, all else stays as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.catalogue import Catalogue
from data_pipelines.checks import REPEATED_ID, read_row, regions_in_conversation
from data_pipelines.cleaning import Cleaned, clean_record, without
from data_pipelines.records import MANIFEST_NAME, Problem, Purpose, RecordFolder, Rejection
from data_pipelines.tally import Tally
from data_pipelines.validation import TokenBudget, ValidationReport, validate
from data_pipelines.writing import RecordWriter, refuse_taken


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
            cleaned = without(record, Problem(REPEATED_ID, f"row {verdict.place}"))
        elif verdict.picture is not None:
            cleaned = without(record, verdict.picture)
        elif verdict.flagged:
            cleaned = _usable(clean_record(record, folder.purpose), folder.purpose, budget)
        if cleaned.record is not None and verdict.is_repeated:
            written.add(record.id)
        yield cleaned


def _usable(cleaned: Cleaned, purpose: Purpose, budget: TokenBudget | None) -> Cleaned:
    """Nothing, if what is left makes no conversation or one that is too long."""
    if cleaned.record is None:
        return cleaned
    regions = regions_in_conversation(cleaned.record)
    problem = regions if isinstance(regions, Problem) else None
    if problem is None and budget is not None:
        counts = budget.measure(cleaned.record, purpose)
        problem = counts if isinstance(counts, Problem) else budget.excess(counts)
    return cleaned if problem is None else without(cleaned.record, problem, cleaned.removed)
