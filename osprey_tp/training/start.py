"""The model that a run starts from."""

from __future__ import annotations

from pathlib import Path

import torch

from osprey_tp.modeling import OspreyTPForConditionalGeneration
from osprey_tp.processing import OspreyTPProcessor
from osprey_tp.training.arguments import RunSettings


def load_start(settings: RunSettings) -> tuple[OspreyTPForConditionalGeneration, OspreyTPProcessor]:
    """The start model in float32, and its processor.

    Raises:
        ValueError: for a folder that is no model folder, or whose processor does not fit the model.
    """
    folder = Path(settings.model or "")
    _require_model_folder(folder)
    model = OspreyTPForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    processor = OspreyTPProcessor.from_pretrained(folder, local_files_only=True)
    processor.check_fits(model.config)
    return model, processor


def _require_model_folder(folder: Path) -> None:
    needed = ("config.json", "processor_config.json")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} is no model folder, it lacks {' and '.join(missing)}; name what a stage or scripts.convert wrote"
        )
