"""Samples of alike length in one batch: lengths, measured once and kept beside the records, and their order."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipelines.lengths import Wording, sample_length
from data_pipelines.records import RecordFolder
from data_pipelines.workers import map_in_order
from osprey_tp.files import file_aside

if TYPE_CHECKING:
    from osprey_tp.processing import OspreyTPProcessor

FOLDER_NAME = "lengths"
"""Folder below a folder of records that keeps their lengths, one file for each way in which they were measured."""

_BATCHES_SORTED_TOGETHER = 64
_RECORDS_A_TASK = 2000
_ENOUGH_FOR_PROCESSES = 20_000


def grouped_by_length(lengths: NDArray[np.int32], batch: int, generator: np.random.Generator) -> NDArray[np.int32]:
    """A random order in which every `batch` neighbours are of alike length.

    The shuffled samples are cut into runs of 64 batches, each run is sorted, and its batches are shuffled. The longest
    samples of all come first, so that a batch that does not fit into memory shows at once. What does not fill a batch
    comes last; it holds long samples too, because the first ones complete it.

    Args:
        lengths: (samples,), tokens of each sample.
        batch: Samples of all processes in one optimiser step.
        generator: Decides the order.

    Returns:
        int32 (samples,), a permutation.
    """
    shuffled = generator.permutation(len(lengths)).astype(np.int32)
    from_longest = _sorted(shuffled, lengths)
    first, last, others = np.split(from_longest, [batch, batch + len(lengths) % batch])
    if not len(others):
        return from_longest
    is_other = np.zeros(len(lengths), dtype=bool)
    is_other[others] = True
    waiting = shuffled[is_other[shuffled]]
    runs = np.split(waiting, range(batch * _BATCHES_SORTED_TOGETHER, len(waiting), batch * _BATCHES_SORTED_TOGETHER))
    batches = np.concatenate([_sorted(run, lengths) for run in runs]).reshape(-1, batch)
    generator.shuffle(batches)
    return np.concatenate([first, batches.reshape(-1), last])


def _sorted(samples: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.int32]:
    """The samples from long to short; those of one length stay in their order."""
    return samples[np.argsort(-lengths[samples].astype(np.int64), kind="stable")]


def stored_lengths(
    folder: RecordFolder, processor: OspreyTPProcessor, wording: Wording, spare: Path, processes: int = 1
) -> NDArray[np.int32]:
    """Tokens of the sample that each record makes, from the file beside the records, or measured and written there.

    The file's name depends on all that decides the lengths: records, wording, tokenizer, chat template, tiling.

    Args:
        folder: The records.
        processor: Renders them as training does.
        wording: How they are worded.
        spare: Folder for the file where that of the records cannot be written to.
        processes: Measure in so many processes, if there are many records.

    Returns:
        int32 (records,); 0 for a record that makes no sample, which training names when it meets it.
    """
    name = f"{_key(folder, processor, wording)}.npy"
    places = [folder.path / FOLDER_NAME, spare / FOLDER_NAME]
    for place in places:
        lengths = _read(place / name, len(folder))
        if lengths is not None:
            return lengths
    starts = range(0, len(folder), _RECORDS_A_TASK)
    processes = processes if len(folder) >= _ENOUGH_FOR_PROCESSES else 1
    measured = map_in_order(partial(_measure, folder, processor, wording), starts, max(1, processes))
    lengths = np.fromiter((length for part in measured for length in part), np.int32, len(folder))
    _write(places[0] if os.access(folder.path, os.W_OK) else places[1], name, lengths)
    return lengths


def _measure(folder: RecordFolder, processor: OspreyTPProcessor, wording: Wording, start: int) -> list[int]:
    lengths = []
    for index in range(start, min(start + _RECORDS_A_TASK, len(folder))):
        try:
            lengths.append(sample_length(folder[index], processor, wording).total)
        except ValueError:
            lengths.append(0)
    return lengths


def _key(folder: RecordFolder, processor: OspreyTPProcessor, wording: Wording) -> str:
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    decides = {
        "shards": [shard["sha256"] for shard in folder.manifest["shards"]],
        "wording": asdict(wording),
        "tiling": asdict(processor.image_processor.tiling),
        "tokens_per_region": processor.tokens_per_region,
        "chat_template": processor.chat_template,
        # padding and truncation are left out: they are those of the last call
        "tokenizer": {name: value for name, value in tokenizer.items() if name not in ("padding", "truncation")},
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _read(file: Path, records: int) -> NDArray[np.int32] | None:
    """The stored lengths; None if there are none, or not of so many records."""
    try:
        lengths: NDArray[np.int32] = np.load(file)
    except (OSError, ValueError, EOFError):
        return None
    return lengths if lengths.shape == (records,) and lengths.dtype == np.int32 else None


def _write(place: Path, name: str, lengths: NDArray[np.int32]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    with file_aside(place / name, place / f"{name}.{os.getpid()}") as aside, aside.open("wb") as file:
        np.save(file, lengths)


def padding_share(lengths: Sequence[int] | NDArray[np.int32], batch: int) -> float:
    """Share of padding when samples of these lengths are batched in this order."""
    batches = [lengths[first : first + batch] for first in range(0, len(lengths), batch)]
    padded = sum(max(of_batch) * len(of_batch) for of_batch in batches)
    return 1 - float(sum(lengths)) / padded
