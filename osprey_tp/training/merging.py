"""From what a run with adapters wrote to a plain model folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from osprey_tp.configuration import OspreyTPConfig
from osprey_tp.files import folder_aside
from osprey_tp.model_folder import ADAPTER_FOLDER
from osprey_tp.modeling import OspreyTPForConditionalGeneration
from osprey_tp.outside import OWN_FILES_ALONE
from osprey_tp.processing import OspreyTPProcessor
from osprey_tp.training.adapters import ADAPTER_WEIGHTS
from osprey_tp.training.arguments import load_settings
from osprey_tp.training.outputs import SETTINGS_FILE
from osprey_tp.training.start import load_start


def merge(run: Path, out: Path, overrides: Sequence[str] = ()) -> None:
    """Add the adapters of a run to the weights that they adapt, and write a plain model folder.

    The start model is read again in float32, also where the run held it in 4 bits.

    Args:
        run: What a run with adapters wrote.
        out: Folder to make; it appears when it is complete.
        overrides: `key=value` settings above those of the run, such as `model=...` for a start model that has moved.

    Raises:
        ValueError: if `run` holds no adapters, `out` exists, or the start model is not what the run started from.
        OSError: if a file cannot be read.
    """
    if out.exists():
        raise ValueError(f"{out} exists; remove it, or name another folder")
    for name in (f"{ADAPTER_FOLDER}/{ADAPTER_WEIGHTS}", SETTINGS_FILE):
        if not (run / name).is_file():
            raise ValueError(f"{run} is not what a run with adapters wrote, it lacks {name}")
    model, processor = merged(run, overrides)
    with folder_aside(out) as aside:
        model.save_pretrained(aside)
        processor.save_pretrained(aside)
        for file in (*run.glob("*.yaml"), *run.glob("train*.json")):
            shutil.copyfile(file, aside / file.name)


def merged(run: Path, overrides: Sequence[str] = ()) -> tuple[OspreyTPForConditionalGeneration, OspreyTPProcessor]:
    """The start model of a run with its trained parts and adapters in it, and the run's processor.

    Raises:
        ValueError: if the start model does not fit what was trained.
    """
    from peft import PeftModel

    settings = load_settings(run / SETTINGS_FILE, overrides)
    model, _ = load_start(
        replace(settings, adapter=None, initial_parts=tuple(map(str, (*settings.initial_parts, run))))
    )
    if _shape(model.config) != _shape(OspreyTPConfig.from_pretrained(run)):
        raise ValueError(
            f"{settings.model or settings.language_model} has another configuration than the model that {run} started "
            "from; name that model with model=..."
        )
    PeftModel.from_pretrained(model.model.language_model, str(run / ADAPTER_FOLDER)).merge_and_unload(safe_merge=True)
    return model, OspreyTPProcessor.from_pretrained(run, **OWN_FILES_ALONE)


def _shape(config: OspreyTPConfig) -> Any:
    """All that a configuration says of modules and sizes."""
    return _without(config.to_dict(), ("dtype", "architectures", "transformers_version", "_name_or_path"))


def _without(value: Any, names: Sequence[str]) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without(inner, names) for name, inner in value.items() if name not in names}
