"""From published files to a folder of records.

```
annotation files ─► staging, once: .out.partial/work/staging.sqlite
    ─► units, chosen and ordered by sample, seed and shard ─► chunks
    ─► worker processes ─► .out.partial/records/records-00000.arrow, ...
    ─► manifest.json ─► renamed to out
```

A run that was interrupted leaves `.out.partial`; the same command goes on from there. Whatever the number of
processes and interruptions, the records come out byte for byte the same.
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.chunks import Chunk, ChunkReader, ChunkResult, chunk_bounds
from data_pipelines.records import FOLDER_FORMAT, REJECTIONS_NAME
from data_pipelines.sources import SOURCES, open_source
from data_pipelines.sources.reader import SourceOptions, SourceReader
from data_pipelines.staging import Staging, StagingWriter
from data_pipelines.tally import Tally, count, lines_of, merge
from data_pipelines.workers import ProcessEnded, map_in_order
from data_pipelines.writing import (
    categories_of,
    new_manifest,
    nothing_usable,
    refuse_taken,
    rejection_line,
    relative_root,
    take_name,
    write_manifest,
)
from osprey_tp.files import aside_of


@dataclass(frozen=True)
class Selection:
    """Which records of a source are taken.

    Attributes:
        limit: At most so many, from the first on.
        sample: So many drawn at random from all of the source; in the order drawn.
        seed: Of the draw.
        shard: (i, n): the i-th of n parts, counted from 1, for n machines; together they are the whole.
    """

    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    shard: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, value in (("limit", self.limit), ("sample", self.sample)):
            if value is not None and value < 1:
                raise ValueError(f"the {name} is {value}; it must be at least 1")
        if self.limit is not None and self.sample is not None:
            raise ValueError("limit and sample both say how many records are taken; give one of them")
        if self.shard is not None and not 1 <= self.shard[0] <= self.shard[1]:
            raise ValueError(f"the shard is {self.shard[0]}/{self.shard[1]}; write I/N with I from 1 to N")
        if self.shard is not None and self.records is not None:
            raise ValueError("a limit or a sample cannot be spread over shards; prepare it in one piece")

    @property
    def records(self) -> int | None:
        """The most records that are taken."""
        return self.limit if self.sample is None else self.sample

    def chunks(self, units: int) -> list[Chunk]:
        """The chunks of a source with so many units that have to be read, in their order."""
        places: Sequence[int] = range(units)
        if self.sample is not None:
            places = random.Random(self.seed).sample(places, units)
        bounds = chunk_bounds(units)
        first, last = 0, len(bounds)
        if self.shard is not None:
            part, parts = self.shard
            first, last = (part - 1) * len(bounds) // parts, part * len(bounds) // parts
        return [Chunk(number, places[slice(*bounds[number])]) for number in range(first, last)]


def prepare(
    source: str,
    annotations: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    include_crowd: bool = False,
    split: str | None = None,
    inputs: Mapping[str, str | Path] | None = None,
    segmenter: str | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    shard: tuple[int, int] | None = None,
    processes: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Read a source and write its records to the folder `out`.

    Args:
        source: A name of `data_pipelines.sources.SOURCES`.
        annotations: The annotation file, or the folder of annotation files.
        images: The folder that the paths of pictures are relative to.
        out: The folder to write; it appears when it is complete.
        include_crowd: Keep regions that stand for a crowd of things.
        split: The part of a source that holds several parts in one file.
        inputs: Further files of the source by name, where they are not at their usual places.
        segmenter: `NAME[:CHECKPOINT]` of a segmenter that makes masks from boxes.
        limit: Take the first so many records.
        sample: Take so many records at random.
        seed: Of the random choice.
        shard: (i, n): prepare the i-th of n parts, counted from 1, to be joined by `data_pipelines.merging`.
        processes: How many processes read; the result does not depend on it.
        overwrite: Replace a folder of records that is there already.
        progress: Show a progress bar on stderr.

    Returns:
        The manifest: counts in and out, rejections by reason, checksums.

    Raises:
        ValueError: in one line, for wrong arguments, a file of another format, or if no record comes out.
    """
    selection = Selection(limit, sample, seed, shard)
    if processes < 1:
        raise ValueError(f"the number of processes is {processes}; it must be at least 1")
    out = Path(out).absolute()
    refuse_taken(out, overwrite)
    further = {name: Path(path) for name, path in (inputs or {}).items()}
    options = SourceOptions(Path(annotations), Path(images), include_crowd, split, further, segmenter)
    job = _Job(source, options, selection, out, overwrite, processes, progress)
    try:
        return job.run()
    except ValueError:
        if not any(job.records.glob("*.arrow")):
            shutil.rmtree(job.aside, ignore_errors=True)
        raise


@dataclass(frozen=True)
class _Job:
    source: str
    options: SourceOptions
    selection: Selection
    out: Path
    overwrite: bool
    processes: int
    progress: bool

    @property
    def aside(self) -> Path:
        return aside_of(self.out)

    @property
    def work(self) -> Path:
        return self.aside / "work"

    @property
    def records(self) -> Path:
        return self.aside / "records"

    @property
    def arguments(self) -> dict[str, Any]:
        """What decides the result, as it stands in the manifest."""
        options, selection = self.options, self.selection
        return {
            "annotations": str(options.annotations),
            "images": str(options.images),
            "include_crowd": options.include_crowd,
            "split": options.split,
            "inputs": {name: str(path) for name, path in options.inputs.items()},
            "segmenter": options.segmenter,
            "limit": selection.limit,
            "sample": selection.sample,
            "seed": selection.seed if selection.sample is not None else None,
            "shard": None if selection.shard is None else "{}/{}".format(*selection.shard),
        }

    def run(self) -> dict[str, Any]:
        reader = open_source(self.source, self.options)
        self._begin(reader)
        chunks = ChunkReader(self.source, self.options, self._stage(reader), self.records, self.work)
        results = self._read(chunks)
        manifest = self._assemble(reader, chunks, results)
        take_name(self.records, self.out, self.overwrite)
        shutil.rmtree(self.aside)
        return manifest

    def _begin(self, reader: SourceReader) -> None:
        """Make the folder aside, or keep that of an interrupted run with the same arguments and files."""
        files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in _present(reader)]
        text = json.dumps({"format": FOLDER_FORMAT, "source": self.source, "files": files, **self.arguments})
        identity = self.work / "job.json"
        if identity.is_file() and identity.read_text(encoding="utf-8") == text:
            return
        shutil.rmtree(self.aside, ignore_errors=True)
        self.work.mkdir(parents=True)
        self.records.mkdir()
        identity.write_text(text, encoding="utf-8")

    def _stage(self, reader: SourceReader) -> Staging:
        path = self.work / "staging.sqlite"
        try:
            if not path.is_file():
                with StagingWriter(path) as writer:
                    reader.stage(writer)
        except sqlite3.Error as error:
            raise OSError(f"{path} cannot be written: {error}; is the disk full?") from error
        return Staging(path)

    def _read(self, chunks: ChunkReader) -> list[ChunkResult]:
        from tqdm import tqdm

        todo = self.selection.chunks(len(chunks.staging))
        units = sum(len(chunk.places) for chunk in todo)
        with tqdm(total=units, desc=f"reading {self.source}", unit="unit", disable=not self.progress) as bar:
            if self.processes == 1 or len(todo) == 1:
                return self._taken(chunks, todo, _one_by_one(chunks, todo, bar.update))
            try:
                return self._taken(chunks, todo, self._by_several(chunks, todo, bar.update))
            except ProcessEnded:
                raise OSError(
                    "a reading process ended before its time, perhaps for lack of memory; what is finished is "
                    f"kept: run the same command again, with fewer than {self.processes} processes"
                ) from None

    def _by_several(
        self, chunks: ChunkReader, todo: Sequence[Chunk], tick: Callable[[int], object]
    ) -> Iterator[ChunkResult]:
        results = map_in_order(chunks.finished_or_read, todo, min(self.processes, len(todo)))
        with closing(results):
            for chunk, result in zip(todo, results, strict=True):
                yield result
                tick(len(chunk.places))

    def _taken(self, chunks: ChunkReader, todo: Sequence[Chunk], results: Iterator[ChunkResult]) -> list[ChunkResult]:
        """The results up to the last record that is wanted; the chunk that holds it is read again as far as there."""
        taken: list[ChunkResult] = []
        missing = self.selection.records
        for chunk, result in zip(todo, results, strict=False):
            if missing is not None and result.counts_out["records"] > missing:
                result = chunks.read(chunk, limit=missing)
            taken.append(result)
            if missing is not None:
                missing -= result.counts_out["records"]
                if not missing:
                    break
        return taken

    def _assemble(self, reader: SourceReader, chunks: ChunkReader, results: Sequence[ChunkResult]) -> dict[str, Any]:
        """Join what the chunks left, and remove what was read beyond the last record that is wanted."""
        counts_in = {"images": 0, "annotations": 0}
        counts_out = {"records": 0, "regions": 0, "turns": 0}
        rejections: Tally = {}
        with (self.records / REJECTIONS_NAME).open("w", encoding="utf-8") as lines:
            for rejection in chunks.staging.rejections() if self._counts_staged else ():
                lines.write(rejection_line(rejection))
                count(rejections, rejection.reason, rejection.id, annotations=rejection.annotations)
                counts_in["annotations"] += rejection.annotations
            for result in results:
                lines.write(chunks.rejections_path(result.number).read_text(encoding="utf-8"))
                merge(rejections, result.rejections)
                for total, part in ((counts_in, result.counts_in), (counts_out, result.counts_out)):
                    for name, value in part.items():
                        total[name] += value
        shards = [result.shard for result in results if result.shard is not None]
        if not shards and self.selection.shard is None:
            raise nothing_usable(self.source, rejections)
        _keep_only(self.records, {shard["name"] for shard in shards} | {REJECTIONS_NAME})
        manifest = new_manifest(
            source=self.source,
            purpose=SOURCES[self.source].purpose,
            arguments=self.arguments,
            image_root=relative_root(self.options.images.resolve(), self.out),
            counts={"in": counts_in, "out": counts_out},
            rejections=rejections,
            inputs=_present(reader),
            categories=categories_of(chunks.staging.context),
            shards=shards,
        )
        write_manifest(self.records, manifest)
        return manifest

    @property
    def _counts_staged(self) -> bool:
        """Whether entries that belong to no unit are this run's to count: of several shards, the first one's."""
        return self.selection.shard is None or self.selection.shard[0] == 1


def _present(reader: SourceReader) -> list[Path]:
    """The reader's files, all of them there.

    Raises:
        ValueError: naming one that is missing.
    """
    files = reader.input_files()
    for path in files:
        if not path.exists():
            raise ValueError(f"annotation file {path} does not exist")
    return [path for path in files if path.is_file()]


def _one_by_one(chunks: ChunkReader, todo: Sequence[Chunk], tick: Callable[[int], object]) -> Iterator[ChunkResult]:
    for chunk in todo:
        finished = chunks.finished(chunk.number)
        if finished is not None:
            tick(len(chunk.places))
        yield finished or chunks.read(chunk, tick=tick)


def _keep_only(folder: Path, names: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()


def summary_of(manifest: Mapping[str, Any]) -> str:
    """What came in, what came out, and what was left out or changed and why, for people."""
    into, out = manifest["counts"]["in"], manifest["counts"]["out"]
    lines = [
        f"{manifest['source']}: {into['images']} images and {into['annotations']} annotations in; "
        f"{out['records']} records with {out['regions']} regions and {out['turns']} turns out"
    ]
    if manifest["rejections"]:
        lines += ["left out or changed:", *(f"  {line}" for line in lines_of(manifest["rejections"]))]
    return "\n".join(lines)
