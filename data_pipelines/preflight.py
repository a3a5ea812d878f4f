"""What is known before the first step: shards are as they were written, and pictures are there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipelines.dataset import ConversationDataset
from data_pipelines.records import RecordFolder
from osprey_tp.files import sha256_of
from osprey_tp.training.samples import UnusableSample

FEW_PICTURES = 1000
"""From so many pictures on, a folder is listed in place of asking for each of them."""

SAMPLES_TO_LOOK_AT = 2000
"""So many samples are looked through for one that tells most."""


def check_data(dataset: ConversationDataset, *, stop_at_missing_images: bool = True) -> list[str]:
    """Compare every shard with its checksum and look for every picture, without opening one.

    Args:
        dataset: What a run trains on.
        stop_at_missing_images: Whether a missing picture is an error.

    Returns:
        What somebody should know.

    Raises:
        ValueError: in one line, naming the first shard or pictures and the remedy.
    """
    warnings = []
    for folder in dataset.folders:
        check_shards(folder)
        missing = missing_images(folder)
        if not missing:
            continue
        found = f"{len(missing)} pictures of {folder.path} are missing in {folder.image_root}, among them {missing[0]}"
        if stop_at_missing_images:
            raise ValueError(
                f"{found}; restore them, name their folder (`images` of the mixture), or set on_missing_image=skip"
            )
        warnings.append(f"{found}; their samples will be skipped")
    return warnings


def check_shards(folder: RecordFolder) -> None:
    """Read every shard once.

    Raises:
        ValueError: naming the first one that is not as it was written.
    """
    for shard in folder.manifest["shards"]:
        file = folder.path / shard["name"]
        size = file.stat().st_size
        if size != shard["bytes"]:
            raise ValueError(f"{file} has {size} bytes, the manifest says {shard['bytes']}; {_DAMAGED}")
        if sha256_of(file) != shard["sha256"]:
            raise ValueError(f"{file} differs from its checksum in the manifest; {_DAMAGED}")


_DAMAGED = "it was damaged or changed after it was written: copy the folder again, or prepare it again"


def missing_images(folder: RecordFolder) -> list[str]:
    """The pictures that records name and that are not there, each once, in order."""
    by_parent: dict[str, list[str]] = {}
    for image in folder.images():
        path = PurePosixPath(image.replace("\\", "/"))
        by_parent.setdefault(str(path.parent), []).append(image)
    return [
        image for parent in sorted(by_parent) for image in _missing_in(folder.image_root / parent, by_parent[parent])
    ]


def _missing_in(parent: Path, images: list[str]) -> Iterator[str]:
    present = None
    if len(images) >= FEW_PICTURES:
        present = {entry.name for entry in os.scandir(parent)} if parent.is_dir() else set()
    for image in sorted(images):
        name = PurePosixPath(image.replace("\\", "/")).name
        if not ((parent / name).exists() if present is None else name in present):
            yield image


def first_telling_sample(
    dataset: ConversationDataset, *, with_regions: bool, skip_missing_images: bool = False
) -> dict[str, Any]:
    """The first sample of the first epoch, or, if wanted, the first one of its beginning that has regions.

    Args:
        dataset: What a run trains on.
        with_regions: Prefer a sample with regions.
        skip_missing_images: Pass by samples whose pictures cannot be opened.

    Raises:
        ValueError: if the sample cannot be made.
    """
    places = range(min(len(dataset), SAMPLES_TO_LOOK_AT))
    with_region = (place for place in places if dataset.record((0, place))[1].regions) if with_regions else iter(())
    for place in (*islice(with_region, 1), *places):
        try:
            return dataset[0, place]
        except UnusableSample as error:
            if not (error.missing_image and skip_missing_images):
                raise
    raise ValueError(f"none of the first {len(places)} samples can be used: their pictures are missing")
