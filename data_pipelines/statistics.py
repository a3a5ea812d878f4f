"""What records are like: languages, answers, regions, lengths. Statistics of parts add up to those of the whole."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from data_pipelines.records import REGION_REFERENCE, RegionRecord

if TYPE_CHECKING:
    from data_pipelines.lengths import TokenCounts

AREA_SIZES = {"small": 32**2, "medium": 96**2}
"""COCO's sizes of regions: below so many source pixels; all others are large."""

AREA_SHARES = (0.001, 0.01, 0.05, 0.25, 0.5, 1.0)
"""Upper ends of the classes of a region's share of its picture."""

PERCENTILES = (50, 90, 95, 99)
HISTOGRAM_BARS = 10


@dataclass
class TextStatistics:
    """Sums over texts.

    Attributes:
        count: Texts.
        words: Pieces between white space.
        letters: Letters of every alphabet.
        scripts: Letters beyond ASCII by the first word of their Unicode names, such as CJK, CYRILLIC, LATIN.
    """

    count: int = 0
    words: int = 0
    letters: int = 0
    scripts: Counter[str] = field(default_factory=Counter)

    def see(self, text: str) -> None:
        """Take in a text; references to regions are words without letters."""
        self.count += 1
        self.words += len(text.split())
        letters = [character for character in REGION_REFERENCE.sub("", text) if character.isalpha()]
        self.letters += len(letters)
        if not text.isascii():
            self.scripts.update(_script(letter) for letter in letters if not letter.isascii())

    def add(self, other: TextStatistics) -> None:
        """Take in the texts of another part."""
        self.count += other.count
        self.words += other.words
        self.letters += other.letters
        self.scripts.update(other.scripts)


def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0].split("-")[0]


@dataclass
class RecordStatistics:
    """Sums over records.

    Attributes:
        records: Of all kinds.
        text_only: Those without a picture.
        regions: Of all records.
        regions_per_record: Number of regions -> records with a picture that have so many.
        area_sizes: COCO's size -> regions.
        area_shares: Index into `AREA_SHARES` -> regions.
        questions: Words of questions; the source's own questions, which prompts word, count in `own_questions` alone.
        answers: What is learned.
        lengths: Tokens of a sample -> samples.
        tokens: Sums of the kinds of tokens.
        longest: Tokens of the longest sample and its id; the first one of several.
    """

    records: int = 0
    text_only: int = 0
    regions: int = 0
    regions_per_record: Counter[int] = field(default_factory=Counter)
    area_sizes: Counter[str] = field(default_factory=Counter)
    area_shares: Counter[int] = field(default_factory=Counter)
    own_questions: int = 0
    questions: TextStatistics = field(default_factory=TextStatistics)
    answers: TextStatistics = field(default_factory=TextStatistics)
    lengths: Counter[int] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    longest: tuple[int, str] = (0, "")

    def see(self, record: RegionRecord, areas: Sequence[int]) -> None:
        """Take in a record and the areas, in source pixels, of those regions whose masks can be used."""
        self.records += 1
        self.regions += len(record.regions)
        if record.has_image:
            self.regions_per_record[len(record.regions)] += 1
        else:
            self.text_only += 1
        for area in areas:
            self._see_area(area, record.height * record.width)
        for text in questions_of(record):
            if is_own_question(text):
                self.own_questions += 1
            else:
                self.questions.see(text)
        for text in answers_of(record):
            self.answers.see(text)

    def _see_area(self, area: int, of_picture: int) -> None:
        self.area_sizes[next((name for name, limit in AREA_SIZES.items() if area < limit), "large")] += 1
        share = area / of_picture
        self.area_shares[next(index for index, limit in enumerate(AREA_SHARES) if share <= limit)] += 1

    def see_length(self, record: RegionRecord, counts: TokenCounts) -> None:
        """Take in how long a sample is."""
        self.lengths[counts.total] += 1
        self.tokens.update(visual=counts.visual, regions=counts.regions, text=counts.text, answers=counts.answers)
        if counts.total > self.longest[0]:
            self.longest = (counts.total, record.id)

    def add(self, other: RecordStatistics) -> None:
        """Take in the records of a part that comes later."""
        for name in ("records", "text_only", "regions", "own_questions"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("regions_per_record", "area_sizes", "area_shares", "lengths", "tokens"):
            getattr(self, name).update(getattr(other, name))
        self.questions.add(other.questions)
        self.answers.add(other.answers)
        if other.longest[0] > self.longest[0]:
            self.longest = other.longest


def questions_of(record: RegionRecord) -> Sequence[str]:
    """What is asked, as it stands in the record; "<region2>" and "" are the source's own questions."""
    if not record.turns:
        return [f"<region{number}>" for number in range(1, len(record.regions) + 1)]
    return [turn.text for turn in record.turns if turn.role == "user"]


def is_own_question(text: str) -> bool:
    """Whether the source's own question is asked, about a region or about the picture."""
    return not text or REGION_REFERENCE.fullmatch(text) is not None


def answers_of(record: RegionRecord) -> Sequence[str]:
    """What is learned, as it stands in the record."""
    if not record.turns:
        return [region.name for region in record.regions]
    return [turn.text for turn in record.turns if turn.role == "assistant"]


def text_summary(texts: TextStatistics, distinct: int, frequent: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Figures of a kind of texts for the report; shares are of all texts of the kind, letters' of all letters."""
    foreign = sum(texts.scripts.values())
    return {
        "count": texts.count,
        "mean_words": _ratio(texts.words, texts.count),
        "distinct": distinct,
        "distinct_share": _ratio(distinct, texts.count),
        "non_ascii_letter_share": _ratio(foreign, texts.letters),
        "scripts": dict(sorted(texts.scripts.items(), key=lambda item: (-item[1], item[0]))),
        "most_frequent": [
            {"text": text, "count": count, "share": _ratio(count, texts.count)} for text, count in frequent
        ],
    }


def region_summary(statistics: RecordStatistics, per_picture: Mapping[int, int]) -> dict[str, Any]:
    """Figures of regions for the report: how many a record and a picture, and how large."""
    edges = [f"{100 * low:g}-{100 * high:g}%" for low, high in zip((0.0, *AREA_SHARES), AREA_SHARES, strict=False)]
    return {
        "count": statistics.regions,
        "per_record": _distribution(statistics.regions_per_record),
        "per_picture": _distribution(per_picture),
        "sizes": {name: statistics.area_sizes[name] for name in (*AREA_SIZES, "large")},
        "share_of_picture": {edge: statistics.area_shares[index] for index, edge in enumerate(edges)},
    }


def length_summary(statistics: RecordStatistics, limit: int | None) -> dict[str, Any] | None:
    """Figures of the lengths of samples in tokens; None if they were not measured."""
    if not statistics.lengths:
        return None
    longest, record_id = statistics.longest
    samples = sum(statistics.lengths.values())
    step = -(-longest // HISTOGRAM_BARS)
    bars: Counter[int] = Counter()
    for length, count in statistics.lengths.items():
        bars[(length - 1) // step] += count
    return {
        **_distribution(statistics.lengths),
        "longest_record": record_id,
        "limit": limit,
        "mean_tokens": {kind: _ratio(count, samples) for kind, count in sorted(statistics.tokens.items())},
        "histogram": [
            {"from": bar * step + 1, "to": (bar + 1) * step, "samples": bars[bar]} for bar in range(max(bars) + 1)
        ],
    }


def _distribution(counted: Mapping[int, int]) -> dict[str, Any]:
    """Mean, percentiles (the smallest value that so many percent do not exceed), least and most."""
    if not counted:
        return {}
    total = sum(counted.values())
    summary: dict[str, Any] = {
        "mean": _ratio(sum(value * count for value, count in counted.items()), total),
        "least": min(counted),
    }
    for percentile in PERCENTILES:
        reached = 0
        for value in sorted(counted):
            reached += counted[value]
            if 100 * reached >= percentile * total:
                summary[f"percentile_{percentile}"] = value
                break
    return {**summary, "most": max(counted)}


def _ratio(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0
