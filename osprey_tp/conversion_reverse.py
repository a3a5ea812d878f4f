"""A model folder of ours back to the layout of the published code, so that it can load what was trained here."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from osprey_tp import conversion_settings as published
from osprey_tp.configuration import PRESETS, OspreyTPConfig
from osprey_tp.conversion import REGION_ENCODER_PREFIX, PublishedName, published_name
from osprey_tp.conversion_checkpoint import naming
from osprey_tp.conversion_files import write_shards
from osprey_tp.conversion_folder import (
    DEFAULT_TEMPLATE,
    SHARD_SIZE,
    Converted,
    dtype_named,
    expected_weights,
    require_new,
)
from osprey_tp.conversion_tokenizer import write_published_tokenizer
from osprey_tp.files import folder_aside
from osprey_tp.model_folder import require_merged
from osprey_tp.outside import OWN_FILES_ALONE
from osprey_tp.processing import OspreyTPProcessor, chat_template
from osprey_tp.weights import Outline, StoredWeight, WeightReader, few, list_weights


def reverse(source: Path, out: Path, dtype: str | None = None, max_shard_size: int | str = SHARD_SIZE) -> Converted:
    """Write a model folder in the published layout; `convert` makes the same folder of it again, to the byte.

    Args:
        source: What training or `convert` wrote.
        out: Folder to make; it appears when it is complete.
        dtype: Of the written weights; by default as stored.
        max_shard_size: Of the written files.

    Raises:
        ValueError: if `source` is no whole model folder, or the published code has no place for such a model.
        OSError: if a file cannot be read or written.
    """
    require_new(out)
    kept = dtype_named(dtype)
    require_merged(source)
    if not (source / "config.json").is_file() or not (source / "processor_config.json").is_file():
        raise ValueError(f"{source} is no model folder of osprey_tp; name what training or scripts.convert wrote")
    with naming(source):
        if published.read_json(source / "config.json").get("model_type") != OspreyTPConfig.model_type:
            raise ValueError("this is not a model of osprey_tp; leave --reverse out to convert it")
        config = OspreyTPConfig.from_pretrained(source)
        processor = OspreyTPProcessor.from_pretrained(source, **OWN_FILES_ALONE)
        processor.check_fits(config)
        published.require_published_can_hold(config)
        stored = list_weights(source)
        pieces = _pieces(config, stored)
    outlines = {name: _outline([stored[ours] for ours in of_name], kept) for name, of_name in pieces.items()}
    reader = WeightReader()

    def make(name: str) -> Tensor:
        return torch.cat([reader.read(stored[ours]).to(outlines[name][1]) for ours in pieces[name]])

    text = str(processor.chat_template)
    template = None if text == chat_template(DEFAULT_TEMPLATE) else text
    settings = published.to_published(config, str(next(iter(outlines.values()))[1]).removeprefix("torch."), template)
    with folder_aside(out) as aside:
        size = write_shards(aside, outlines, make, max_shard_size)
        (aside / "config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        write_published_tokenizer(processor.tokenizer, aside)
        _write_pixel_scale(processor, aside)
    has_regions = any(name.startswith(REGION_ENCODER_PREFIX) for name in stored)
    kind = published.describe_kind(config.projector_type, published.is_published_slicing(config), has_regions)
    return Converted(kind, len(pieces), size, _facts(config, has_regions))


def _pieces(config: OspreyTPConfig, stored: dict[str, StoredWeight]) -> dict[str, list[str]]:
    """Our weights that make up each published one, in their order."""
    expected = expected_weights(config)
    if not any(name.startswith(REGION_ENCODER_PREFIX) for name in stored):
        expected = {name: shape for name, shape in expected.items() if not name.startswith(REGION_ENCODER_PREFIX)}
    missing, unexpected = expected.keys() - stored.keys(), stored.keys() - expected.keys()
    if missing or unexpected:
        raise ValueError(
            f"lacks {len(missing)} of {len(expected)} weights ({few(missing) or 'none'}) and has {len(unexpected)} too "
            f"many ({few(unexpected) or 'none'}); restore what training or scripts.convert wrote"
        )
    places: dict[str, list[tuple[PublishedName, str]]] = {}
    for ours in expected:
        try:
            place = published_name(ours, config.projector_type)
        except KeyError as error:
            raise ValueError(f"{error.args[0]}; keep this model in osprey_tp's own layout") from error
        places.setdefault(place.name, []).append((place, ours))
    return {name: [ours for _, ours in sorted(of, key=lambda pair: pair[0].part)] for name, of in places.items()}


def _outline(pieces: list[StoredWeight], dtype: torch.dtype | None) -> Outline:
    rows = sum(piece.shape[0] for piece in pieces)
    return (rows, *pieces[0].shape[1:]), dtype or pieces[0].dtype


def _write_pixel_scale(processor: OspreyTPProcessor, folder: Path) -> None:
    """Say mean and deviation of pixels where they are not CLIP's."""
    scale = {name: list(getattr(processor.image_processor, name)) for name in ("image_mean", "image_std")}
    if scale != {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}:
        (folder / "preprocessor_config.json").write_text(json.dumps(scale, indent=1) + "\n", encoding="utf-8")


def _facts(config: OspreyTPConfig, has_regions: bool) -> tuple[str, ...]:
    if config.picture_layout == "square":
        told = "the published code cuts pictures with regions into tiles; this model was trained on squares"
        return (told,) if has_regions else ()
    different = [name for name, value in PRESETS["published"].items() if getattr(config, name) != value]
    if not different:
        return ()
    return (
        f"the published code prepares pictures in its own way; this model was trained with another {few(different)}",
    )
