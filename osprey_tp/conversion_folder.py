"""A published checkpoint to a folder that `from_pretrained` loads.

```
files of weights ─► names, shapes ─► kind, configuration ─► what is needed, by published name ─► complete or refused
needed weights, one at a time ─► renamed, fused attention cut in three ─► shards, written aside ─► folder
```
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from osprey_tp import conversion_settings as published
from osprey_tp.configuration import OspreyTPConfig
from osprey_tp.conversion import (
    HEAD,
    HEAD_PREFIX,
    LANGUAGE_PREFIX,
    PROJECTOR_PREFIX,
    REGION_ENCODER_PREFIX,
    TOWER_PREFIX,
    PublishedName,
    published_name,
)
from osprey_tp.conversion_checkpoint import Checkpoint, naming, open_checkpoint
from osprey_tp.conversion_digest import Digest, digest_of
from osprey_tp.conversion_files import write_shards
from osprey_tp.conversion_tokenizer import load_tokenizer
from osprey_tp.files import folder_aside
from osprey_tp.model_folder import pixel_scale
from osprey_tp.modeling import OspreyTPForConditionalGeneration
from osprey_tp.processing import OspreyTPProcessor, add_region_tokens
from osprey_tp.weights import Outline, StoredWeight, WeightReader, few

DEFAULT_TEMPLATE = "vicuna_v1"
SHARD_SIZE = "5GB"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_ORDER = (LANGUAGE_PREFIX, TOWER_PREFIX, PROJECTOR_PREFIX, REGION_ENCODER_PREFIX, HEAD_PREFIX)
"""Parts in the order in which they are written, which is about that of the published files."""


@dataclass(frozen=True)
class ConversionOptions:
    """What the command line says beside source and target.

    Attributes:
        language_model: Folder of the language model, for a file of a projector alone.
        vision_tower: Folder of CLIP; needed where the checkpoint holds no tower, and read in its place where it does.
        scale_factor: In place of what `config.json` says.
        max_tiles: In place of what `config.json` says, 1 for one padded square a picture; 9 where neither says it.
        template: Name of the chat template; by default `vicuna_v1`.
        dtype: Of the written weights, a name of `DTYPES`; by default as stored.
        max_shard_size: Of the written files.
        verify: Run a fixed picture through what was written; it gets its place only if that goes well.
    """

    language_model: Path | None = None
    vision_tower: Path | None = None
    scale_factor: int | None = None
    max_tiles: int | None = None
    template: str | None = None
    dtype: str | None = None
    max_shard_size: int | str = SHARD_SIZE
    verify: bool = False


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        kind: What the source was recognised as.
        weights: How many weights were written.
        size: Their bytes.
        facts: What a user should know of it, one line each.
        digest: What it says of the fixed picture, if it was verified.
    """

    kind: str
    weights: int
    size: int
    facts: tuple[str, ...] = ()
    digest: Digest | None = None


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
    dtype = dtype_named(options.dtype)
    checkpoint = open_checkpoint(source, options.language_model, options.vision_tower)
    tokenizer = load_tokenizer(checkpoint.tokenizer_folder, checkpoint.language.vocab_size)
    with naming(source):
        config = _configure(checkpoint, tokenizer, options)
        processor = _processor(checkpoint, config, tokenizer, options.template)
        needed = needed_weights(config, checkpoint.weights)
        outlines = _outlines(checkpoint, needed, dtype)
    config.dtype = outlines[next(iter(outlines))][1]
    config.architectures = [OspreyTPForConditionalGeneration.__name__]
    reader = WeightReader()

    def make(name: str) -> Tensor:
        place = needed[name]
        weight = reader.read(checkpoint.weights[place.name])
        piece = weight if place.parts == 1 else weight.chunk(place.parts)[place.part].clone()
        return piece.to(outlines[name][1])

    with folder_aside(out) as aside:
        size = write_shards(aside, outlines, make, options.max_shard_size)
        config.save_pretrained(aside)
        _generation_config(tokenizer).save_pretrained(aside)
        processor.save_pretrained(aside)
        digest = _verified(aside, out) if options.verify else None
    return Converted(checkpoint.kind, len(needed), size, _facts(checkpoint, config), digest)


def _verified(aside: Path, out: Path) -> Digest:
    """The digest of what was written aside; a ValueError says that nothing of it is left."""
    try:
        return digest_of(aside)
    except (ValueError, RuntimeError, IndexError, OSError) as error:
        text = " ".join(str(error).split()).replace(str(aside), str(out))
        raise ValueError(f"--verify failed, and {out} was not made: {text}") from error


def require_new(out: Path) -> None:
    """Raise ValueError if a folder cannot be made there."""
    first = next(path for path in (out, *out.absolute().parents) if path.exists())
    if first.is_file():
        raise ValueError(f"{first} is a file; name a folder to make")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists; remove it, or name another folder")


def dtype_named(name: str | None) -> torch.dtype | None:
    """The dtype of that name; None, which keeps each weight's own, for None."""
    if name is not None and name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}; known: {', '.join(DTYPES)}")
    return DTYPES[name] if name is not None else None


def _configure(
    checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, options: ConversionOptions
) -> OspreyTPConfig:
    """Our configuration of a published checkpoint; the tokenizer gets `<mask>` and `<image>`."""
    choices = published.published_choices(
        checkpoint.settings,
        checkpoint.projector_type,
        checkpoint.weights,
        checkpoint.is_projector_alone,
        scale_factor=options.scale_factor,
        max_tiles=options.max_tiles,
    )
    token_ids = add_region_tokens(tokenizer, choices["preset"])
    return OspreyTPConfig(text_config=checkpoint.language, vision_config=checkpoint.tower, **(token_ids | choices))


def _processor(
    checkpoint: Checkpoint, config: OspreyTPConfig, tokenizer: PreTrainedTokenizerBase, template: str | None
) -> OspreyTPProcessor:
    own = published.own_choices(checkpoint.settings).get("chat_template")
    processor = OspreyTPProcessor.from_config(
        config, tokenizer, template or DEFAULT_TEMPLATE, **pixel_scale(checkpoint.pixel_folder)
    )
    if own is not None and template is None:
        processor.chat_template = own
    return processor


def expected_weights(config: OspreyTPConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of a model, by our names, in the order in which they are written."""
    with torch.device("meta"):
        state = OspreyTPForConditionalGeneration(config).state_dict()
    if config.tie_word_embeddings:
        del state[HEAD]
    return {name: tuple(state[name].shape) for prefix in _ORDER for name in state if name.startswith(prefix)}


def needed_weights(config: OspreyTPConfig, weights: Mapping[str, StoredWeight]) -> dict[str, PublishedName]:
    """Where each of our weights lies among the published ones; those of a region encoder only if there is one.

    Raises:
        ValueError: if weights are missing, unexpected or of another shape.
    """
    shapes = expected_weights(config)
    places = {name: published_name(name, config.projector_type) for name in shapes}
    extractor = {name for name in places if name.startswith(REGION_ENCODER_PREFIX)}
    if not any(places[name].name in weights for name in extractor):
        places = {name: place for name, place in places.items() if name not in extractor}
    expected = {place.name for place in places.values()}
    missing, unexpected = expected - weights.keys(), weights.keys() - expected
    if config.tie_word_embeddings:
        unexpected -= {HEAD}
    if missing:
        raise ValueError(
            f"lacks {len(missing)} of {len(expected)} weights ({few(missing)}); copy the whole checkpoint again, or "
            "the config.json that was saved with it"
        )
    if unexpected:
        raise ValueError(
            f"{len(unexpected)} weights are of no part of such a model ({few(unexpected)}); name a checkpoint that the "
            "published code wrote"
        )
    _require_shapes({name: shapes[name] for name in places}, places, weights)
    return places


def _require_shapes(
    shapes: Mapping[str, tuple[int, ...]], places: Mapping[str, PublishedName], weights: Mapping[str, StoredWeight]
) -> None:
    wrong = {}
    for name, (first, *rest) in shapes.items():
        place = places[name]
        needed, stored = (first * place.parts, *rest), weights[place.name]
        if stored.shape != needed:
            wrong[place.name] = f"{place.name} is {stored.shape} and not {needed}"
        if not stored.dtype.is_floating_point:
            raise ValueError(f"{place.name} is {stored.dtype}; give weights that are not quantised")
    if wrong:
        raise ValueError(
            f"{len(wrong)} weights have other shapes than config.json and tower ask for: {wrong[min(wrong)]}; give the "
            "config.json, the language model and the tower that they were trained with"
        )


def _outlines(
    checkpoint: Checkpoint, needed: Mapping[str, PublishedName], dtype: torch.dtype | None
) -> dict[str, Outline]:
    """Shape and dtype of every weight that is written."""
    outlines = {}
    for name, place in needed.items():
        stored = checkpoint.weights[place.name]
        rows, *rest = stored.shape
        outlines[name] = ((rows // place.parts, *rest), dtype or stored.dtype)
    return outlines


def _generation_config(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Greedy answers that end where the tokenizer says; published files hold settings that cannot be saved."""
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _facts(checkpoint: Checkpoint, config: OspreyTPConfig) -> tuple[str, ...]:
    tiling, is_square = config.tiling, config.picture_layout == "square"
    pictures = "picture, one square" if is_square else f"tile, at most {config.max_tiles} tiles"
    facts = [
        f"vision tower {config.vision_config.num_hidden_layers} layers of {config.vision_config.hidden_size}, "
        f"language model {config.text_config.num_hidden_layers} layers of {config.text_config.hidden_size}",
        f"scale factor {config.scale_factor}, {tiling.tokens_per_tile} visual tokens a {pictures}, preset "
        f"{config.preset}",
    ]
    if not checkpoint.has_regions:
        facts.append("no region encoder: ask about whole pictures, or train stage 2 first")
    if checkpoint.is_projector_alone:
        return tuple(facts)
    if not checkpoint.is_sliced and not is_square:
        facts.append("trained on one square a picture; here larger pictures are cut into tiles, which it has not seen")
    if checkpoint.is_cropped and is_square:
        facts.append("published code shows it the middle of a picture alone; here all of it is padded to a square")
    return tuple(facts)
