"""One chunk of a source's units to one shard of records, in any process; finished chunks are recognised.

The units of a source are cut into chunks whose bounds follow from their number alone. What comes out of a chunk
does not depend on the process that reads it or on the chunks before it, so that one process or many, interrupted or
not, write equal bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.records import Rejection
from data_pipelines.sources import SOURCES, open_source
from data_pipelines.sources.reader import SourceOptions
from data_pipelines.staging import Staging
from data_pipelines.tally import Tally, count
from data_pipelines.writing import BrokenRecord, ShardWriter, rejection_line, shard_name
from osprey_tp.files import sha256_of, write_text

CHUNKS = 64
SMALLEST_CHUNK, LARGEST_CHUNK = 256, 16_384
"""Units. Enough chunks for many processes, few enough shards to open them all at once."""


def chunk_bounds(units: int) -> list[tuple[int, int]]:
    """First unit of each chunk, and one past its last."""
    size = min(max(math.ceil(units / CHUNKS), SMALLEST_CHUNK), LARGEST_CHUNK)
    return [(first, min(first + size, units)) for first in range(0, units, size)]


@dataclass(frozen=True)
class Chunk:
    """Units to be read together.

    Attributes:
        number: From 0; the shard has the same.
        places: Places of its units in the staging file, in the order in which they are read.
    """

    number: int
    places: Sequence[int]


@dataclass(frozen=True)
class ChunkResult:
    """What came out of a chunk.

    Attributes:
        number: The chunk's.
        counts_in: How many images and annotations were read.
        counts_out: How many records, regions and turns came out.
        rejections: What was left out, by its reason.
        shard: The shard as the manifest describes it; None if no record came out.
    """

    number: int
    counts_in: dict[str, int]
    counts_out: dict[str, int]
    rejections: Tally
    shard: dict[str, Any] | None


@dataclass(frozen=True)
class ChunkReader:
    """Reads chunks of a source into `records`; notes in `work` what has been finished.

    Attributes:
        source: Name of the source.
        options: What its reader is told.
        staging: The source's units.
        records: Folder of the shards.
        work: Folder of the notes and of the rejections.
    """

    source: str
    options: SourceOptions
    staging: Staging
    records: Path
    work: Path

    def read(
        self, chunk: Chunk, limit: int | None = None, tick: Callable[[int], object] = lambda units: None
    ) -> ChunkResult:
        """Read the chunk, at most to its `limit`-th record; `tick` is told how many units have been read."""
        reader = open_source(self.source, self.options)
        reader.context = self.staging.context
        shard = ShardWriter(self.records / shard_name(chunk.number), SOURCES[self.source].purpose)
        counts_in = {"images": 0, "annotations": 0}
        rejections: Tally = {}
        with self.rejections_path(chunk.number).open("w", encoding="utf-8") as lines:

            def reject(rejection: Rejection) -> None:
                lines.write(rejection_line(rejection))
                count(rejections, rejection.reason, rejection.id, annotations=rejection.annotations)

            for unit in self.staging.units(chunk.places):
                counts_in["images"] += 1
                counts_in["annotations"] += reader.annotation_count(unit)
                for item in reader.read(unit):
                    if isinstance(item, Rejection):
                        reject(item)
                        continue
                    try:
                        shard.add(item)
                    except BrokenRecord as error:
                        reject(error.rejection(item))
                    if shard.counts["records"] == limit:
                        break
                tick(1)
                if shard.counts["records"] == limit:
                    break
        result = ChunkResult(chunk.number, counts_in, dict(shard.counts), rejections, shard.close())
        self._note(result)
        return result

    def finished_or_read(self, chunk: Chunk) -> ChunkResult:
        """The result of a chunk that was finished before, otherwise that of reading it."""
        return self.finished(chunk.number) or self.read(chunk)

    def finished(self, number: int) -> ChunkResult | None:
        """The result of a chunk that was finished before, None if it was not or its shard is not as it was left."""
        try:
            result = ChunkResult(**json.loads(self._note_path(number).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        path = self.records / shard_name(number)
        if result.shard is not None and not (path.is_file() and sha256_of(path) == result.shard["sha256"]):
            return None
        return result if self.rejections_path(number).is_file() else None

    def rejections_path(self, number: int) -> Path:
        """The chunk's lines of `rejections.jsonl`."""
        return self.work / f"rejections-{number:05d}.jsonl"

    def _note_path(self, number: int) -> Path:
        return self.work / f"chunk-{number:05d}.json"

    def _note(self, result: ChunkResult) -> None:
        write_text(self._note_path(result.number), json.dumps(vars(result)))
