"""A published checkpoint to a folder that `from_pretrained` loads, and back.

```
files of weights ─► names, shapes ─► kind, configuration ─► what is needed, by published name ─► complete or refused
needed weights, one at a time ─► renamed, fused attention cut in three ─► shards, written aside ─► folder
```
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from osprey_tp import conversion_settings as published_settings
from osprey_tp.configuration import OspreyTPConfig
from osprey_tp.conversion import (
    HEAD,
    LANGUAGE_PREFIX,
    PROJECTOR_PREFIX,
    PUBLISHED_LANGUAGE_PREFIX,
    PUBLISHED_REGION_ENCODER_PREFIX,
    PUBLISHED_TOWER_PREFIX,
    REGION_ENCODER_PREFIX,
    TOWER_PREFIX,
    PublishedName,
    is_weight,
    published_name,
)
from osprey_tp.conversion_files import StoredWeight, WeightReader, few, holds_weights, list_weights, write_shards
from osprey_tp.conversion_tokenizer import load_tokenizer, write_published_tokenizer
from osprey_tp.files import folder_aside
from osprey_tp.model_folder import pixel_scale, require_merged
from osprey_tp.modeling import OspreyTPForConditionalGeneration
from osprey_tp.processing import OspreyTPProcessor, add_region_tokens, chat_template

DEFAULT_TEMPLATE = "vicuna_v1"
SHARD_SIZE = "5GB"

_ORDER = (LANGUAGE_PREFIX, TOWER_PREFIX, PROJECTOR_PREFIX, REGION_ENCODER_PREFIX, HEAD)
"""Parts in the order in which they are written, which is about that of the published files."""


@dataclass(frozen=True)
class ConversionOptions:
    """What the command line says beside source and target.

    Attributes:
        language_model: Folder of the language model, for a file of a projector alone.
        vision_tower: Folder of CLIP; needed where the checkpoint holds no tower, and read in its place where it does.
        scale_factor: In place of what `config.json` says.
        max_tiles: In place of what `config.json` says; 9 where neither does.
        template: Name of the chat template.
        dtype: Of the written weights, such as `bfloat16`; by default as stored.
        max_shard_size: Of the written files.
    """

    language_model: Path | None = None
    vision_tower: Path | None = None
    scale_factor: int | None = None
    max_tiles: int | None = None
    template: str = DEFAULT_TEMPLATE
    dtype: str | None = None
    max_shard_size: int | str = SHARD_SIZE


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        kind: What the source was recognised as.
        weights: How many weights were written.
        size: Their bytes.
        facts: What a user should know, one line each.
    """

    kind: str
    weights: int
    size: int
    facts: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Checkpoint:
    """A published checkpoint, its weights not read yet.

    Attributes:
        place: For messages.
        kind: What it is called.
        settings: Its `config.json`, empty where there is none.
        projector_type: As in our configuration.
        weights: By published name.
        language: Configuration of the language model.
        tower: Configuration of the vision tower.
        folders: Where tokenizer and pixel scale are looked for, the first first.
    """

    place: Path
    kind: str
    settings: Mapping[str, Any]
    projector_type: str
    weights: Mapping[str, StoredWeight]
    language: PreTrainedConfig
    tower: PreTrainedConfig
    tokenizer_folder: Path
    pixel_folder: Path
    facts: tuple[str, ...] = field(default=())

    @property
    def has_regions(self) -> bool:
        """Whether it has a region encoder."""
        return any(name.startswith(PUBLISHED_REGION_ENCODER_PREFIX) for name in self.weights)


def convert(source: Path, out: Path, options: ConversionOptions | None = None) -> Converted:
    """Write a published checkpoint as a folder of ours.

    Args:
        source: Folder of a checkpoint, or a file of a projector (`mm_projector.bin`).
        out: Folder to make; it appears when it is complete.
        options: See `ConversionOptions`.

    Raises:
        ValueError: naming what was found, what was expected and the remedy.
        OSError: if a file cannot be read or written.
    """
    options = options or ConversionOptions()
    require_new(out)
    dtype = parse_dtype(options.dtype)
    checkpoint = _open(source, options)
    tokenizer = load_tokenizer(checkpoint.tokenizer_folder, checkpoint.language.vocab_size)
    config = _configure(checkpoint, tokenizer, options)
    needed = _needed(config, checkpoint)
    with _naming(checkpoint.place):
        template = options.template
        processor = OspreyTPProcessor.from_config(config, tokenizer, template, **pixel_scale(checkpoint.pixel_folder))
        processor.chat_template = checkpoint.settings.get(published_settings.OWN_KEY, {}).get(
            "chat_template", processor.chat_template
        )
    reader = WeightReader()

    def make(name: str) -> Tensor:
        place = needed[name]
        weight = reader.read(checkpoint.weights[place.name])
        piece = weight if place.parts == 1 else weight.chunk(place.parts)[place.part].clone()
        return piece if dtype is None else piece.to(dtype)

    outlines = {name: _outline(checkpoint.weights[place.name], place, dtype) for name, place in needed.items()}
    config.dtype = outlines[f"{LANGUAGE_PREFIX}embed_tokens.weight"][1]
    config.architectures = [OspreyTPForConditionalGeneration.__name__]
    with folder_aside(out) as aside:
        size = write_shards(aside, outlines, make, options.max_shard_size)
        config.save_pretrained(aside)
        _generation_config(config, tokenizer).save_pretrained(aside)
        processor.save_pretrained(aside)
    return Converted(checkpoint.kind, len(needed), size, _facts(checkpoint, config))


def require_new(out: Path) -> None:
    """Raise ValueError if a folder cannot be made there."""
    if out.is_file():
        raise ValueError(f"{out} is a file; name a folder to make")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists; remove it, or name another folder")


def parse_dtype(name: str | None) -> torch.dtype | None:
    """The dtype of that name, or None for the stored ones."""
    names = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name is None:
        return None
    if name not in names:
        raise ValueError(f"unknown dtype {name!r}; known: {', '.join(names)}")
    return names[name]


def _open(source: Path, options: ConversionOptions) -> _Checkpoint:
    """Recognise what was given and list its weights by published name."""
    if not source.exists():
        raise FileNotFoundError(f"no checkpoint {source}")
    folder = source if source.is_dir() else source.parent
    require_merged(folder)
    settings = published_settings.read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    for name in ("adapter_model.bin", "adapter_model.safetensors"):
        if source.is_dir() and (source / name).is_file():
            raise ValueError(f"{source} holds adapters, not a whole model; merge them with the published code first")
    projector_file = _projector_file(source)
    weights = list_weights(projector_file or source)
    weights = {name: weight for name, weight in weights.items() if is_weight(name)}
    names = list(weights)
    if projector_file is None and not settings:
        raise ValueError(f"{source} holds no config.json; copy the one that was saved with the weights")
    projector_type = published_settings.require_published_kind(source, settings, names)
    if projector_file is None:
        if options.language_model is not None:
            raise ValueError(f"{source} holds a language model; leave --language-model out")
        with _naming(folder / "config.json"):
            language = published_settings.language_config(settings)
        language_folder = source
    else:
        weights = {f"model.{name[name.index('mm_projector') :]}": weight for name, weight in weights.items()}
        language_folder = _required(options.language_model, source, "language model", "--language-model")
        weights |= {name: weight for name, weight in list_weights(language_folder).items() if is_weight(name)}
        language = published_settings.config_of_folder(language_folder)
    with _naming(source):
        tower, weights = _tower(settings, weights, options.vision_tower)
        published_settings.check_facts(settings, tower.hidden_size)
    has_regions = any(name.startswith(PUBLISHED_REGION_ENCODER_PREFIX) for name in weights)
    sliced = published_settings.is_sliced(settings, has_regions)
    kind = published_settings.describe_kind(projector_type, sliced, has_regions)
    return _Checkpoint(
        place=source,
        kind=kind if projector_file is None else f"projector of {kind}",
        settings=settings,
        projector_type=projector_type,
        weights=weights,
        language=language,
        tower=tower,
        tokenizer_folder=language_folder,
        pixel_folder=options.vision_tower or folder,
    )
