"""What a folder holds: a whole model, or adapters of one that have to be merged first."""

from __future__ import annotations

from pathlib import Path

ADAPTER_FOLDER = "adapter"
"""Name of the folder, inside that of a run, that holds the adapters that the run trained."""


def require_merged(folder: Path) -> None:
    """Raise ValueError, with the command that mends it, if `folder` holds adapters in place of a whole model."""
    if (folder / ADAPTER_FOLDER).is_dir():
        raise ValueError(
            f"{folder} holds adapters, not a whole model; merge them first: "
            f"python -m scripts.merge {folder} {folder.with_name(folder.name + '-merged')}"
        )
