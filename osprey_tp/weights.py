"""Weights in files from outside: listed without reading them, read one file at a time.

All weights that transformers does not load itself come through here. Files are hostile until parsed: `.bin` files are
read with `weights_only`, so that no object but tensors is ever built from them, and an index may name files of its own
folder alone.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from osprey_tp.outside import one_line, read_json

_FAMILIES = (("model", ".safetensors"), ("pytorch_model", ".bin"))
"""Stems and suffixes of transformers' files of weights; the first that a folder has is read."""

Outline = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of a weight."""

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
_SHOWN = 3


@dataclass(frozen=True)
class StoredWeight:
    """A weight in a file, not read yet.

    Attributes:
        file: Where it lies.
        name: What it is called there.
        shape: As stored.
        dtype: As stored.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def few(names: Iterable[str]) -> str:
    """The first few of `names`, sorted, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return one_line(", ".join(ordered[:_SHOWN])) + more


def holds_weights(folder: Path) -> bool:
    """Whether a folder holds files of a whole model's weights, or the index of such files."""
    return any(next(folder.glob(f"{stem}*{suffix}*"), None) for stem, suffix in _FAMILIES)


def list_weights(place: Path) -> dict[str, StoredWeight]:
    """What a model folder or a single file holds, by name; the weights themselves are not read.

    Raises:
        ValueError: if a file is no whole file of weights, or a shard is missing.
        OSError: if a file cannot be read.
    """
    if place.is_file():
        return _list_file(place)
    index = next((path for stem, suffix in _FAMILIES if (path := place / f"{stem}{suffix}.index.json").is_file()), None)
    if index is not None:
        return _list_indexed(place, index)
    weights: dict[str, StoredWeight] = {}
    for file in _files_without_index(place):
        weights |= _list_file(file)
    return weights


def _files_without_index(folder: Path) -> list[Path]:
    """The one file of weights of a folder, or its shards where their index was lost."""
    for stem, suffix in _FAMILIES:
        if (folder / f"{stem}{suffix}").is_file():
            return [folder / f"{stem}{suffix}"]
        shards = sorted(path for path in folder.glob(f"{stem}-*{suffix}") if _SHARD.search(path.stem))
        if shards:
            total = int(_SHARD.findall(shards[0].stem)[0][1])
            expected = {f"{stem}-{number:05d}-of-{total:05d}{suffix}" for number in range(1, total + 1)}
            _require_shards(folder, expected)
            return shards
    raise ValueError(
        f"{folder} holds no weights (model.safetensors, pytorch_model.bin, or shards of them with their index); name "
        "the folder of a checkpoint"
    )


def _list_indexed(folder: Path, index: Path) -> dict[str, StoredWeight]:
    """What the shards of an index hold."""
    try:
        places = read_json(index)["weight_map"]
        shards = sorted(set(places.values()))
        outside = [shard for shard in shards if Path(shard).name != shard or "\0" in shard]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of weights; copy it again") from error
    if outside:
        raise ValueError(
            f"{index} names {one_line(repr(outside[0]))}, which is no file of its folder; get the checkpoint elsewhere"
        )
    _require_shards(folder, shards)
    weights: dict[str, StoredWeight] = {}
    for shard in shards:
        weights |= _list_file(folder / shard)
    lost = places.keys() - weights.keys()
    if lost:
        raise ValueError(
            f"{folder}: {len(lost)} of {len(places)} weights of {index.name} are in no shard ({few(lost)}); copy the "
            "whole checkpoint again"
        )
    return weights


def _require_shards(folder: Path, names: Iterable[str]) -> None:
    expected = list(names)
    missing = [name for name in expected if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {len(expected)} shards ({few(missing)}); copy the whole checkpoint again"
        )


def _list_file(file: Path) -> dict[str, StoredWeight]:
    if file.suffix == ".safetensors":
        with _whole(file), safe_open(file, framework="pt") as opened:
            listed = {}
            for name in opened.keys():  # noqa: SIM118 - no mapping
                part = opened.get_slice(name)
                listed[name] = StoredWeight(file, name, tuple(part.get_shape()), _DTYPES[part.get_dtype()])
            return listed
    return {name: StoredWeight(file, name, tuple(w.shape), w.dtype) for name, w in read_torch(file).items()}


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(file: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """The weights of a safetensors file whose names are wanted, mapped from the file.

    Raises:
        ValueError: if it is not whole.
        OSError: if it cannot be read.
    """
    with _whole(file), safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys() if wanted(name)}  # noqa: SIM118 - no mapping


def read_torch(file: Path) -> dict[str, Tensor]:
    """A file of `torch.save` that holds tensors by name and nothing else; no other object is ever built from it.

    The tensors are mapped from the file where its format allows that, and take memory when they are used.

    Raises:
        ValueError: if it holds anything else, or is not whole.
        OSError: if it cannot be read.
    """
    with _whole(file):
        can_be_mapped = zipfile.is_zipfile(file)  # torch's format since 1.6
        weights: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=can_be_mapped)
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise ValueError(f"{file} must hold tensors by name, and nothing else; name a file of weights")
    return {str(name): weight for name, weight in weights.items()}


@contextmanager
def _whole(file: Path) -> Iterator[None]:
    """Turn what readers raise at files that are no files of weights into one line that names the file."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # a foreign file can make torch raise anything
        if file.suffix == ".safetensors":
            raise ValueError(f"{file} is no whole safetensors file ({one_line(error)}); copy it again") from error
        raise ValueError(
            f"{file} is no file of weights alone, or not all of it; copy it again, or give safetensors"
        ) from error


class WeightReader:
    """Reads weights one at a time and keeps one file open, so that memory holds one file of weights at most."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._read: Callable[[str], Tensor] | None = None

    def read(self, weight: StoredWeight) -> Tensor:
        """The weight, mapped from its file where the format allows that."""
        if weight.file != self._file or self._read is None:
            self._file, self._read = None, None
            with _whole(weight.file):
                if weight.file.suffix == ".safetensors":
                    self._read = safe_open(weight.file, framework="pt").get_tensor
                else:
                    self._read = read_torch(weight.file).__getitem__
            self._file = weight.file
        with _whole(weight.file):
            return self._read(weight.name)
