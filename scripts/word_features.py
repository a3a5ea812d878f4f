"""Features of a picture as a perfect tower and perfect projections would give them: the words of what is in each cell.

A tiny language model learns to read visual tokens and region tokens from these before it meets real ones, as a large
language model has learned to read before it is joined to CLIP. The features take the places of the tower, the projector
and the region encoder; all that lies between them (layout, separators, pooling) is the model's own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from data_pipelines.dataset import ConversationDataset
from data_pipelines.records import RecordFolder
from osprey_tp.modeling import OspreyTPFeatures, OspreyTPForConditionalGeneration
from osprey_tp.processing import IGNORED_LABEL, OspreyTPProcessor
from osprey_tp.region_encoder import pool
from osprey_tp.tiling import count_tiles
from osprey_tp.training.collator import ConversationCollator

NamedRegion = tuple[dict[str, Any], str]
"""COCO's compressed RLE in source pixels, and the name of what it shows."""


@dataclass
class NamedRegions:
    """What is where in each picture, collected from all records that name regions of it."""

    _of_picture: dict[str, dict[str, NamedRegion]] = field(default_factory=lambda: defaultdict(dict))

    @classmethod
    def collect(cls, folders: Sequence[RecordFolder]) -> NamedRegions:
        """Read the names of all regions of all records; the same mask counts once a picture."""
        found = cls()
        for folder in folders:
            for record in folder:
                for region in record.regions:
                    if region.name:
                        known = found._of_picture[str(folder.image_path(record))]
                        known[region.segmentation["counts"]] = (region.segmentation, region.name)
        return found

    def all(self) -> list[str]:
        """The names of all regions of all pictures, each as often as it occurs."""
        return [name for picture in self._of_picture.values() for _, name in picture.values()]

    def of(self, picture: str) -> list[NamedRegion]:
        """The named regions of the picture at that path."""
        return list(self._of_picture.get(picture, {}).values())


class WordSamples(Dataset):
    """The samples of a `ConversationDataset`, each with the named regions of its picture."""

    def __init__(self, dataset: ConversationDataset, names: NamedRegions) -> None:
        self.dataset = dataset
        self.names = names

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`{"id", "conversation", "named", "size"}`; size is (height, width) of the picture."""
        folder, record, _ = self.dataset.record(index)
        named = self.names.of(str(folder.image_path(record)))
        return {**self.dataset[index], "named": named, "size": (record.height, record.width)}


@dataclass(frozen=True)
class WordCollator:
    """A batch as training has it, and for every named region its words and the cells it covers."""

    processor: OspreyTPProcessor

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collate `WordSamples`; adds word_ids (N, words), zero beyond a name's end, word_coverage (N, cells) and
        word_image_index (N,) for the N named regions of all pictures.
        """
        batch = ConversationCollator(self.processor)(samples)
        batch.pop("pixel_values")
        tiling = self.processor.image_processor.tiling
        plans = [tiling.plan(*sample["size"]) for sample in samples]
        regions = [[mask for mask, _ in sample["named"]] for sample in samples]
        covered = self.processor.image_processor.cover_regions(regions, plans)
        names = [name for sample in samples for _, name in sample["named"]]
        ids = [torch.tensor(self.processor.tokenizer.encode(name, add_special_tokens=False)) for name in names]
        return batch | {
            "word_ids": nn.utils.rnn.pad_sequence(ids, batch_first=True),
            "word_coverage": covered["region_coverage"],
            "word_image_index": covered["region_image_index"],
        }


def name_batch(names: Sequence[str], processor: OspreyTPProcessor) -> dict[str, Tensor]:
    """Each name as the answer to its own region token and nothing else: `<s><mask> striped red ring</s>`."""
    tokenizer = processor.tokenizer
    ids = [torch.tensor(tokenizer.encode(name, add_special_tokens=False)) for name in names]
    lead = torch.tensor([tokenizer.bos_token_id, processor.region_token_id])
    end = torch.tensor([tokenizer.eos_token_id])
    answers = nn.utils.rnn.pad_sequence(
        [torch.cat([lead, name, end]) for name in ids], batch_first=True, padding_value=IGNORED_LABEL
    )
    seen = answers != IGNORED_LABEL
    labels = answers.clone()
    labels[:, : len(lead)] = IGNORED_LABEL
    word_ids = nn.utils.rnn.pad_sequence(ids, batch_first=True)
    return {
        "input_ids": answers.masked_fill(~seen, 0),
        "attention_mask": seen.long(),
        "labels": labels,
        "word_ids": word_ids,
    }


class NoisyNorm(nn.Module):
    """LayerNorm, noise of a strength drawn for each token from 0 to `noise`, and the LayerNorm that ends the real part.

    The bias of that last LayerNorm is the embedding of the placeholder: it tells region tokens and visual tokens from
    words, and the real part starts with it (`hand_over`).
    """

    def __init__(self, embedding: nn.Embedding, placeholder: int, scale: float) -> None:
        super().__init__()
        self.embedding, self.placeholder = embedding, placeholder
        self.scale, self.noise = scale, 0.0

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, D) to (N, D)."""
        shape = tokens.shape[-1:]
        strength = self.noise * torch.rand(tokens.shape[:-1], device=tokens.device)
        noisy = functional.layer_norm(tokens, shape) + strength[..., None] * torch.randn_like(tokens)
        return functional.layer_norm(noisy, shape) * self.scale + self.embedding.weight[self.placeholder]


class WordProjector(nn.Module):
    """Visual tokens as the mean words of their block of cells."""

    def __init__(self, cells_per_side: int, scale_factor: int, norm: NoisyNorm) -> None:
        super().__init__()
        self.grid = (cells_per_side // scale_factor, scale_factor) * 2
        self.norm = norm

    def forward(self, features: Tensor) -> Tensor:
        """(1, tiles, n·n, D) to (tiles, (n/s)², D)."""
        blocks = features[0].unflatten(1, self.grid).mean(dim=(2, 4))  # (tiles, n/s, n/s, D)
        return self.norm(blocks.flatten(1, 2))


class WordRegionEncoder(nn.Module):
    """Region tokens as the mean words of the cells that a region covers."""

    def __init__(self, norm: NoisyNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, features: Tensor, coverage: Tensor, first_cells: Tensor, shapes: Tensor | None = None) -> Tensor:
        """As `RegionEncoder.forward`, on features (1, tiles, n·n, D)."""
        return self.norm(pool(features.flatten(1, 2), coverage, first_cells)[0])


class WordFeatures:
    """Makes a model's features from words.

    Args:
        model: Its projector and region encoder are replaced; its tower is not used.
    """

    def __init__(self, model: OspreyTPForConditionalGeneration) -> None:
        config = model.config
        embedding, scale = _embedding(model), config.output_norm_scale or 1.0
        self.model = model
        self.norms = [NoisyNorm(embedding, token, scale) for token in (config.image_token_id, config.region_token_id)]
        with torch.no_grad():
            for norm in self.norms:
                embedding.weight[norm.placeholder].normal_(std=scale)
        model.model.projector = WordProjector(config.tiling.cells_per_side, config.tiling.scale_factor, self.norms[0])
        model.model.region_encoder = WordRegionEncoder(self.norms[1])

    def set_noise(self, noise: float) -> None:
        """Set the most noise of a token, relative to its words."""
        for norm in self.norms:
            norm.noise = noise

    def __call__(self, batch: Mapping[str, Tensor]) -> OspreyTPFeatures:
        """Features of a batch of `WordCollator`, or of `name_batch`, where each name is one region token."""
        if "tile_grids" not in batch:
            return OspreyTPFeatures(region_tokens=self.norms[1](self._words(batch["word_ids"])))
        cells, grids = self._cells(batch), batch["tile_grids"]
        parts = self.model.model
        regions = None
        if len(batch["region_coverage"]):
            regions = parts.region_tokens(cells, grids, batch["region_coverage"], batch["region_image_index"])
        return OspreyTPFeatures(pooler_output=parts.visual_tokens(cells, grids), region_tokens=regions)

    def _words(self, word_ids: Tensor) -> Tensor:
        """(N, words) to (N, D): the sum of each name's words, of variance 1."""
        words = (self.model.get_input_embeddings()(word_ids) * (word_ids != 0)[..., None]).sum(dim=1)
        return functional.layer_norm(words, words.shape[-1:])

    def _cells(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(1, tiles, n·n, D): the words of every cell; the thumbnail's cells and the background have none."""
        words = self._words(batch["word_ids"])
        tiling = self.model.config.tiling
        of_tile = tiling.cells_per_tile
        tiles = [count_tiles(rows, cols, tiling.thumbnail) for rows, cols in batch["tile_grids"].tolist()]
        cells = words.new_zeros(len(tiles), max(tiles) * of_tile, words.shape[-1])
        covered = batch["word_coverage"]  # (N, cells of the largest picture, thumbnail excluded)
        cells[:, : covered.shape[1]].index_add_(0, batch["word_image_index"], covered[..., None] * words[:, None])
        of_picture = [row[: count * of_tile] for row, count in zip(cells, tiles, strict=True)]
        return torch.cat(of_picture).unflatten(0, (-1, of_tile))[None]


def hand_over(model: OspreyTPForConditionalGeneration) -> None:
    """Let the norms that end a new projector and region encoder begin with what told their tokens from words."""
    embedding = _embedding(model).weight
    parts = {
        model.config.image_token_id: model.model.projector,
        model.config.region_token_id: model.model.region_encoder,
    }
    with torch.no_grad():
        for placeholder, part in parts.items():
            part.output_norm.bias.copy_(embedding[placeholder])


def _embedding(model: OspreyTPForConditionalGeneration) -> nn.Embedding:
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    return embedding
