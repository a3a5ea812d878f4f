"""Which data, which model, which versions: what makes a number traceable."""

from __future__ import annotations

import hashlib
import platform
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from osprey_tp.files import sha256_of

PACKAGES = ("osprey_tp", "torch", "transformers", "tokenizers", "datasets", "numpy", "pycocotools", "pycocoevalcap")


def folder_checksum(folder: Path) -> str:
    """SHA-256 over the names and contents of the files that lie directly in the folder.

    Files are read once a process, and again only where their size or time changed.
    """
    found = sorted(path for path in folder.resolve().iterdir() if path.is_file())
    states = ((path, path.stat()) for path in found)
    return _checksum_of(tuple((path, state.st_size, state.st_mtime_ns) for path, state in states))


@lru_cache
def _checksum_of(files: tuple[tuple[Path, int, int], ...]) -> str:
    total = hashlib.sha256()
    for path, _, _ in files:
        total.update(f"{path.name}\n{sha256_of(path)}\n".encode())
    return total.hexdigest()


def package_versions() -> dict[str, str]:
    """Installed versions of Python and of everything that can move a score."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
