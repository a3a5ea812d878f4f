"""What must be known about all records at once, in a file on disk, so that memory does not grow with their number."""

from __future__ import annotations

import hashlib
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from data_pipelines.checks import size_problem
from data_pipelines.records import Problem

_SCHEMA = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
CREATE TABLE records (place INTEGER PRIMARY KEY, id TEXT, image TEXT, height INTEGER, width INTEGER, regions INTEGER,
    flagged INTEGER);
CREATE TABLE pictures (image TEXT PRIMARY KEY, height INTEGER, width INTEGER, reason TEXT, detail TEXT);
CREATE TABLE texts (kind TEXT, digest BLOB, text TEXT, count INTEGER, PRIMARY KEY (kind, digest)) WITHOUT ROWID;
"""
_INDICES = "CREATE INDEX records_by_id ON records (id, place); CREATE INDEX records_by_image ON records (image, place);"
_VERDICTS = """
SELECT place, id, flagged,
    EXISTS (SELECT 1 FROM records WHERE id = this.id AND place < this.place),
    EXISTS (SELECT 1 FROM records WHERE id = this.id AND place > this.place),
    this.image, this.height, this.width, reason, detail, pictures.height, pictures.width
FROM records AS this LEFT JOIN pictures USING (image) ORDER BY place
"""
_SHOWN = 120
"""Characters that are kept of a text."""


class Entry(NamedTuple):
    """One record: its place in the folder, and what is compared between records.

    `regions` is their number; `flagged` says that something is wrong with the record itself.
    """

    place: int
    id: str
    image: str
    height: int
    width: int
    regions: int
    flagged: bool


class Verdict(NamedTuple):
    """What was found of a record.

    `flagged` as in `Entry`; `repeats` and `is_repeated` say that its id stands earlier, or later, too; `picture` is why
    its picture cannot be used.
    """

    place: int
    id: str
    flagged: bool
    repeats: bool
    is_repeated: bool
    picture: Problem | None


class Catalogue:
    """Records, pictures and texts on disk; use it as a context manager. The file is gone at the end.

    A million records take about 200 MB of the folder for temporary files, and few MB of memory.
    """

    def __enter__(self) -> Catalogue:
        self._folder = tempfile.TemporaryDirectory(prefix="validate-")
        self._connection = sqlite3.connect(Path(self._folder.name) / "catalogue.sqlite", isolation_level=None)
        self._connection.executescript(_SCHEMA)
        self._connection.execute("BEGIN")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._folder.cleanup()

    def add(self, entries: Iterable[Entry], texts: Mapping[str, Mapping[str, int]]) -> None:
        """Take in records, in their order, and how often each text of each kind stands in them."""
        self._connection.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)", entries)
        rows = [
            (kind, hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest(), text[:_SHOWN], times)
            for kind, counted in texts.items()
            for text, times in counted.items()
        ]
        statement = "INSERT INTO texts VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count"
        self._connection.executemany(statement, rows)

    def finish_records(self) -> None:
        """Called once, when all records are in."""
        self._connection.execute("COMMIT")
        self._connection.executescript(_INDICES)
        self._connection.execute("BEGIN")

    def images(self) -> Iterator[str]:
        """The path of every picture, once."""
        for (image,) in self._connection.execute(
            "SELECT image FROM records WHERE image != '' GROUP BY image ORDER BY image"
        ):
            yield image

    def add_pictures(self, found: Iterable[tuple[str, tuple[int, int] | Problem]]) -> None:
        """What was found at each path: (height, width), or why the picture cannot be used."""
        rows = [
            (image, None, None, size.reason, size.detail) if isinstance(size, Problem) else (image, *size, None, None)
            for image, size in found
        ]
        self._connection.executemany("INSERT INTO pictures VALUES (?, ?, ?, ?, ?)", rows)

    def verdicts(self) -> Iterator[Verdict]:
        """What was found of every record, in the order of the records."""
        for (
            place,
            name,
            flagged,
            repeats,
            is_repeated,
            image,
            *stated,
            reason,
            detail,
            height,
            width,
        ) in self._connection.execute(_VERDICTS):
            picture = Problem(reason, detail) if reason else None
            if picture is None and image and stated != [height, width]:
                picture = size_problem(image, (height, width), stated)
            yield Verdict(place, name, bool(flagged), bool(repeats), bool(is_repeated), picture)

    def regions_per_picture(self) -> dict[int, int]:
        """For each number of regions, how many pictures have it, over all of their records."""
        return dict(
            self._connection.execute(
                "SELECT regions, count(*) FROM (SELECT sum(regions) AS regions FROM records WHERE image != '' "
                "GROUP BY image) GROUP BY regions ORDER BY regions"
            )
        )

    def picture_count(self) -> int:
        """How many different pictures the records name."""
        (number,) = self._connection.execute("SELECT count(DISTINCT image) FROM records WHERE image != ''").fetchone()
        return int(number)

    def distinct_texts(self, kind: str) -> int:
        """How many different texts of a kind there are."""
        (number,) = self._connection.execute("SELECT count(*) FROM texts WHERE kind = ?", (kind,)).fetchone()
        return int(number)

    def frequent_texts(self, kind: str, most: int) -> list[tuple[str, int]]:
        """The most frequent texts of a kind, the first characters of each, and how often they stand."""
        return self._connection.execute(
            "SELECT text, count FROM texts WHERE kind = ? ORDER BY count DESC, text, digest LIMIT ?", (kind, most)
        ).fetchall()
