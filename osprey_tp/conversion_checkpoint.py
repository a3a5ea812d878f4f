"""A published checkpoint, recognised: what it is called, what it says of itself, and where its weights lie.

| given                                                    | is                                                        |
|----------------------------------------------------------|-----------------------------------------------------------|
| a folder with a language model and `model.mm_projector.*` | TokenPacker(-HD), LLaVA-1.5 or LLaVA-STF, by the names   |
| the same with `mask_extractor.*`                         | with Osprey                                               |
| `mm_projector.bin`, or a folder without other weights    | a projector of stage 1; the rest is in folders of its own |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from osprey_tp import conversion_settings as published
from osprey_tp.conversion import (
    PUBLISHED_REGION_ENCODER_PREFIX,
    PUBLISHED_TOWER_PREFIX,
    is_weight,
    standard_projector_name,
)
from osprey_tp.model_folder import require_merged
from osprey_tp.weights import StoredWeight, holds_weights, list_weights

_PROJECTOR_FILES = ("mm_projector.bin", "mm_projector.safetensors")
_ADAPTER_FILES = ("adapter_model.bin", "adapter_model.safetensors")
_INSIDE = "vision_model."


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint, its weights not read yet.

    Attributes:
        place: For messages.
        settings: Its `config.json`; empty where a file of a projector has none.
        projector_type: As in our configuration.
        weights: By published name.
        language: Configuration of the language model.
        tower: Configuration of the vision tower.
        tokenizer_folder: Holds the tokenizer.
        pixel_folder: May say which mean and deviation pixels have.
        is_projector_alone: Language model and tower are from folders of their own.
    """

    place: Path
    settings: Mapping[str, Any]
    projector_type: str
    weights: Mapping[str, StoredWeight]
    language: PreTrainedConfig
    tower: PreTrainedConfig
    tokenizer_folder: Path
    pixel_folder: Path
    is_projector_alone: bool

    @property
    def has_regions(self) -> bool:
        """Whether it has a region encoder."""
        return any(name.startswith(PUBLISHED_REGION_ENCODER_PREFIX) for name in self.weights)

    @property
    def is_sliced(self) -> bool:
        """Whether pictures were cut into tiles in its training."""
        return published.is_sliced(self.settings, self.has_regions)

    @property
    def is_cropped(self) -> bool:
        """Whether the published code shows it the middle of a picture alone."""
        return published.is_cropped(self.settings, self.has_regions)

    @property
    def kind(self) -> str:
        """What it is called."""
        kind = published.describe_kind(self.projector_type, self.is_sliced, self.has_regions)
        return f"projector of {kind}" if self.is_projector_alone else kind


def open_checkpoint(source: Path, language_model: Path | None, vision_tower: Path | None) -> Checkpoint:
    """Recognise what was given and list its weights by published name.

    Args:
        source: Folder of a checkpoint, or file or folder of a projector.
        language_model: Folder of the language model, for a projector.
        vision_tower: Folder of CLIP; read in place of a tower that the checkpoint holds, as the published code does.

    Raises:
        ValueError: naming what was found, what was expected and the remedy.
        OSError: if a file cannot be read.
    """
    if not source.exists():
        raise FileNotFoundError(f"no checkpoint {source}; name a folder, or mm_projector.bin")
    folder = source if source.is_dir() else source.parent
    require_merged(folder)
    if source.is_dir() and any((source / name).is_file() for name in _ADAPTER_FILES):
        raise ValueError(f"{source} holds adapters, not a whole model; merge them with the code that trained them")
    settings = published.read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    file = _projector_file(source)
    if file is None and not settings:
        raise ValueError(f"{source} holds no config.json; copy the one that was saved with the weights")
    weights = _weights_of(file or source)
    projector_type = published.require_published_kind(source, settings, list(weights))
    if file is None:
        if language_model is not None:
            raise ValueError(f"{source} holds a language model of its own; leave --language-model out")
        with naming(folder / "config.json"):
            language = published.language_config(settings)
    else:
        weights = {standard_projector_name(name): weight for name, weight in weights.items()}
        language_model = _required(language_model, source, "language model", "--language-model")
        weights = _weights_of(language_model) | weights
        with naming(language_model):
            language = published.config_of_folder(language_model)
    with naming(source):
        tower, weights = _with_tower(settings, weights, vision_tower)
        published.check_facts(settings, tower.hidden_size)
    return Checkpoint(
        place=source,
        settings=settings,
        projector_type=projector_type,
        weights=weights,
        language=language,
        tower=tower,
        tokenizer_folder=language_model or source,
        pixel_folder=vision_tower or folder,
        is_projector_alone=file is not None,
    )


def _projector_file(source: Path) -> Path | None:
    """The file of a projector, if that is what was given."""
    if source.is_file():
        return source
    if holds_weights(source):
        return None
    return next((source / name for name in _PROJECTOR_FILES if (source / name).is_file()), None)


def _weights_of(place: Path) -> dict[str, StoredWeight]:
    return {name: weight for name, weight in list_weights(place).items() if is_weight(name)}


def _required(folder: Path | None, source: Path, what: str, option: str) -> Path:
    if folder is None:
        raise ValueError(f"{source} holds no {what}; name its folder with {option}")
    return folder


def _with_tower(
    settings: Mapping[str, Any], weights: dict[str, StoredWeight], folder: Path | None
) -> tuple[PreTrainedConfig, dict[str, StoredWeight]]:
    """The tower's configuration, and `weights` with those of the tower that is taken."""
    if folder is None:
        if not any(name.startswith(PUBLISHED_TOWER_PREFIX) for name in weights):
            tower = settings.get("mm_vision_tower", "CLIP ViT-L/14-336")
            raise ValueError(f"no vision tower among the weights; name the folder of {tower} with --vision-tower")
        return published.tower_config(settings, weights), weights
    stored = _weights_of(folder)
    if any(name.startswith(_INSIDE) for name in stored):  # a whole CLIP holds a tower of texts too
        stored = {name.removeprefix(_INSIDE): w for name, w in stored.items() if name.startswith(_INSIDE)}
    kept = {name: weight for name, weight in weights.items() if not name.startswith(PUBLISHED_TOWER_PREFIX)}
    tower = {PUBLISHED_TOWER_PREFIX + name: weight for name, weight in stored.items()}
    return published.config_of_folder(folder), kept | tower


@contextmanager
def naming(place: Path) -> Iterator[None]:
    """Let errors about what lies there begin with its name, on one line."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        text = " ".join(str(error).split())
        raise ValueError(text if text.startswith(str(place)) else f"{place}: {text}") from error
