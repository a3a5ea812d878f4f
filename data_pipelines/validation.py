"""What in a folder of records would break training, found before it does.

```
shards ─► checksums
records ─► worker processes: problems, statistics, lengths ─► Catalogue on disk: ids, pictures, texts
pictures, each once ─► worker processes: found, decoded, of which size ─► compared with the records
```

The report is the same for every number of processes, and memory does not grow with the number of records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from data_pipelines.catalogue import Catalogue, Entry
from data_pipelines.checks import (
    NOT_RENDERED,
    REPEATED_ID,
    TOO_LONG,
    UNLABELLED,
    mask_area,
    picture_size,
    problems_of,
    read_row,
    regions_in_conversation,
    unmentioned_regions,
)
from data_pipelines.lengths import FIRST_WORDING, TokenCounts, Wording, load_processor, longest_sample, sample_length
from data_pipelines.records import Problem, Purpose, RecordFolder, RegionRecord
from data_pipelines.statistics import (
    RecordStatistics,
    answers_of,
    is_own_question,
    length_summary,
    questions_of,
    region_summary,
    text_summary,
)
from data_pipelines.tally import Tally, count, merge
from data_pipelines.workers import map_in_order
from osprey_tp.files import sha256_of

RECORDS_PER_TASK = 500
PICTURES_PER_TASK = 64
MOST_FREQUENT = 10
DOMINANT_SHARE = 0.5
FEWEST_ANSWERS = 20
"""One answer that is more than `DOMINANT_SHARE` of at least so many is warned about."""


@dataclass(frozen=True)
class TokenBudget:
    """How samples are measured.

    Attributes:
        model: Folder of the model whose processor renders the samples.
        limit: Most tokens of a sample.
        template: Name of a chat template in place of the model's own.
        wording: How records are worded.
    """

    model: Path
    limit: int
    template: str | None = None
    wording: Wording = FIRST_WORDING

    @classmethod
    def of_model(
        cls,
        model: Path,
        *,
        limit: int | None = None,
        template: str | None = None,
        wording: Wording = FIRST_WORDING,
    ) -> TokenBudget:
        """The budget of a model folder: what the model takes, or `limit`.

        Raises:
            FileNotFoundError: if the folder holds no model.
            ValueError: if the template is unknown or the limit is not positive.
        """
        load_processor(model, template)
        if limit is not None and limit < 1:
            raise ValueError(f"the limit is {limit} tokens; it must be at least 1")
        return cls(model, longest_sample(model) if limit is None else limit, template, wording)

    def measure(self, record: RegionRecord, purpose: Purpose) -> TokenCounts | Problem:
        """How long the record's sample is, or why it cannot be used for `purpose`."""
        try:
            counts = sample_length(record, load_processor(self.model, self.template), self.wording)
        except ValueError as error:
            return Problem(NOT_RENDERED, str(error))
        if purpose == "training" and not counts.answers:
            return Problem(UNLABELLED, f"{counts.total} tokens")
        return counts

    def excess(self, counts: TokenCounts) -> Problem | None:
        """The problem that a sample is too long."""
        if counts.total <= self.limit:
            return None
        parts = f"{counts.visual} visual, {counts.regions} regions, {counts.text} text"
        return Problem(TOO_LONG, f"{counts.total} tokens ({parts}), the limit is {self.limit}")


@dataclass
class Findings:
    """Problems or warnings by their reasons; `examples` holds the first detail of each."""

    tally: Tally = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, record_id: str, problem: Problem) -> None:
        """Count one more case."""
        count(self.tally, problem.reason, record_id)
        self.examples.setdefault(problem.reason, problem.detail)

    def merge(self, other: Findings) -> None:
        """Add what was found later."""
        merge(self.tally, other.tally)
        self.examples = {**other.examples, **self.examples}


@dataclass
class ValidationReport:
    """What was looked at, what is wrong, and what the records are like.

    Attributes:
        records, regions, pictures: How many; pictures once each.
        purpose: What the folder is for.
        found: What would break it.
        noticed: What would not, but somebody should know.
        language: Figures of questions and answers.
        regions_summary: Figures of regions.
        lengths: Figures of lengths in tokens; None without a model.
    """

    records: int = 0
    regions: int = 0
    pictures: int = 0
    purpose: Purpose = "training"
    found: Findings = field(default_factory=Findings)
    noticed: Findings = field(default_factory=Findings)
    language: dict[str, Any] = field(default_factory=dict)
    regions_summary: dict[str, Any] = field(default_factory=dict)
    lengths: dict[str, Any] | None = None

    @property
    def problems(self) -> Tally:
        """What would break the folder's purpose, by its reason."""
        return self.found.tally

    @property
    def warnings(self) -> Tally:
        """What would not, by its reason."""
        return self.noticed.tally


def validate(
    folder: RecordFolder,
    *,
    budget: TokenBudget | None = None,
    processes: int = 1,
    progress: bool = True,
    catalogue: Catalogue | None = None,
) -> ValidationReport:
    """Read every record, check every mask, open every picture once, and compare checksums.

    Args:
        folder: The records.
        budget: Measures every sample.
        processes: How many processes read; the report does not depend on it.
        progress: Show progress bars on stderr.
        catalogue: Filled with what was found, for use afterwards.
    """
    with ExitStack() as stack:
        catalogue = catalogue or stack.enter_context(Catalogue())
        report = ValidationReport(records=len(folder), purpose=folder.purpose)
        _check_shards(folder, report.found)
        statistics = _check_records(folder, budget, processes, progress, catalogue, report)
        _check_pictures(folder, processes, progress, catalogue)
        for verdict in catalogue.verdicts():
            if verdict.repeats:
                report.found.add(verdict.id, Problem(REPEATED_ID, f"row {verdict.place}"))
            if verdict.picture is not None:
                report.found.add(verdict.id, verdict.picture)
        _summarise(report, statistics, catalogue, budget)
    return report


def _check_shards(folder: RecordFolder, found: Findings) -> None:
    for shard in folder.manifest["shards"]:
        digest = sha256_of(folder.path / shard["name"])
        if digest != shard["sha256"]:
            detail = f"{shard['name']} has {digest[:12]}..., the manifest says {shard['sha256'][:12]}..."
            found.add(shard["name"], Problem("shard differs from its checksum", detail))


@dataclass
class _Part:
    """What some of the records are like."""

    entries: list[Entry]
    statistics: RecordStatistics
    found: Findings
    noticed: Findings
    texts: dict[str, Counter[str]]


def _check_records(
    folder: RecordFolder,
    budget: TokenBudget | None,
    processes: int,
    progress: bool,
    catalogue: Catalogue,
    report: ValidationReport,
) -> RecordStatistics:
    from tqdm import tqdm

    statistics = RecordStatistics()
    tasks = [
        range(first, min(first + RECORDS_PER_TASK, len(folder))) for first in range(0, len(folder), RECORDS_PER_TASK)
    ]
    parts = map_in_order(partial(_check_part, folder, budget), tasks, min(processes, max(1, len(tasks))))
    with tqdm(total=len(folder), desc="records", unit="record", disable=not progress) as bar:
        for part, task in zip(parts, tasks, strict=True):
            catalogue.add(part.entries, part.texts)
            statistics.add(part.statistics)
            report.found.merge(part.found)
            report.noticed.merge(part.noticed)
            bar.update(len(task))
    catalogue.finish_records()
    return statistics


def _check_part(folder: RecordFolder, budget: TokenBudget | None, places: Sequence[int]) -> _Part:
    part = _Part([], RecordStatistics(), Findings(), Findings(), {"question": Counter(), "answer": Counter()})
    for place in places:
        record = read_row(folder, place)
        if isinstance(record, Problem):
            name = f"row {place}"
            part.found.add(name, record)
            part.entries.append(Entry(place, name, "", 0, 0, 0, True))
            continue
        areas = [mask_area(region, record) for region in record.regions]
        problems = problems_of(record, folder.purpose, areas)
        part.statistics.see(record, [area for area in areas if isinstance(area, int)])
        part.texts["question"].update(text for text in questions_of(record) if not is_own_question(text))
        part.texts["answer"].update(answers_of(record))
        if not problems:
            problems = _conversation_problems(record, folder.purpose, budget, part)
        for problem in problems:
            part.found.add(record.id, problem)
        size = (record.height, record.width, len(record.regions))
        part.entries.append(Entry(place, record.id, record.image, *size, bool(problems)))
    return part


def _conversation_problems(
    record: RegionRecord, purpose: Purpose, budget: TokenBudget | None, part: _Part
) -> list[Problem]:
    """What is wrong with the conversation that a record makes; regions that it leaves out are noticed."""
    regions = regions_in_conversation(record)
    if isinstance(regions, Problem):
        return [regions]
    for number in unmentioned_regions(record, regions):
        part.noticed.add(record.id, Problem("region never mentioned", f"region{number}"))
    if budget is None:
        return []
    counts = budget.measure(record, purpose)
    if isinstance(counts, Problem):
        return [counts]
    part.statistics.see_length(record, counts)
    excess = budget.excess(counts)
    return [] if excess is None else [excess]


def _check_pictures(folder: RecordFolder, processes: int, progress: bool, catalogue: Catalogue) -> None:
    from tqdm import tqdm

    images = catalogue.images()
    tasks = iter(lambda: list(islice(images, PICTURES_PER_TASK)), [])
    total = catalogue.picture_count()
    opened = map_in_order(
        partial(_open_pictures, folder.image_root), tasks, min(processes, -(-total // PICTURES_PER_TASK) or 1)
    )
    with tqdm(total=total, desc="pictures", unit="picture", disable=not progress) as bar:
        for sizes in opened:
            catalogue.add_pictures(sizes)
            bar.update(len(sizes))


def _open_pictures(root: Path, images: Sequence[str]) -> list[tuple[str, tuple[int, int] | Problem]]:
    return [(image, picture_size(root, image)) for image in images]


def _summarise(
    report: ValidationReport, statistics: RecordStatistics, catalogue: Catalogue, budget: TokenBudget | None
) -> None:
    report.regions = statistics.regions
    report.pictures = catalogue.picture_count()
    for kind, texts in (("question", statistics.questions), ("answer", statistics.answers)):
        frequent = catalogue.frequent_texts(kind, MOST_FREQUENT)
        report.language[f"{kind}s"] = text_summary(texts, catalogue.distinct_texts(kind), frequent)
    report.language["own_questions"] = statistics.own_questions
    report.language["text_only_records"] = statistics.text_only
    report.regions_summary = region_summary(statistics, catalogue.regions_per_picture())
    report.lengths = length_summary(statistics, budget.limit if budget is not None else None)
    answers = report.language["answers"]
    if answers["count"] >= FEWEST_ANSWERS and answers["most_frequent"][0]["share"] > DOMINANT_SHARE:
        first = answers["most_frequent"][0]
        detail = f"{first['count']} of {answers['count']} answers"
        report.noticed.add(repr(first["text"]), Problem("one answer stands for most", detail))
