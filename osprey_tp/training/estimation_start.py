"""What a run would start from, as far as it is there: sizes without weights, a processor only if there is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from osprey_tp.configuration import OspreyTPConfig
from osprey_tp.outside import OWN_FILES_ALONE
from osprey_tp.processing import OspreyTPProcessor, add_region_tokens, chat_template
from osprey_tp.training.arguments import RunSettings

SIZES: Mapping[str, Callable[..., OspreyTPConfig]] = MappingProxyType(
    {"tiny": OspreyTPConfig.tiny, "vicuna-7b": OspreyTPConfig.vicuna_7b, "vicuna-13b": OspreyTPConfig.vicuna_13b}
)
"""Ready-made sizes by name."""


def start_configuration(settings: RunSettings, size: str | None = None) -> OspreyTPConfig:
    """The configuration of the model that a run would start from.

    Args:
        settings: The run; of its folders only `config.json` is read.
        size: One of `SIZES`, in place of folders that are not there yet.

    Raises:
        ValueError: for a size or a setting that does not exist, and where there is neither a folder nor a size.
    """
    geometry = dict(getattr(settings, "geometry", None) or {})
    if size is not None:
        return _with_geometry(SIZES[size], geometry)
    if settings.model is not None:
        return OspreyTPConfig.from_pretrained(_with_configuration("model", settings.model))
    language = _sub_configuration("language_model", settings.language_model)
    vision = _sub_configuration("vision_tower", settings.vision_tower)
    vision = getattr(vision, "vision_config", vision)
    tokenizer = _tokenizer(settings.language_model)
    ids = _unused_ids(language) if tokenizer is None else add_region_tokens(tokenizer)
    return _with_geometry(OspreyTPConfig, {"vision_config": vision, "text_config": language} | ids | geometry)


def start_processor(settings: RunSettings, config: OspreyTPConfig) -> OspreyTPProcessor | None:
    """The processor that the run would render conversations with, in the stage's template; None if it is not there."""
    template = settings.resolved_stage.template
    if settings.model is not None:
        if not (Path(settings.model) / "processor_config.json").is_file():
            return None
        processor = OspreyTPProcessor.from_pretrained(settings.model, **OWN_FILES_ALONE)
        if template is not None:
            processor.chat_template = chat_template(template)
        return processor
    tokenizer = _tokenizer(settings.language_model)
    if tokenizer is None:
        return None
    add_region_tokens(tokenizer)
    kept = getattr(settings, "model_template", "vicuna_v1")
    return OspreyTPProcessor.from_config(config, tokenizer, template or kept)


def _with_geometry(make: Callable[..., OspreyTPConfig], choices: Mapping[str, Any]) -> OspreyTPConfig:
    try:
        return make(**choices)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _sub_configuration(name: str, folder: str | None) -> PreTrainedConfig:
    return AutoConfig.from_pretrained(_with_configuration(name, folder), **OWN_FILES_ALONE)


def _with_configuration(name: str, folder: str | None) -> Path:
    path = Path(folder or "")
    if not (path / "config.json").is_file():
        raise ValueError(f"{name} {folder} holds no config.json; name a folder that has one, or give --size vicuna-7b")
    return path


def _tokenizer(folder: str | None) -> Any:
    names = ("tokenizer.json", "tokenizer.model")
    if folder is None or not any((Path(folder) / name).is_file() for name in names):
        return None
    return AutoTokenizer.from_pretrained(folder, **OWN_FILES_ALONE)


def _unused_ids(language: PreTrainedConfig) -> dict[str, int]:
    """Ids of placeholders and separators where there is no tokenizer to ask; which they are costs nothing."""
    rows = language.get_text_config().vocab_size
    return {
        "region_token_id": rows,
        "image_token_id": rows + 1,
        "tile_separator_token_id": 0,
        "row_separator_token_id": 1,
    }
