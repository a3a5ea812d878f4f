"""Weights of single parts: out of a model folder, and into the model that a run starts from.

What is written is a folder with `parts.safetensors`, whose names begin with the part's (`projector.mlp.0.weight`), and
`parts.json`, which says how pictures were cut for them. Published files (`mm_projector.bin`) are read too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from osprey_tp.files import folder_aside
from osprey_tp.model_folder import ADAPTER_FOLDER
from osprey_tp.outside import read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from osprey_tp.configuration import OspreyTPConfig
    from osprey_tp.modeling import OspreyTPForConditionalGeneration

EXPORTABLE = ("projector", "region_encoder", "vision_tower")
"""Parts that files of their own can hold."""

PARTS_FILE = "parts.safetensors"
DESCRIPTION_FILE = "parts.json"

PartWeights = Mapping[str, Mapping[str, "Tensor"]]
"""State dicts by part."""

_DESCRIBED = (
    *("projector_type", "scale_factor", "feature_layers", "projector_feature_layers"),
    *("region_feature_layers", "region_fusion"),
)
"""What the shapes of the weights do not show."""
_MODEL = "model."


def export_parts(model: Path, out: Path, parts: Sequence[str]) -> dict[str, int]:
    """Write the weights of some parts of a model folder into a folder of their own; the rest is not read.

    Args:
        model: What a stage, `scripts.convert` or a run with adapters wrote.
        out: Folder to make.
        parts: Of `EXPORTABLE`.

    Returns:
        Number of parameters of every part.

    Raises:
        ValueError: for a part that cannot be exported or has no weights in `model`, or if `out` exists.
        OSError: if a file cannot be read.
    """
    from osprey_tp.configuration import OspreyTPConfig

    for part in parts:
        if part not in EXPORTABLE:
            raise ValueError(f"{part} cannot be exported; parts are {', '.join(EXPORTABLE)}")
    if out.exists():
        raise ValueError(f"{out} exists; remove it, or name another folder")
    if not (model / "config.json").is_file():
        raise ValueError(f"{model} is no model folder, it lacks config.json")
    weights = _weights_of_folder(model, parts)
    config = OspreyTPConfig.from_pretrained(model)
    with folder_aside(out) as aside:
        write_parts(aside, weights, config)
    return {part: sum(weight.numel() for weight in weights[part].values()) for part in parts}


def weights_of_parts(state: Mapping[str, Tensor], parts: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """The state dicts of `parts` from that of the whole model."""
    return {
        part: {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}
        for part in parts
        for prefix in [f"{_MODEL}{part}."]
    }


def write_parts(folder: Path, weights: PartWeights, config: OspreyTPConfig) -> None:
    """Write `parts.safetensors` and `parts.json` into `folder`."""
    from safetensors.torch import save_file

    flat = {f"{part}.{name}": weight for part, inner in weights.items() for name, weight in inner.items()}
    plain = {name: weight.detach().cpu().contiguous() for name, weight in flat.items()}
    save_file(plain, folder / PARTS_FILE, metadata={"format": "pt"})
    description = {
        "parts": {part: sum(weight.numel() for weight in inner.values()) for part, inner in weights.items()},
        **{name: getattr(config, name) for name in _DESCRIBED},
    }
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def load_parts(model: OspreyTPForConditionalGeneration, path: Path) -> tuple[str, ...]:
    """Read the weights of one part or several into a model; every part of the file must be complete.

    Args:
        model: Changed in place.
        path: A folder that `export_parts` wrote, its `parts.safetensors`, or a published `.bin` file.

    Returns:
        The parts that were read.

    Raises:
        ValueError: naming the file, where it does not fit the model.
        OSError: if it cannot be read.
    """
    file, parts = read_parts(path)
    _require_same_geometry(file, model.config)
    for part, weights in parts.items():
        _require_fit(getattr(model.model, part), part, weights, file)
    for part, weights in parts.items():
        copy_weights(getattr(model.model, part), weights)
    return tuple(parts)


def parts_in(path: Path) -> tuple[str, ...]:
    """The parts that a file holds weights of; arguments and errors as of `load_parts`."""
    return tuple(read_parts(path)[1])


def read_parts(path: Path) -> tuple[Path, PartWeights]:
    """The file of `load_parts` and what it holds, by our names."""
    from osprey_tp.conversion import parts_from_published
    from osprey_tp.weights import read_safetensors, read_torch

    file = path / PARTS_FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no file of parts {file}; initial_parts names what scripts.export_parts wrote")
    if file.suffix == ".safetensors":
        weights = read_safetensors(file)
        names = {name.partition(".")[0] for name in weights}
        if names and names <= set(EXPORTABLE):
            return file, {
                part: {
                    name.removeprefix(f"{part}."): weight
                    for name, weight in weights.items()
                    if name.startswith(f"{part}.")
                }
                for part in EXPORTABLE
                if part in names
            }
    else:
        weights = read_torch(file)
    if not weights:
        raise ValueError(f"{file} holds no weights")
    try:
        return file, parts_from_published(weights)
    except KeyError as error:
        raise ValueError(f"{file}: {error.args[0]}") from error


def _require_same_geometry(file: Path, config: OspreyTPConfig) -> None:
    """Compare what `parts.json` beside the file says with the model; shapes alone do not show the scale factor."""
    description = file.with_name(DESCRIPTION_FILE)
    if file.name != PARTS_FILE or not description.is_file():
        return
    saved = read_json(description)
    for name in _DESCRIBED:
        if name in saved and saved[name] != getattr(config, name):
            raise ValueError(
                f"{file} was trained with {name} {saved[name]}, and the model has {getattr(config, name)}; set "
                f"geometry.{name}={saved[name]}, or take other weights"
            )


def _require_fit(module: nn.Module, part: str, weights: Mapping[str, Tensor], file: Path) -> None:
    """Compare names and shapes of `weights` with those of `module`."""
    own: dict[str, Tensor] = module.state_dict(keep_vars=True)
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing:
        raise ValueError(f"{file} lacks {len(missing)} of {len(own)} weights of the {part}, among them {missing[0]}")
    if unknown:
        raise ValueError(f"{file} holds {unknown[0]}, which the model's {part} does not have")
    for name, weight in weights.items():
        shape = tuple(getattr(own[name], "ds_shape", own[name].shape))  # ZeRO-3 keeps the whole shape there
        if tuple(weight.shape) != shape:
            raise ValueError(
                f"{file} holds {part}.{name} with shape {tuple(weight.shape)}, the model needs {shape}; "
                "these weights are of another tower, language model or geometry"
            )


def copy_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy `weights` into `module`, in its own dtype; under ZeRO-3 those of the first process."""
    import torch

    own: dict[str, Tensor] = module.state_dict(keep_vars=True)
    with torch.no_grad(), _whole(module):
        for name, weight in weights.items():
            own[name].copy_(weight)


@contextmanager
def _whole(module: nn.Module) -> Iterator[None]:
    """Under ZeRO-3, gather the parameters of `module`, and divide them again as the first process left them."""
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(module.parameters()), modifier_rank=0):
        yield


def _weights_of_folder(model: Path, parts: Sequence[str]) -> PartWeights:
    """Weights of `parts` from the safetensors files of a model folder, or of one of a run with adapters."""
    from osprey_tp.weights import read_safetensors

    if (model / ADAPTER_FOLDER).is_dir():
        held = read_parts(model)[1]
        found = {part: dict(held.get(part, {})) for part in parts}
    else:
        state: dict[str, Tensor] = {}
        for file in sorted(model.glob("*.safetensors")):
            state |= read_safetensors(file, lambda name: name.startswith(tuple(f"{_MODEL}{part}." for part in parts)))
        found = weights_of_parts(state, parts)
    for part in parts:
        if not found[part]:
            raise ValueError(f"{model} holds no weights of the {part}")
    return found
