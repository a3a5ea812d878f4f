"""Prepared folders as one data set of conversations, in an order that depends on seed and epoch alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from data_pipelines.conversations import conversation_of
from data_pipelines.length_order import stored_lengths
from data_pipelines.lengths import Wording
from data_pipelines.mixtures import EpochOrder, FolderLike, Mixture, MixtureFolder
from data_pipelines.prompts import PROMPT_STYLES, PromptStyle
from data_pipelines.records import Purpose, RecordFolder, RegionRecord
from osprey_tp.images import load_image
from osprey_tp.training.samples import UnusableSample

if TYPE_CHECKING:
    from osprey_tp.processing import OspreyTPProcessor

SampleIndex = int | tuple[int, int]
"""(epoch, place in the order of that epoch), as `osprey_tp.training.sampler.EpochSampler` gives; a place alone is one
of epoch 0. Because the index carries the epoch, worker processes never need to be told which one it is."""


class ConversationDataset(Dataset[dict[str, Any]]):
    """The records of a mixture as conversations, map-style.

    Args:
        mixture: A mixture, or what `Mixture.of` takes: folders, (folder, weight) pairs, a mapping from folder to
            weight.
        prompt_style: `clean` or `published` wording, where the mixture does not say.
        seed: Of order and subsets, where the mixture does not say.
        max_regions: Most regions in one conversation, where the source and the mixture allow more.
        paraphrase: Vary the wording of the sources' own questions.
        shuffle: Mix the records; otherwise they come folder by folder.
        purpose: `evaluation` takes folders for evaluation too.

    Raises:
        ValueError: for no folder, a folder that is not one of records for `purpose`, a weight that is not positive.
    """

    def __init__(
        self,
        mixture: Mixture | Sequence[FolderLike | tuple[FolderLike, float]] | Mapping[Any, float],
        prompt_style: PromptStyle = "clean",
        seed: int = 0,
        max_regions: int | None = None,
        *,
        paraphrase: bool = True,
        shuffle: bool = True,
        purpose: Purpose = "training",
    ) -> None:
        if prompt_style not in PROMPT_STYLES:
            raise ValueError(f"unknown prompt style {prompt_style!r}; choose from {', '.join(PROMPT_STYLES)}")
        self.mixture = mixture if isinstance(mixture, Mixture) else Mixture.of(mixture)
        self.folders = [entry.open(purpose) for entry in self.mixture.folders]
        self.prompt_style = prompt_style
        self.max_regions = max_regions
        self.paraphrase = paraphrase
        records = [len(folder) for folder in self.folders]
        samples = [entry.samples(count) for entry, count in zip(self.mixture.folders, records, strict=True)]
        seed = seed if self.mixture.seed is None else self.mixture.seed
        self.order = EpochOrder(records, samples, seed, shuffle)

    def __len__(self) -> int:
        """Samples in an epoch, the same in all."""
        return len(self.order)

    def record(self, index: SampleIndex) -> tuple[RecordFolder, RegionRecord, int]:
        """The folder, the record at this place of its epoch's order, and which pass over the record this is.

        Raises:
            IndexError: beyond the end of the epoch.
        """
        number, record, seen = self._find(index)
        return self.folders[number], record, seen

    def __getitem__(self, index: SampleIndex) -> dict[str, Any]:
        """The sample `{"id": str, "conversation": messages}`, its picture, if it has one, opened (PIL, RGB).

        Raises:
            UnusableSample: if the picture cannot be opened or has another size than the record says, or the record
                makes no conversation.
            ValueError: if the record cannot be read.
        """
        number, record, seen = self._find(index)
        entry = self.mixture.folders[number]
        picture = _opened_picture(self.folders[number], record) if record.has_image else None
        try:
            conversation = conversation_of(
                record,
                picture,
                prompt_style=entry.prompt_style or self.prompt_style,
                epoch=seen,
                max_regions=_lower(entry.max_regions, self.max_regions),
                paraphrase=self.paraphrase,
            )
        except ValueError as error:
            raise UnusableSample(record.id, str(error)) from error
        return {"id": record.id, "conversation": conversation}

    def manifests(self) -> dict[str, Any]:
        """The manifest of every folder by its path."""
        return {str(folder.path): folder.manifest for folder in self.folders}

    def group_by_length(
        self, processor: OspreyTPProcessor, batch: int, spare: Path, epochs: int = 1, processes: int = 1
    ) -> None:
        """Put samples of alike length into one batch from now on; lengths that are not stored yet are measured.

        Args:
            processor: Renders the samples as training does.
            batch: Samples of all processes in one optimiser step; the order depends on it, and on nothing else new.
            spare: Folder that keeps the lengths of records in a folder that cannot be written to.
            epochs: How many epochs to measure; a record is worded anew in each.
            processes: Measure in so many processes, if there are many records.
        """
        lengths = []
        for entry, folder, passes in zip(self.mixture.folders, self.folders, self.order.passes(epochs), strict=True):
            limit = _lower(entry.max_regions, self.max_regions)
            wordings = [
                Wording(entry.prompt_style or self.prompt_style, number, limit, self.paraphrase)
                for number in range(passes if self.paraphrase else 1)
            ]
            measured = [stored_lengths(folder, processor, wording, spare, processes) for wording in wordings]
            lengths.append(np.stack(measured))
        self.order.group_by_length(lengths, batch)

    def description(self) -> dict[str, Any]:
        """What decides the samples and their order, in values that JSON can hold; equal for equal samples."""
        entries = zip(self.mixture.folders, self.folders, self.order.samples, strict=True)
        return {
            "seed": self.order.seed,
            "samples": len(self),
            "folders": [self._describe(entry, folder, samples) for entry, folder, samples in entries],
        }

    def _describe(self, entry: MixtureFolder, folder: RecordFolder, samples: int) -> dict[str, Any]:
        return {
            "path": str(folder.path),
            "images": str(folder.image_root),
            "records": len(folder),
            "samples": samples,
            "max_regions": _lower(entry.max_regions, self.max_regions),
            "prompt_style": entry.prompt_style or self.prompt_style,
            "shards": {shard["name"]: shard["sha256"] for shard in folder.manifest["shards"]},
        }

    def _find(self, index: SampleIndex) -> tuple[int, RegionRecord, int]:
        """Number of the folder, the record, and which pass over it this is."""
        epoch, place = index if isinstance(index, tuple) else (0, index)
        number, record, seen = self.order.at(epoch, place)
        return number, self.folders[number][record], seen


def _lower(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _opened_picture(folder: RecordFolder, record: RegionRecord) -> Image.Image:
    try:
        image = load_image(folder.image_path(record))
    except (OSError, ValueError) as error:
        raise UnusableSample(record.id, str(error), missing_image=True) from error
    if image.size != (record.width, record.height):
        raise UnusableSample(
            record.id,
            f"picture {record.image} has {image.height} x {image.width} pixels (height x width), the record says "
            f"{record.height} x {record.width}; prepare the folder again with these pictures",
            missing_image=True,
        )
    return image
