"""Opens what an evaluation works on: the model that is asked, the records it is asked about."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.questions import Records

if TYPE_CHECKING:
    from osprey_tp.describer import RegionDescriber

WEIGHTS = "model*.safetensors"


def require_prepared(folder: Path) -> None:
    """Refuse a folder that was not made by `python -m data_pipelines prepare`.

    Raises:
        FileNotFoundError: it is none.
    """
    if not (folder / "manifest.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no manifest.json; prepare the data with `python -m data_pipelines prepare`"
        )


def open_records(folder: Path) -> Records:
    """The records of a prepared folder.

    Raises:
        FileNotFoundError: as `require_prepared`.
    """
    require_prepared(folder)
    from data_pipelines.records import RecordFolder

    records: Records = RecordFolder.open(folder)
    return records


def source_of(folder: Path) -> str:
    """The source that the records of a folder were prepared from, such as `lvis`; "" where its manifest names none."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    return str(manifest.get("source", ""))


def load_describer(
    folder: Path, device: str | None = None, dtype: str | None = None, **choices: Any
) -> RegionDescriber:
    """Load a model folder.

    Args:
        folder: as training or `scripts.convert` wrote it.
        device: by default a GPU if there is one; of several processes on a machine, each takes the GPU of its number.
        dtype: by default the one of the weights.
        choices: as of `RegionDescriber.from_pretrained`.

    Raises:
        ValueError: the folder holds another kind of model, or one without a region encoder.
        OSError: the folder or a part of it is missing.
    """
    _require_region_encoder(folder)
    from osprey_tp.describer import RegionDescriber

    own = device if choices.get("device_map") else own_device(device)
    return RegionDescriber.from_pretrained(folder, own, dtype, **choices)


def _require_region_encoder(folder: Path) -> None:
    """Refuse what would be loaded with a region encoder of random weights."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except FileNotFoundError:
        return  # RegionDescriber says what a model folder needs
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} is no JSON: {error}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "osprey_tp":
        raise ValueError(
            f"{folder} holds a model of type {kind!r}; needed is an osprey_tp model as training or scripts.convert "
            "writes it"
        )
    names = _weight_names(folder)
    if names and not any(".region_encoder." in name for name in names):
        raise ValueError(
            f"{folder} has no region encoder ({len(names)} weights, none of model.region_encoder); give a model that "
            "went through stage 2"
        )


def _weight_names(folder: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    names: list[str] = []
    for path in sorted(folder.glob(WEIGHTS)):
        try:
            with safe_open(path, framework="numpy") as file:
                names += file.keys()
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
    return names


def own_device(device: str | None) -> str | None:
    """`cuda` becomes the GPU of this process's number on its machine, so that processes do not share one."""
    own = os.environ.get("LOCAL_RANK")
    if own is None or device not in (None, "cuda"):
        return device
    import torch

    return f"cuda:{int(own) % torch.cuda.device_count()}" if torch.cuda.is_available() else device
