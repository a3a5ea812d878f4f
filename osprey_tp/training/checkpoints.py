"""Checkpoints that are whole or are known not to be: written aside, sealed, renamed, and checked before they are used.

```
work/checkpoint.writing/checkpoint-500    while it is written; a process that ends leaves it there, nobody reads it
work/checkpoint-500                       complete; seal.json names its files with sizes and checksums
work/checkpoint-500.broken                it was complete, but its files are not what the seal says
```
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osprey_tp.files import REMOVING_SUFFIX, name_folder, remove_folder, sha256_of, sync, write_json
from osprey_tp.outside import read_json

SEAL_FILE = "seal.json"
SEAL_FORMAT = "osprey_tp checkpoint 1"
WRITING_FOLDER = "checkpoint.writing"
BROKEN_SUFFIX = ".broken"
_NAME = re.compile(r"checkpoint-(\d+)")

Gather = Callable[[Any], list[Any]]
"""Exchanges a value between all processes, as `osprey_tp.training.ranks.gather`."""


@dataclass(frozen=True)
class Broken:
    """A checkpoint that is not as it was written, and the first thing that tells."""

    folder: Path
    reason: str


def step_of(checkpoint: Path) -> int:
    """The optimiser step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def writing_folder(work: Path) -> Path:
    """Where the Trainer writes `checkpoint-N` before it is complete."""
    return work / WRITING_FOLDER


def clear_away(work: Path) -> None:
    """Remove what a process that ended was writing or removing; one process alone calls this."""
    shutil.rmtree(writing_folder(work), ignore_errors=True)
    for path in work.glob(f"checkpoint-*{REMOVING_SUFFIX}"):
        shutil.rmtree(path)


def complete(work: Path, step: int, rank: int, gather: Gather) -> Path:
    """Seal the checkpoint that all processes have written, and give it its name; every process calls this.

    Each process flushes and reads a share of the files, so that sealing takes as long as the slowest share.

    Args:
        work: The folder of checkpoints.
        step: Optimiser steps before the checkpoint.
        rank: Number of this process.
        gather: Exchanges values between the processes.

    Returns:
        The checkpoint.
    """
    folder = writing_folder(work) / f"checkpoint-{step}"
    final = work / folder.name
    processes = len(gather(None))  # nobody writes any more
    names = [name for name in _files(folder) if name != SEAL_FILE]
    own = {name: _flushed_entry(folder / name) for name in names[rank::processes]}
    shares: list[dict[str, dict[str, Any]]] = gather(own)
    if rank == 0:
        entries = {name: entry for share in shares for name, entry in share.items()}
        seal = {"format": SEAL_FORMAT, "step": step, "processes": processes, "files": dict(sorted(entries.items()))}
        write_json(folder / SEAL_FILE, seal)
        remove_folder(final)
        name_folder(folder, final)
        shutil.rmtree(folder.parent, ignore_errors=True)
    gather(None)
    return final


def newest_sound(work: Path, rank: int, gather: Gather) -> tuple[Path | None, list[Broken]]:
    """The newest checkpoint that is as it was written, and the newer ones that are not; every process calls this.

    Each process reads a share of the files.

    Args:
        work: The folder of checkpoints.
        rank: Number of this process.
        gather: Exchanges values between the processes.

    Returns:
        The checkpoint, None if there is none.
    """
    broken: list[Broken] = []
    candidates: list[Path] = gather(_candidates(work) if rank == 0 else None)[0]
    for folder in candidates:
        reason = _fault(folder, rank, gather)
        if reason is None:
            return folder, broken
        broken.append(Broken(folder, reason))
    return None, broken


def checkpoint_to_resume(work: Path, rank: int, gather: Gather) -> tuple[Path | None, list[Broken]]:
    """The checkpoint from which a run goes on, None at its beginning, and the newer ones that are broken.

    Every process calls this. The broken ones are renamed.

    Raises:
        ValueError: if all checkpoints are broken, or another number of processes wrote them.
    """
    checkpoint, broken = newest_sound(work, rank, gather)
    if checkpoint is None and broken:
        found = ", ".join(f"{item.folder.name} ({item.reason})" for item in broken)
        raise ValueError(
            f"{work} holds no sound checkpoint: {found}; restore one, or set resume=never to start from the beginning"
        )
    if checkpoint is not None:
        wrote, now = _read_seal(checkpoint)["processes"], len(gather(None))
        if wrote != now:
            raise ValueError(
                f"{checkpoint} was written by a run of {wrote} processes, this one has {now}; start {wrote}, or set "
                "resume=never to start from the beginning"
            )
    if rank == 0:
        set_aside(broken)
    gather(None)
    return checkpoint, broken


def set_aside(broken: Sequence[Broken]) -> None:
    """Rename broken checkpoints, so that nothing takes or counts them; one process alone calls this."""
    for checkpoint in broken:
        target = checkpoint.folder.with_name(checkpoint.folder.name + BROKEN_SUFFIX)
        shutil.rmtree(target, ignore_errors=True)
        checkpoint.folder.rename(target)


def keep_newest(work: Path, number: int) -> None:
    """Remove all complete checkpoints but the newest ones; one process alone calls this."""
    for folder in _candidates(work)[number:]:
        remove_folder(folder)


def _candidates(work: Path) -> list[Path]:
    """Complete checkpoints, sound or not, the newest first."""
    found = [path for path in work.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _flushed_entry(file: Path) -> dict[str, Any]:
    sync(file)
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}


def _read_seal(folder: Path) -> dict[str, Any]:
    """What the seal says.

    Raises:
        ValueError: if there is none, or it cannot be read.
    """
    try:
        seal = read_json(folder / SEAL_FILE)
    except FileNotFoundError:
        raise ValueError(f"{SEAL_FILE} is missing") from None
    except (OSError, ValueError):
        raise ValueError(f"{SEAL_FILE} cannot be read") from None
    if not isinstance(seal, dict) or seal.get("format") != SEAL_FORMAT:
        raise ValueError(f"{SEAL_FILE} is not of the format {SEAL_FORMAT!r}")
    return seal


def _fault(folder: Path, rank: int, gather: Gather) -> str | None:
    """What tells that a checkpoint is not as it was written."""
    entries, reason = {}, None
    if rank == 0:
        try:
            entries = _read_seal(folder)["files"]
        except ValueError as error:
            reason = str(error)
    entries, reason = gather((entries, reason))[0]
    if reason is not None:
        return str(reason)
    processes = len(gather(None))
    own = sorted(entries)[rank::processes]
    checks = (_size_fault, _content_fault)
    for check in checks:  # sizes of all files before the contents of any
        reasons = gather(next(filter(None, (check(folder / name, entries[name]) for name in own)), None))
        first = next(filter(None, reasons), None)
        if first is not None:
            return str(first)
    return None


def _size_fault(file: Path, entry: dict[str, Any]) -> str | None:
    if not file.is_file():
        return f"{file.name} is missing"
    found = file.stat().st_size
    return None if found == entry["bytes"] else f"{file.name} has {found} bytes, not {entry['bytes']}"


def _content_fault(file: Path, entry: dict[str, Any]) -> str | None:
    try:
        return None if sha256_of(file) == entry["sha256"] else f"{file.name} differs from its checksum"
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror})"
