"""Writing a folder of records: aside first, then renamed, so that a half-written folder never has the final name."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from data_pipelines.records import (
    FOLDER_FORMAT,
    MANIFEST_NAME,
    REJECTIONS_NAME,
    Problem,
    Purpose,
    RegionRecord,
    Rejection,
    arrow_features,
    record_problems,
    record_to_row,
)
from data_pipelines.tally import Tally, count
from osprey_tp.files import folder_aside, name_folder, sha256_of
from osprey_tp.outside import of_record

if TYPE_CHECKING:
    from datasets.arrow_writer import ArrowWriter


class BrokenRecord(ValueError):
    """A record that would break training; `problem` is the first thing that is wrong with it."""

    def __init__(self, record: RegionRecord, problem: Problem) -> None:
        super().__init__(f"{problem.reason}: {problem.detail} {of_record(record.id)}")
        self.problem = problem

    def rejection(self, record: RegionRecord) -> Rejection:
        """The record as something that is left out, with all its regions."""
        lost = max(1, len(record.regions))
        return Rejection(record.id, self.problem.reason, self.problem.detail, annotations=lost)


class ShardWriter:
    """Writes one shard, an Arrow file of records. The file exists only if there is a record to put into it.

    Attributes:
        path: The file.
        counts: Records, regions and turns so far.
    """

    def __init__(self, path: Path, purpose: Purpose = "training") -> None:
        self.path = path
        self.counts = {"records": 0, "regions": 0, "turns": 0}
        self._purpose = purpose
        self._writer: ArrowWriter | None = None

    def add(self, record: RegionRecord) -> None:
        """Write one record.

        Raises:
            BrokenRecord: if it would break its purpose (`record_problems`).
        """
        problems = record_problems(record, self._purpose)
        if problems:
            raise BrokenRecord(record, problems[0])
        if self._writer is None:
            from datasets.arrow_writer import ArrowWriter

            self._writer = ArrowWriter(features=arrow_features(), path=str(self.path), writer_batch_size=500)
        self._writer.write(record_to_row(record))
        self.counts["records"] += 1
        self.counts["regions"] += len(record.regions)
        self.counts["turns"] += len(record.turns)

    def close(self) -> dict[str, Any] | None:
        """Finish the file and describe it as the manifest does; None if nothing was added."""
        if self._writer is None:
            return None
        self._writer.finalize()
        self._writer = None
        return {
            "name": self.path.name,
            "records": self.counts["records"],
            "bytes": self.path.stat().st_size,
            "sha256": sha256_of(self.path),
        }


class RecordWriter:
    """Writes the folder `out` from one process; use it as a context manager.

    Nothing appears under that name until everything is written, and nothing is left behind if an exception is raised
    inside the `with` block. A folder that is there already is replaced only if `overwrite` is set, and only at the end.

    Example:
        >>> with RecordWriter("records/coco", source="coco", image_root="coco/val2017") as writer:
        ...     writer.add(record)
        ...     writer.reject(Rejection("coco:1#7", "crowd region"))
    """

    def __init__(
        self,
        out: str | Path,
        *,
        source: str,
        image_root: str | Path,
        purpose: Purpose = "training",
        arguments: Mapping[str, Any] | None = None,
        inputs: Sequence[str | Path] = (),
        records_per_shard: int = 50_000,
        overwrite: bool = False,
    ) -> None:
        self.out = Path(out).absolute()
        self.source = source
        self.image_root = Path(image_root).resolve()
        self.purpose: Purpose = purpose
        self.arguments = dict(arguments or {})
        self.inputs = [Path(path) for path in inputs]
        self.records_per_shard = records_per_shard
        self.overwrite = overwrite
        self.counts = {"records": 0, "regions": 0, "turns": 0}
        self.counts_in: dict[str, int] = {}
        self.rejections: Tally = {}
        self._folder: AbstractContextManager[Path] = folder_aside(self.out, replace=overwrite)
        self._aside = self.out
        self._shards: list[dict[str, Any]] = []
        self._shard: ShardWriter | None = None
        self._rejections_file: TextIO | None = None

    def __enter__(self) -> RecordWriter:
        refuse_taken(self.out, self.overwrite)
        self._aside = self._folder.__enter__()
        self._rejections_file = (self._aside / REJECTIONS_NAME).open("w", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close_shard()
            if self._rejections_file is not None:
                self._rejections_file.close()
            if kind is None:
                self._complete()
        except BaseException:
            self._folder.__exit__(*sys.exc_info())
            raise
        self._folder.__exit__(kind, error, trace)

    def add(self, record: RegionRecord) -> None:
        """Write one record.

        Raises:
            BrokenRecord: if it would break its purpose (`record_problems`).
        """
        if self._shard is None:
            self._shard = ShardWriter(self._aside / shard_name(len(self._shards)), self.purpose)
        self._shard.add(record)
        if self._shard.counts["records"] == self.records_per_shard:
            self._close_shard()
        self.counts["records"] += 1
        self.counts["regions"] += len(record.regions)
        self.counts["turns"] += len(record.turns)

    def reject(self, rejection: Rejection) -> None:
        """Count something that was left out, and write it down with its id and reason.

        The manifest names the first ids of every reason, `rejections.jsonl` all of them.
        """
        assert self._rejections_file is not None
        self._rejections_file.write(rejection_line(rejection))
        count(self.rejections, rejection.reason, rejection.id, annotations=rejection.annotations)

    def _close_shard(self) -> None:
        shard = self._shard.close() if self._shard is not None else None
        self._shard = None
        if shard is not None:
            self._shards.append(shard)

    def _complete(self) -> None:
        if not self._shards:
            raise nothing_usable(self.source, self.rejections)
        manifest = new_manifest(
            source=self.source,
            purpose=self.purpose,
            arguments=self.arguments,
            image_root=relative_root(self.image_root, self.out),
            counts={"in": self.counts_in, "out": self.counts},
            rejections=self.rejections,
            inputs=self.inputs,
            shards=self._shards,
        )
        write_manifest(self._aside, manifest)
        refuse_taken(self.out, self.overwrite)


def shard_name(number: int) -> str:
    """The file name of a shard, counted from 0."""
    return f"records-{number:05d}.arrow"


def rejection_line(rejection: Rejection) -> str:
    """A rejection as a line of `rejections.jsonl`."""
    line = {"id": rejection.id, "reason": rejection.reason, "detail": rejection.detail}
    return json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8") + "\n"


def nothing_usable(source: str, rejections: Tally) -> ValueError:
    """The error that nothing came out, with the reasons."""
    found = ", ".join(f"{reason} ({entry['count']})" for reason, entry in rejections.items())
    return ValueError(f"no usable record came out of source {source}: {found or 'the input is empty'}")


def new_manifest(
    *,
    source: str,
    purpose: Purpose,
    arguments: Mapping[str, Any],
    image_root: str,
    counts: Mapping[str, Mapping[str, int]],
    rejections: Tally,
    inputs: Sequence[Path],
    shards: Sequence[Mapping[str, Any]],
    categories: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The manifest of a folder, with the checksums of its inputs and the versions that made it.

    `categories` are those of the source, those that no region has among them; without any, the key is left out.
    """
    return {
        "format": FOLDER_FORMAT,
        "source": source,
        "purpose": purpose,
        "arguments": dict(arguments),
        "image_root": image_root,
        "counts": counts,
        **({"categories": list(categories)} if categories else {}),
        "rejections": dict(sorted(rejections.items())),
        "inputs": [{"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in inputs],
        "shards": list(shards),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("datasets", "pycocotools", "numpy")},
        },
    }


def categories_of(context: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a manifest says of the categories that a source staged: `id`, `name` and, where it is said, `isthing`."""
    kept = ("id", "name", "isthing")
    return [
        {name: entry[name] for name in kept if isinstance(entry.get(name), int | str)}
        for entry in context.get("categories", ())
        if isinstance(entry, dict) and isinstance(entry.get("name"), str)
    ]


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write `manifest.json` into a folder."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (folder / MANIFEST_NAME).write_bytes((text + "\n").encode("utf-8", "backslashreplace"))


def take_name(aside: Path, out: Path, overwrite: bool) -> None:
    """Rename a finished folder to its name; a folder of records there is replaced if `overwrite` is set.

    Raises:
        ValueError: if the name is taken.
    """
    refuse_taken(out, overwrite)
    name_folder(aside, out, replace=overwrite)


def refuse_taken(out: Path, overwrite: bool) -> None:
    """Raise unless the folder `out` may be written: absent, empty, or a folder of records that may be replaced.

    Raises:
        ValueError: naming the remedy.
    """
    if not out.exists():
        return
    if out.is_dir() and not any(out.iterdir()):
        return
    if not out.is_dir() or not (out / MANIFEST_NAME).is_file():
        raise ValueError(f"{out} exists and is not a folder of records; name another folder")
    if not overwrite:
        raise ValueError(f"{out} exists already; name another folder, or replace it with --overwrite")


def relative_root(image_root: Path, folder: Path) -> str:
    """`image_root` relative to `folder`, so that both can move together; absolute if they share no folder but `/`."""
    folder = folder.resolve()
    try:
        common = Path(os.path.commonpath([image_root, folder]))
    except ValueError:
        return str(image_root)
    if common == Path(common.anchor):
        return str(image_root)
    return Path(os.path.relpath(image_root, folder)).as_posix()
