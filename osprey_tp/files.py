"""Write aside, then rename: nothing half-written ever has its final name, whenever the process or the machine ends.

What is written is flushed to the disk before it is renamed, and the rename after it, so that a name that can be seen
stands for contents that are there. What is replaced or removed loses its name first and its contents afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

REMOVING_SUFFIX = ".removing"
"""Ends the name of what is on its way out."""


LOCK_FILE = "lock"
"""File in a folder that `held` locks."""

_BLOCK = 1 << 22


def aside_of(path: Path) -> Path:
    """Where what will be `path` is written."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def file_aside(path: Path, aside: Path | None = None) -> Iterator[Path]:
    """A place beside `path` to write a file to; the file replaces `path` when the block ends without an exception.

    Args:
        path: The file.
        aside: The place, on the same file system; `aside_of(path)` by default.
    """
    aside = aside_of(path) if aside is None else aside
    try:
        yield aside
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def folder_aside(path: Path, aside: Path | None = None, *, replace: bool = False) -> Iterator[Path]:
    """An empty folder beside `path` to write into; it gets that name when the block ends without an exception.

    Args:
        path: The folder; an empty one may be there already.
        aside: The place, on the same file system; `aside_of(path)` by default.
        replace: Take the place of a folder that is there.

    Raises:
        FileExistsError: if the name is taken, at the end, where `replace` is not set.
    """
    aside = aside_of(path) if aside is None else aside
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        name_folder(aside, path, replace=replace)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def name_folder(aside: Path, path: Path, *, replace: bool = False) -> None:
    """Give a folder that is complete its name, with all that is in it on the disk.

    Args:
        aside: The folder.
        path: Its name; an empty folder may be there already.
        replace: Take the place of a folder that is there.

    Raises:
        FileExistsError: if the name is taken and `replace` is not set.
    """
    sync_tree(aside)
    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        path.rmdir()
    if not path.exists():
        aside.rename(path)
    elif replace:
        _replace_folder(aside, path)
    else:
        raise FileExistsError(f"{path} exists already: name another folder, or remove it first")
    sync(path.parent)


def _replace_folder(aside: Path, path: Path) -> None:
    replaced = path.with_name(f".{path.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    path.rename(replaced)
    try:
        aside.rename(path)
    except OSError:
        replaced.rename(path)
        raise
    shutil.rmtree(replaced)


def remove_folder(path: Path) -> None:
    """Remove a folder so that no part of it is ever taken for the whole; nothing happens if there is none."""
    removing = path.with_name(path.name + REMOVING_SUFFIX)
    shutil.rmtree(removing, ignore_errors=True)
    with suppress(FileNotFoundError):
        path.rename(removing)
    shutil.rmtree(removing, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, in UTF-8, and its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def sha256_of(path: Path) -> str:
    """Checksum of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` for a folder and everything below it."""
    for path, _, names in os.walk(folder):
        for name in names:
            sync(Path(path, name))
        sync(Path(path))


@contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Keep other processes that ask for the folder out of it; it is made if need be.

    The lock is a file in the folder. It ends with the process, however that ends, and is not handed down to processes
    that this one forks. A folder that holds nothing else in the end is removed.

    Yields:
        Whether the folder is this process's alone; False where the file system knows no locks.

    Raises:
        BlockingIOError: if another process holds the folder.
    """
    descriptor, locked = _open_lock(folder)
    try:
        yield locked
    finally:
        if folder.is_dir() and all(path.name == LOCK_FILE for path in folder.iterdir()):
            shutil.rmtree(folder)
        os.close(descriptor)


def _open_lock(folder: Path) -> tuple[int, bool]:
    """The lock file that is in the folder now, open, and whether it is locked."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / LOCK_FILE
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue
        try:
            locked = _lock(descriptor)
            if file.exists() and os.path.samestat(os.fstat(descriptor), file.stat()):
                return descriptor, locked
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # whoever held it has removed the folder


def _lock(descriptor: int) -> bool:
    import fcntl

    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise BlockingIOError(error.errno, "another process holds the folder") from None
    except OSError:
        return False
    return True
