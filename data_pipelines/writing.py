"""Writing a folder of records: aside first, then renamed, so that a half-written folder never has the final name."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from data_pipelines.records import (
    FOLDER_FORMAT,
    MANIFEST_NAME,
    REJECTIONS_NAME,
    Problem,
    RegionRecord,
    Rejection,
    arrow_features,
    record_problems,
    record_to_row,
)
from data_pipelines.tally import Tally, count

if TYPE_CHECKING:
    from datasets.arrow_writer import ArrowWriter


class BrokenRecord(ValueError):
    """A record that would break training; `problem` is the first thing that is wrong with it."""

    def __init__(self, record: RegionRecord, problem: Problem) -> None:
        super().__init__(f"{problem.reason}: {problem.detail} (record {record.id})")
        self.problem = problem


class RecordWriter:
    """Writes the folder `out`; use it as a context manager.

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
        arguments: Mapping[str, Any] | None = None,
        inputs: Sequence[str | Path] = (),
        records_per_shard: int = 50_000,
        overwrite: bool = False,
    ) -> None:
        self.out = Path(out).absolute()
        self.source = source
        self.image_root = Path(image_root).resolve()
        self.arguments = dict(arguments or {})
        self.inputs = [Path(path) for path in inputs]
        self.records_per_shard = records_per_shard
        self.overwrite = overwrite
        self.counts = {"records": 0, "regions": 0, "turns": 0}
        self.counts_in: dict[str, int] = {}
        self.rejections: Tally = {}
        self._aside = self.out.with_name(f".{self.out.name}.partial")
        self._shards: list[dict[str, Any]] = []
        self._shard: ArrowWriter | None = None
        self._shard_records = 0
        self._rejections_file: TextIO | None = None

    def __enter__(self) -> RecordWriter:
        refuse_taken(self.out, self.overwrite)
        shutil.rmtree(self._aside, ignore_errors=True)
        self._aside.mkdir(parents=True)
        self._rejections_file = (self._aside / REJECTIONS_NAME).open("w", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close_files()
            if kind is None:
                self._write_manifest()
                self._take_name()
        finally:
            shutil.rmtree(self._aside, ignore_errors=True)

    def add(self, record: RegionRecord) -> None:
        """Write one record.

        Raises:
            BrokenRecord: if it would break training (`record_problems`).
        """
        problems = record_problems(record)
        if problems:
            raise BrokenRecord(record, problems[0])
        if self._shard is None:
            self._open_shard()
        assert self._shard is not None
        self._shard.write(record_to_row(record))
        self._shard_records += 1
        self.counts["records"] += 1
        self.counts["regions"] += len(record.regions)
        self.counts["turns"] += len(record.turns)
        if self._shard_records == self.records_per_shard:
            self._close_shard()

    def reject(self, rejection: Rejection) -> None:
        """Count something that was left out, and write it down with its id and reason.

        The manifest names the first ids of every reason, `rejections.jsonl` all of them.
        """
        assert self._rejections_file is not None
        line = {"id": rejection.id, "reason": rejection.reason, "detail": rejection.detail}
        self._rejections_file.write(json.dumps(line, ensure_ascii=False) + "\n")
        count(self.rejections, rejection.reason, rejection.id, annotations=rejection.annotations)

    def _open_shard(self) -> None:
        from datasets.arrow_writer import ArrowWriter

        name = f"records-{len(self._shards):05d}.arrow"
        self._shard = ArrowWriter(features=arrow_features(), path=str(self._aside / name), writer_batch_size=500)
        self._shards.append({"name": name})
        self._shard_records = 0

    def _close_shard(self) -> None:
        if self._shard is None:
            return
        self._shard.finalize()
        self._shard = None
        shard = self._shards[-1]
        path = self._aside / shard["name"]
        shard.update(records=self._shard_records, bytes=path.stat().st_size, sha256=sha256_of(path))

    def _close_files(self) -> None:
        self._close_shard()
        if self._rejections_file is not None:
            self._rejections_file.close()

    def _write_manifest(self) -> None:
        if not self.counts["records"]:
            found = ", ".join(f"{reason} ({entry['count']})" for reason, entry in self.rejections.items())
            raise ValueError(f"no usable record came out of source {self.source}: {found or 'the input is empty'}")
        manifest = {
            "format": FOLDER_FORMAT,
            "source": self.source,
            "arguments": self.arguments,
            "image_root": relative_root(self.image_root, self.out),
            "counts": {"in": self.counts_in, "out": self.counts},
            "rejections": dict(sorted(self.rejections.items())),
            "inputs": [
                {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in self.inputs
            ],
            "shards": self._shards,
            "versions": {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in ("datasets", "pycocotools", "numpy")},
            },
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False)
        (self._aside / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")

    def _take_name(self) -> None:
        refuse_taken(self.out, self.overwrite)
        if not self.out.exists():
            self._aside.rename(self.out)
            return
        replaced = self.out.with_name(f".{self.out.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        self.out.rename(replaced)
        try:
            self._aside.rename(self.out)
        except OSError:
            replaced.rename(self.out)
            raise
        shutil.rmtree(replaced)


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


def sha256_of(path: Path) -> str:
    """Checksum of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
