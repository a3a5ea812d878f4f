"""Which data, which model, which versions: what makes a number traceable."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from pathlib import Path

BLOCK_BYTES = 1 << 20
PACKAGES = ("osprey_tp", "torch", "transformers", "tokenizers", "datasets", "numpy", "pycocotools", "pycocoevalcap")


def folder_checksum(folder: Path) -> str:
    """SHA-256 over the names and contents of the files that lie directly in the folder."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        total.update(f"{path.name}\n{file_checksum(path)}\n".encode())
    return total.hexdigest()


def file_checksum(path: Path) -> str:
    """SHA-256 of the file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """Installed versions of Python and of everything that can move a score."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
