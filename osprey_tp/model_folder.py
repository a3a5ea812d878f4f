"""What a folder holds: a whole model, one without a region encoder, or adapters that have to be merged first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from osprey_tp.modeling import OspreyTPForConditionalGeneration

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


def load_model(folder: Path, **arguments: Any) -> OspreyTPForConditionalGeneration:
    """The model of a folder, with no weight that the folder does not hold.

    A folder without any weight of a region encoder, as conversion writes it of checkpoints that have none, becomes a
    model that refuses regions.

    Args:
        folder: Holds config.json and safetensors weights.
        arguments: Of `from_pretrained`.

    Raises:
        ValueError: if weights are missing, or belong to no module of config.json.
    """
    from osprey_tp.modeling import OspreyTPForConditionalGeneration

    with quietly():
        loaded: Any = OspreyTPForConditionalGeneration.from_pretrained(folder, output_loading_info=True, **arguments)
    model, found = loaded
    missing, surplus = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    of_encoder = [f"model.region_encoder.{name}" for name, _ in model.model.region_encoder.named_parameters()]
    if missing == sorted(of_encoder):
        model.model.region_encoder, missing = None, []
    for names, what in ((missing, "weights are missing"), (surplus, "weights belong to no module of config.json")):
        if names:
            raise ValueError(
                f"{folder}: {len(names)} {what}, among them {names[0]}; copy the whole folder again, or restore the "
                "config.json that was saved with the weights"
            )
    return model


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers from printing the tables of missing weights that become one line here."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


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
