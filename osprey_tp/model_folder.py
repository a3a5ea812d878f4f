"""What a folder holds: a whole model, or adapters of one that have to be merged first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from osprey_tp.outside import read_json

ADAPTER_FOLDER = "adapter"
"""Name of the folder, inside that of a run, that holds the adapters that the run trained."""


def require_merged(folder: Path) -> None:
    """Raise ValueError, with the command that mends it, if `folder` holds adapters in place of a whole model."""
    if (folder / ADAPTER_FOLDER).is_dir():
        raise ValueError(
            f"{folder} holds adapters, not a whole model; merge them first: "
            f"python -m scripts.merge {folder} {folder.with_name(folder.name + '-merged')}"
        )


@contextmanager
def naming(place: Path | str) -> Iterator[None]:
    """Let errors of what is read there be ValueError or OSError of one line that begins with its name.

    A foreign folder can make transformers raise anything.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, OSError, RuntimeError, SafetensorError) as error:
        text = " ".join(str(error).split())
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(text if text.startswith(str(place)) else f"{place}: {text}") from error


def pixel_scale(tower: Path) -> dict[str, Any]:
    """Mean and deviation of pixels that a vision tower was trained with, if its folder says so.

    Raises:
        ValueError: if its file of them is no JSON object.
    """
    file = tower / "preprocessor_config.json"
    try:
        saved = read_json(file) if file.is_file() else {}
        return {name: saved[name] for name in ("image_mean", "image_std") if name in saved}
    except TypeError as error:
        raise ValueError(f"{file} is no JSON object; copy it again") from error
