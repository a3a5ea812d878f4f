"""From published files to a folder of records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipelines.records import RegionRecord, Rejection, read_manifest
from data_pipelines.sources import open_source
from data_pipelines.sources.reader import SourceOptions
from data_pipelines.tally import lines_of
from data_pipelines.writing import BrokenRecord, RecordWriter, refuse_taken


def prepare(
    source: str,
    annotations: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    include_crowd: bool = False,
    limit: int | None = None,
    seed: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Read a source and write its records to the folder `out`.

    Args:
        source: A name of `data_pipelines.sources.SOURCES`.
        annotations: The annotation file.
        images: The folder that the paths of pictures are relative to.
        out: The folder to write; it appears when it is complete.
        include_crowd: Keep regions that stand for a crowd of things.
        limit: Stop after this many records.
        seed: Read the pictures in an order drawn with this seed, so that `limit` takes a random part.
        overwrite: Replace a folder of records that is there already.
        progress: Show a progress bar on stderr.

    Returns:
        The manifest: counts in and out, rejections by reason, checksums.

    Raises:
        ValueError: in one line, for wrong arguments, a file of another format, or if no record comes out.
    """
    from tqdm import tqdm

    if limit is not None and limit < 1:
        raise ValueError(f"the limit is {limit}; it must be at least 1")
    refuse_taken(Path(out), overwrite)
    reader = open_source(source, SourceOptions(Path(annotations), Path(images), include_crowd, seed))
    arguments = {
        "annotations": str(annotations),
        "images": str(images),
        "include_crowd": include_crowd,
        "limit": limit,
        "seed": seed,
    }
    with (
        RecordWriter(
            out, source=source, image_root=images, arguments=arguments, inputs=[annotations], overwrite=overwrite
        ) as writer,
        tqdm(total=reader.total, desc=f"reading {source}", unit="image", disable=not progress) as bar,
    ):
        for item in reader.read():
            bar.update(reader.counts_in["images"] - bar.n)
            if isinstance(item, Rejection):
                writer.reject(item)
            else:
                _add_or_reject(writer, item)
            if writer.counts["records"] == limit:
                break
        bar.update(reader.counts_in["images"] - bar.n)
        writer.counts_in = dict(reader.counts_in)
    return read_manifest(Path(out))


def _add_or_reject(writer: RecordWriter, record: RegionRecord) -> None:
    try:
        writer.add(record)
    except BrokenRecord as error:
        lost = max(1, len(record.regions))
        writer.reject(Rejection(record.id, error.problem.reason, error.problem.detail, annotations=lost))


def summary_of(manifest: dict[str, Any]) -> str:
    """What came in, what came out, and what was left out and why, for people."""
    into, out = manifest["counts"]["in"], manifest["counts"]["out"]
    lines = [
        f"{manifest['source']}: {into['images']} images and {into['annotations']} annotations in; "
        f"{out['records']} records with {out['regions']} regions and {out['turns']} turns out"
    ]
    lines += [f"  left out: {line}" for line in lines_of(manifest["rejections"])]
    return "\n".join(lines)
