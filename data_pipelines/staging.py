"""A source's entries on disk, so that a picture's annotations are found without holding the files in memory.

```
annotation files, any order ─► StagingWriter ─► one SQLite file: units, annotations, context, rejections
    ─► Staging, in every worker process ─► Unit: a picture with its annotations, or one entry of a list
```
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from data_pipelines.records import Rejection
from osprey_tp.files import file_aside

_SCHEMA = """
CREATE TABLE units (place INTEGER PRIMARY KEY, key UNIQUE NOT NULL, body TEXT NOT NULL);
CREATE TABLE annotations (place INTEGER PRIMARY KEY, id UNIQUE NOT NULL, unit NOT NULL, body TEXT NOT NULL);
CREATE TABLE context (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE rejections (id TEXT, reason TEXT, detail TEXT, annotations INTEGER);
"""

Key = int | str
"""What names a unit or an annotation within its source; 1 and "1" are two different keys."""


@dataclass(frozen=True)
class Unit:
    """What is read together.

    Attributes:
        key: Its name within the source, such as the id of a picture.
        body: Its entry in the annotation file.
        annotations: The entries that point to it, in the order of the file.
    """

    key: Key
    body: Any
    annotations: tuple[Any, ...] = ()


class StagingWriter:
    """Writes a staging file; use it as a context manager. The file appears when everything is in it."""

    def __init__(self, path: Path) -> None:
        self._file = file_aside(path)

    def __enter__(self) -> StagingWriter:
        aside = self._file.__enter__()
        aside.unlink(missing_ok=True)
        self._connection = sqlite3.connect(aside, isolation_level=None)
        self._connection.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _SCHEMA)
        self._connection.execute("BEGIN")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
                self._connection.execute("CREATE INDEX annotations_of_unit ON annotations (unit, place)")
        finally:
            self._connection.close()
        self._file.__exit__(kind, error, trace)

    def add_unit(self, key: Key, body: Any) -> bool:
        """Stage a unit; False, and nothing is staged, if there is one of that key already."""
        statement = "INSERT OR IGNORE INTO units (key, body) VALUES (?, ?)"
        return self._connection.execute(statement, (key, json.dumps(body))).rowcount == 1

    def add_annotation(self, annotation_id: Key, unit: Key, body: Any) -> bool:
        """Stage an annotation of the unit of that key, which may come later; False if its id is taken already."""
        statement = "INSERT OR IGNORE INTO annotations (id, unit, body) VALUES (?, ?, ?)"
        return self._connection.execute(statement, (annotation_id, unit, json.dumps(body))).rowcount == 1

    def set_context(self, name: str, value: Any) -> None:
        """Keep a value that JSON can hold and that every unit needs, such as the names of categories."""
        self._connection.execute("INSERT OR REPLACE INTO context VALUES (?, ?)", (name, json.dumps(value)))

    def reject(self, rejection: Rejection) -> None:
        """Count an entry that belongs to no unit."""
        row = (rejection.id, rejection.reason, rejection.detail, rejection.annotations)
        self._connection.execute("INSERT INTO rejections VALUES (?, ?, ?, ?)", row)

    def orphans(self) -> Iterator[tuple[Key, Key]]:
        """Id and unit of every annotation whose unit is not staged."""
        yield from self._connection.execute(
            "SELECT id, unit FROM annotations WHERE unit NOT IN (SELECT key FROM units) ORDER BY place"
        )


class Staging:
    """A finished staging file, read only. It can be pickled into worker processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        """The number of units."""
        (count,) = self._connection.execute("SELECT count(*) FROM units").fetchone()
        return int(count)

    @cached_property
    def context(self) -> Mapping[str, Any]:
        """What `StagingWriter.set_context` kept."""
        return {name: json.loads(value) for name, value in self._connection.execute("SELECT * FROM context")}

    def rejections(self) -> Iterator[Rejection]:
        """Entries that belong to no unit."""
        for row in self._connection.execute("SELECT * FROM rejections ORDER BY rowid"):
            yield Rejection(*row)

    def units(self, places: Iterable[int]) -> Iterator[Unit]:
        """The units at those places, counted from 0, in that order."""
        for place in places:
            row = self._connection.execute("SELECT key, body FROM units WHERE place = ?", (place + 1,)).fetchone()
            if row is None:
                raise IndexError(f"unit {place} of {len(self)}")
            key, body = row
            bodies = self._connection.execute("SELECT body FROM annotations WHERE unit = ? ORDER BY place", (key,))
            yield Unit(key, json.loads(body), tuple(json.loads(text) for (text,) in bodies))

    @cached_property
    def _connection(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
