"""Opens what an evaluation works on: the model that is asked, the records it is asked about."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.asking import MOST_PICTURE_BYTES, Describer
from eval.questions import Records
from osprey_tp.outside import read_json

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
    manifest = read_json(folder / "manifest.json")
    return str(manifest.get("source", "")) if isinstance(manifest, dict) else ""


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


def room_for_pictures(describer: Describer) -> int:
    """Bytes for open pictures: on a GPU a quarter of what the weights leave of it, else `MOST_PICTURE_BYTES`."""
    model = getattr(describer, "model", None)
    if model is None or model.device.type != "cuda":
        return MOST_PICTURE_BYTES
    import torch

    weights = sum(parameter.nbytes for parameter in model.parameters())
    return max(0, torch.cuda.get_device_properties(model.device).total_memory - weights) // 4


def _require_region_encoder(folder: Path) -> None:
    """Refuse what would be loaded with a region encoder of random weights."""
    try:
        config = read_json(folder / "config.json")
    except FileNotFoundError:
        return  # RegionDescriber says what a model folder needs
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
    from osprey_tp.weights import list_weights

    return [name for path in sorted(folder.glob(WEIGHTS)) for name in list_weights(path)]


def own_device(device: str | None) -> str | None:
    """`cuda` becomes the GPU of this process's number on its machine, so that processes do not share one."""
    own = os.environ.get("LOCAL_RANK")
    if own is None or device not in (None, "cuda"):
        return device
    import torch

    return f"cuda:{int(own) % torch.cuda.device_count()}" if torch.cuda.is_available() else device
