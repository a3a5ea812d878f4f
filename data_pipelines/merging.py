"""Shards that several machines prepared, joined into the folder that one machine would have written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.records import REJECTIONS_NAME, read_manifest
from data_pipelines.tally import Tally, merge
from data_pipelines.writing import refuse_taken, relative_root, write_manifest
from osprey_tp.files import folder_aside, sha256_of

_EQUAL = ("source", "purpose", "inputs")


def merge_shards(folders: Sequence[str | Path], out: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Join the folders of one `prepare --shard I/N`, given in any order, and return the manifest.

    Raises:
        ValueError: naming the folder, if a part is missing or stands twice, if the folders are not parts of one
            preparation, or if a file differs from its checksum.
    """
    out = Path(out).absolute()
    refuse_taken(out, overwrite)
    parts = _in_order([Path(folder) for folder in folders])
    manifests = [manifest for _, manifest in parts]
    joined = {
        **manifests[0],
        "arguments": {**manifests[0]["arguments"], "shard": None},
        "image_root": relative_root((parts[0][0] / manifests[0]["image_root"]).resolve(), out),
        "counts": _sum([manifest["counts"] for manifest in manifests]),
        "rejections": dict(sorted(_tally(manifests).items())),
        "shards": [shard for manifest in manifests for shard in manifest["shards"]],
    }
    if not joined["shards"]:
        raise ValueError(f"no part of source {joined['source']} holds a record")
    with folder_aside(out, replace=overwrite) as aside:
        for folder, manifest in parts:
            for shard in manifest["shards"]:
                _copy(folder / shard["name"], aside / shard["name"], shard["sha256"])
        with (aside / REJECTIONS_NAME).open("wb") as lines:
            for folder, _ in parts:
                lines.write((folder / REJECTIONS_NAME).read_bytes())
        write_manifest(aside, joined)
        refuse_taken(out, overwrite)
    return joined


def _in_order(folders: Sequence[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """The folders with their manifests, from the first part to the last."""
    found: dict[int, tuple[Path, dict[str, Any]]] = {}
    parts = 0
    first: dict[str, Any] | None = None
    for folder in folders:
        manifest = read_manifest(folder)
        shard = manifest["arguments"].get("shard")
        if shard is None:
            raise ValueError(f"{folder} is not a part of a source: it was prepared without --shard")
        number, parts = (int(text) for text in shard.split("/"))
        first = first or manifest
        differing = _difference(first, manifest)
        if differing:
            raise ValueError(f"{folder} and {folders[0]} are not parts of one preparation: they differ in {differing}")
        if number in found:
            raise ValueError(f"{folder} and {found[number][0]} are both the part {shard}")
        found[number] = folder, manifest
    missing = [f"{number}/{parts}" for number in range(1, parts + 1) if number not in found]
    if missing:
        raise ValueError(f"parts are missing: {', '.join(missing)}; prepare them with --shard")
    return [found[number] for number in sorted(found)]


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """What tells that two manifests are not of one preparation; files may lie elsewhere on another machine."""
    for name in _EQUAL:
        if one[name] != other[name]:
            return name
    places = ("annotations", "images", "inputs", "shard")
    for name, value in one["arguments"].items():
        if name not in places and other["arguments"].get(name) != value:
            return f"the argument {name}"
    count, other_count = (manifest["arguments"]["shard"].split("/")[1] for manifest in (one, other))
    return None if count == other_count else "the number of parts"


def _sum(counts: Sequence[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    return {way: {name: sum(count[way][name] for count in counts) for name in counts[0][way]} for way in counts[0]}


def _tally(manifests: Sequence[Mapping[str, Any]]) -> Tally:
    tally: Tally = {}
    for manifest in manifests:
        merge(tally, manifest["rejections"])
    return tally


def _copy(source: Path, target: Path, sha256: str) -> None:
    """Hard-link, or copy where the file systems differ."""
    if not source.is_file():
        raise ValueError(f"{source} is missing; prepare this part again")
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    if sha256_of(target) != sha256:
        raise ValueError(f"{source} differs from its checksum; prepare this part again")
