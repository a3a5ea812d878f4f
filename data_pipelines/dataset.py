"""Prepared folders as one data set of conversations, in a mixture, in an order that depends on seed and epoch alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from data_pipelines.conversations import conversation_of
from data_pipelines.prompts import PROMPT_STYLES, PromptStyle
from data_pipelines.records import RecordFolder, RegionRecord
from osprey_tp.images import load_image

FolderLike = str | Path | RecordFolder


class ConversationDataset(Dataset[dict[str, Any]]):
    """The records of several folders as conversations, map-style.

    Args:
        folders: Folders, or (folder, weight) pairs, or a mapping from folder to weight. The weight is how often each
            record is seen in an epoch: 2 sees each twice; 0.25 sees a quarter of them, drawn anew in every epoch.
        prompt_style: `clean` or `published` wording.
        seed: Of the order and of fractional weights.
        max_regions: Most regions in one conversation, where the source allows more.
        paraphrase: Vary the wording of the sources' own questions.
        shuffle: Mix the records; otherwise they come folder by folder.

    Raises:
        ValueError: for no folder, a folder that is not one of records, a weight that is not positive.
    """

    def __init__(
        self,
        folders: Sequence[FolderLike | tuple[FolderLike, float]] | Mapping[FolderLike, float],
        prompt_style: PromptStyle = "clean",
        seed: int = 0,
        max_regions: int | None = None,
        *,
        paraphrase: bool = True,
        shuffle: bool = True,
    ) -> None:
        if prompt_style not in PROMPT_STYLES:
            raise ValueError(f"unknown prompt style {prompt_style!r}; choose from {', '.join(PROMPT_STYLES)}")
        pairs = list(folders.items()) if isinstance(folders, Mapping) else [_with_weight(entry) for entry in folders]
        if not pairs:
            raise ValueError("a data set needs at least one folder of records")
        self.folders = [
            folder if isinstance(folder, RecordFolder) else RecordFolder.open(folder) for folder, _ in pairs
        ]
        self.weights = [_checked_weight(folder, weight) for folder, weight in pairs]
        self.prompt_style = prompt_style
        self.seed = seed
        self.max_regions = max_regions
        self.paraphrase = paraphrase
        self.shuffle = shuffle
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the order, the subsets and the wordings of another epoch; the length stays the same.

        Worker processes take it over when they are started, so it does not reach persistent ones.
        """
        self.epoch = epoch
        draws = [
            _draw(index, len(folder), weight, np.random.default_rng([self.seed, epoch, index]))
            for index, (folder, weight) in enumerate(zip(self.folders, self.weights, strict=True))
        ]
        self._order = np.concatenate(draws)
        if self.shuffle:
            np.random.default_rng([self.seed, epoch]).shuffle(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def record(self, index: int) -> tuple[RecordFolder, RegionRecord, int]:
        """The folder, the record at this place of the epoch's order, and which pass over the record this is.

        Raises:
            IndexError: beyond the end.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        folder_index, record_index, repeat = (int(value) for value in self._order[index])
        folder = self.folders[folder_index]
        passes = math.ceil(self.weights[folder_index])
        return folder, folder[record_index], self.epoch * passes + repeat

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample `{"id": str, "conversation": messages}`, its picture opened (PIL, RGB).

        Raises:
            ValueError: naming the record, if its picture cannot be opened or has another size than the record says.
        """
        folder, record, seen = self.record(index)
        try:
            image = load_image(folder.image_path(record))
        except (OSError, ValueError) as error:
            raise ValueError(f"{error} (record {record.id})") from error
        if image.size != (record.width, record.height):
            raise ValueError(
                f"the picture {record.image} has {image.height} x {image.width} pixels (height x width), the record "
                f"{record.height} x {record.width} (record {record.id}); prepare the folder again with these pictures"
            )
        conversation = conversation_of(
            record,
            image,
            prompt_style=self.prompt_style,
            epoch=seen,
            max_regions=self.max_regions,
            paraphrase=self.paraphrase,
        )
        return {"id": record.id, "conversation": conversation}


def _with_weight(entry: FolderLike | tuple[FolderLike, float]) -> tuple[FolderLike, float]:
    return entry if isinstance(entry, tuple) else (entry, 1.0)


def _checked_weight(folder: FolderLike, weight: float) -> float:
    if not (math.isfinite(weight) and weight > 0):
        name = folder.path if isinstance(folder, RecordFolder) else folder
        raise ValueError(f"the weight of {name} is {weight}; weights are positive numbers")
    return float(weight)


def _draw(folder: int, records: int, weight: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """(samples, 3): folder, record and number of the pass; whole passes first, then a subset for the fraction."""
    whole = math.floor(weight)
    part = round((weight - whole) * records)
    indices = np.concatenate([np.tile(np.arange(records), whole), np.sort(rng.permutation(records)[:part])])
    passes = np.concatenate([np.repeat(np.arange(whole), records), np.full(part, whole)])
    return np.stack([np.full_like(indices, folder), indices, passes], axis=1)
