"""Mixtures: which prepared folders a run sees, how often, and in which order.

```yaml
seed: 0                        # optional, else the run's
folders:
  - path: records/coco         # relative to this file
    weight: 2                  # how often each record is seen in an epoch; a fraction draws a subset anew every epoch
    images: /data/coco/train   # optional, replaces the folder of pictures that the manifest names
    max_regions: 10            # optional, most regions in one conversation
    prompt_style: published    # optional, else the run's
    limit: 100000              # optional, at most this many samples an epoch
```
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.length_order import grouped_by_length
from data_pipelines.prompts import PROMPT_STYLES, PromptStyle
from data_pipelines.records import Purpose, RecordFolder
from osprey_tp.outside import read_yaml

FolderLike = str | Path | RecordFolder


@dataclass(frozen=True)
class MixtureFolder:
    """How one prepared folder takes part in a mixture.

    Attributes:
        path: The folder, by its path or opened already.
        weight: How often each record is seen in an epoch: 2 sees each twice; 0.25 sees a quarter of them, drawn anew in
            every epoch.
        images: Folder of pictures in place of the one that the manifest names.
        max_regions: Most regions in one conversation.
        prompt_style: Wording of the sources' own questions; None leaves it to the run.
        limit: Most samples in an epoch; a folder that has more is drawn from anew in every epoch.
        where: What names this entry in error messages, such as `mixture.yaml: folders[0]`.
    """

    path: FolderLike
    weight: float = 1.0
    images: Path | None = None
    max_regions: int | None = None
    prompt_style: PromptStyle | None = None
    limit: int | None = None
    where: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            name = self.path.path if isinstance(self.path, RecordFolder) else self.path
            raise ValueError(f"{self._at('weight')}the weight of {name} is {self.weight}; weights are positive numbers")

    def open(self, purpose: Purpose = "training") -> RecordFolder:
        """The folder, memory-mapped; for evaluation, one for training will do too.

        Raises:
            ValueError: if it is no folder of records, one for evaluation although `purpose` is training, or its
                pictures' folder is missing.
        """
        if self.images is not None and not self.images.is_dir():
            raise ValueError(f"{self._at('images')}there is no folder {self.images}")
        folder = self.path if isinstance(self.path, RecordFolder) else self._opened(self.path)
        if folder.purpose == "evaluation" and purpose == "training":
            raise ValueError(
                f"{self._at('path')}{folder.path} is prepared for evaluation; training needs a folder with answers "
                "that no benchmark asks for"
            )
        return folder

    def samples(self, records: int) -> int:
        """Samples in an epoch, at least one, of a folder of that many records."""
        weighted = max(1, round(self.weight * records))
        return weighted if self.limit is None else min(weighted, self.limit)

    def _opened(self, path: str | Path) -> RecordFolder:
        try:
            return RecordFolder.open(path, self.images)
        except ValueError as error:
            raise ValueError(f"{self._at('path')}{error}") from error

    def _at(self, key: str) -> str:
        return f"{self.where}.{key}: " if self.where else ""


@dataclass(frozen=True)
class Mixture:
    """Folders, and the seed of their order; None leaves the seed to the run."""

    folders: tuple[MixtureFolder, ...]
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.folders:
            raise ValueError("a mixture needs at least one folder of records")

    @classmethod
    def of(cls, folders: Sequence[FolderLike | tuple[FolderLike, float]] | Mapping[Any, float]) -> Mixture:
        """The mixture of folders, of (folder, weight) pairs, or of a mapping from folder to weight."""
        pairs = folders.items() if isinstance(folders, Mapping) else map(_with_weight, folders)
        return cls(tuple(MixtureFolder(folder, weight) for folder, weight in pairs))


def is_mixture_file(path: str | Path) -> bool:
    """Whether the path is that of a mixture's YAML, not of a folder of records."""
    return Path(path).suffix in {".yaml", ".yml"}


def read_mixture(file: str | Path) -> Mixture:
    """Read a mixture from its YAML; no folder is opened yet.

    Raises:
        ValueError: naming file and key, for what is no mixture, an unknown or missing key, a value of a wrong type.
        OSError: if the file cannot be read.
    """
    file = Path(file)
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} is no mixture; it must hold `folders:` and, if wanted, `seed:`")
    _refuse_unknown(content, [field.name for field in fields(Mixture)], f"{file}")
    seed = content.get("seed")
    if seed is not None and not (_is_whole(seed) and seed >= 0):
        raise ValueError(f"{file}: seed must be a whole number from 0 on, not {seed!r}")
    entries = content.get("folders")
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{file}: folders must be a list of at least one folder, not {entries!r}")
    folders = tuple(_read_folder(entry, file, f"{file}: folders[{number}]") for number, entry in enumerate(entries))
    paths = [Path(str(folder.path)).resolve() for folder in folders]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise ValueError(f"{file}: folders[{number}].path: {path} stands twice; give it one entry with a weight")
    return Mixture(folders, seed)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _positive_whole(value: Any) -> int:
    if not _is_whole(value) or value < 1:
        raise ValueError
    return value


def _positive_number(value: Any) -> float:
    """The value as a number; YAML reads `1e-3` as text."""
    if isinstance(value, bool) or not 0 < float(value) < math.inf:
        raise ValueError
    return float(value)


def _style(value: Any) -> PromptStyle:
    return PROMPT_STYLES[PROMPT_STYLES.index(value)]


def _path(value: Any) -> Path:
    if not isinstance(value, str) or not value:
        raise ValueError
    return Path(value)


_KEYS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "path": ("a path", _path),
    "weight": ("a positive number", _positive_number),
    "images": ("a path", _path),
    "max_regions": ("a positive whole number", _positive_whole),
    "prompt_style": (" or ".join(PROMPT_STYLES), _style),
    "limit": ("a positive whole number", _positive_whole),
}
"""What an entry of `folders:` may hold: how its value is described, and how it is read."""


def _read_folder(entry: Any, file: Path, where: str) -> MixtureFolder:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must hold `path:` and more if wanted, not {entry!r}")
    _refuse_unknown(entry, list(_KEYS), where)
    if "path" not in entry:
        raise ValueError(f"{where} lacks path")
    values = {}
    for key, value in entry.items():
        expected, read = _KEYS[key]
        try:
            values[key] = read(value)
        except (TypeError, ValueError):
            raise ValueError(f"{where}.{key} must be {expected}, not {value!r}") from None
    for key in ("path", "images"):
        if key in values:
            values[key] = file.parent / values[key]
    return MixtureFolder(**values, where=where)


def _refuse_unknown(content: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    for key in content:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise ValueError(f"{where}: unknown key {key!r}; the nearest known one is {nearest!r}")


def _with_weight(entry: FolderLike | tuple[FolderLike, float]) -> tuple[FolderLike, float]:
    return entry if isinstance(entry, tuple) else (entry, 1.0)


class EpochOrder:
    """Which record stands at which place of which epoch; it depends on the arguments alone.

    The slots of an epoch are, folder by folder, as many whole passes over its records as its samples allow, then a
    subset for the rest, drawn anew in every epoch. Shuffling permutes the slots of all folders. What an epoch draws
    costs 4 bytes a sample; it is drawn once in each process and kept while the epoch lasts.

    Args:
        records: Number of records of each folder.
        samples: Number of samples of each folder in an epoch.
        seed: Of permutations and subsets.
        shuffle: Mix the samples; otherwise they come folder by folder, in the order of the records.
    """

    def __init__(self, records: Sequence[int], samples: Sequence[int], seed: int, shuffle: bool) -> None:
        self.records = tuple(records)
        self.samples = tuple(samples)
        self.seed = seed
        self.shuffle = shuffle
        self._ends = np.cumsum(samples)
        self._drawn: dict[int, _Draw] = {}
        self._lengths: list[NDArray[np.int32]] = []
        self._batch = 1

    def __len__(self) -> int:
        return int(self._ends[-1])

    def passes(self, epochs: int) -> list[int]:
        """How often so many epochs go through the records of each folder, those passes included that see a part."""
        counts = zip(self.samples, self.records, strict=True)
        return [epochs * math.ceil(samples / records) for samples, records in counts]

    def group_by_length(self, lengths: Sequence[NDArray[np.int32]], batch: int) -> None:
        """Let every `batch` neighbours be of alike length from now on (`data_pipelines.length_order`).

        Args:
            lengths: For each folder the lengths of its records in each pass, int32 (passes, records); later passes
                count as the last.
            batch: Samples of all processes in one optimiser step; the order depends on it.
        """
        self._lengths, self._batch = list(lengths), batch
        self._drawn.clear()

    def at(self, epoch: int, place: int) -> tuple[int, int, int]:
        """(folder, record, number of the pass over the record since the beginning) at a place of an epoch's order.

        Raises:
            IndexError: beyond the end of the epoch.
        """
        if not (0 <= place < len(self) and epoch >= 0):
            raise IndexError(f"sample {place} of epoch {epoch}, which has {len(self)}")
        draw = self._draw(epoch)
        slot = place if draw.permutation is None else int(draw.permutation[place])
        folder = int(np.searchsorted(self._ends, slot, side="right"))
        records, samples = self.records[folder], self.samples[folder]
        pass_number, record = divmod(slot - int(self._ends[folder]) + samples, records)
        if pass_number == samples // records:
            record = int(draw.subsets[folder][record])
        return folder, record, self.passes(epoch)[folder] + pass_number

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_drawn": {}}

    def _draw(self, epoch: int) -> _Draw:
        if epoch not in self._drawn:
            while len(self._drawn) > 1:
                self._drawn.pop(next(iter(self._drawn)))
            self._drawn[epoch] = self._drawn_anew(epoch)
        return self._drawn[epoch]

    def _drawn_anew(self, epoch: int) -> _Draw:
        subsets = []
        for folder, (records, samples) in enumerate(zip(self.records, self.samples, strict=True)):
            generator = np.random.default_rng([self.seed, epoch, folder])
            subsets.append(np.sort(generator.choice(records, samples % records, replace=False)).astype(np.int32))
        if not self.shuffle:
            return _Draw(None, subsets)
        generator = np.random.default_rng([self.seed, epoch])
        if self._lengths:
            return _Draw(grouped_by_length(self._slot_lengths(epoch, subsets), self._batch, generator), subsets)
        slots = np.arange(len(self), dtype=np.int32)
        generator.shuffle(slots)
        return _Draw(slots, subsets)

    def _slot_lengths(self, epoch: int, subsets: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
        """The length at every slot of an epoch."""
        slots = []
        for lengths, samples, first, subset in zip(
            self._lengths, self.samples, self.passes(epoch), subsets, strict=True
        ):
            whole = samples // lengths.shape[1]
            seen = np.minimum(np.arange(first, first + whole + 1), len(lengths) - 1)
            slots += [*lengths[seen[:-1]], lengths[seen[-1], subset]]
        return np.concatenate(slots)


@dataclass(frozen=True)
class _Draw:
    """What is random in one epoch: the slot at every place, None for all in order, and the subset of each folder."""

    permutation: NDArray[np.int32] | None
    subsets: list[NDArray[np.int32]]
