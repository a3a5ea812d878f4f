"""What in a folder of records would break training, found before it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from data_pipelines.records import Problem, RecordFolder, RegionRecord, record_problems
from data_pipelines.tally import Tally, count
from data_pipelines.writing import sha256_of
from osprey_tp.images import load_image
from osprey_tp.masks import to_mask


@dataclass
class ValidationReport:
    """What was looked at, and what is wrong by its reason."""

    records: int = 0
    pictures: int = 0
    regions: int = 0
    problems: Tally = field(default_factory=dict)


def validate(folder: RecordFolder, *, progress: bool = True) -> ValidationReport:
    """Read every record, decode every mask, open every picture once, and compare checksums."""
    from tqdm import tqdm

    report = ValidationReport()
    for shard in folder.manifest["shards"]:
        if sha256_of(folder.path / shard["name"]) != shard["sha256"]:
            count(report.problems, "shard differs from its checksum", shard["name"])
    checker = _Checker(folder)
    with tqdm(folder, total=len(folder), desc="validating", unit="record", disable=not progress) as bar:
        for record in bar:
            report.records += 1
            report.regions += len(record.regions)
            for problem in checker.problems_of(record):
                count(report.problems, problem.reason, record.id)
    report.pictures = checker.pictures
    return report


class _Checker:
    """Looks at records one by one; remembers the ids and the pictures that it has seen."""

    def __init__(self, folder: RecordFolder) -> None:
        self._folder = folder
        self._ids: set[str] = set()
        self._sizes: dict[str, tuple[int, int] | Problem] = {}

    @property
    def pictures(self) -> int:
        return len(self._sizes)

    def problems_of(self, record: RegionRecord) -> Iterator[Problem]:
        if record.id in self._ids:
            yield Problem("record id stands twice")
        self._ids.add(record.id)
        yield from record_problems(record)
        yield from _mask_problems(record)
        if record.image not in self._sizes:
            self._sizes[record.image] = self._open(record)
        found = self._sizes[record.image]
        if isinstance(found, Problem):
            yield found
        elif found != (record.height, record.width):
            detail = f"picture {found[0]} x {found[1]}, record {record.height} x {record.width} (height x width)"
            yield Problem("picture of another size than the record", detail)

    def _open(self, record: RegionRecord) -> tuple[int, int] | Problem:
        """(height, width) of the record's picture, or why it cannot be used."""
        try:
            path = self._folder.image_path(record)
        except ValueError as error:
            return Problem("image path leaves the image folder", str(error))
        if not path.is_file():
            return Problem("picture not found", record.image)
        try:
            image = load_image(path)
        except (OSError, ValueError) as error:
            return Problem("unreadable picture", str(error))
        return image.height, image.width


def _mask_problems(record: RegionRecord) -> Iterator[Problem]:
    for number, region in enumerate(record.regions, start=1):
        try:
            mask = to_mask(region.segmentation, record.height, record.width, allow_empty=True)
        except ValueError as error:
            yield Problem("malformed mask", f"region{number}: {error}")
            continue
        if not mask.any():
            yield Problem("empty region", f"region{number}")
