"""What the tiny tower is trained with and then leaves behind: linear heads on its features, and their loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from osprey_tp.tiny_tower import TinyTowerConfig
from scripts.tower_samples import ATTRIBUTES, Sample

ATTRIBUTE_WEIGHTS = (1.0, 1.0, 2.0)
"""Of texture, colour and shape in the loss: shape is by far the hardest."""

THUMBNAIL_WEIGHT, CELL_WEIGHT = 0.25, 0.5

_COUNTS = [len(words) for words in ATTRIBUTES.values()]
_SHAPES = _COUNTS[2]


class RegionHeads(nn.Module):
    """Linear heads that name texture, colour and shape.

    One reads region features as the region encoder makes them: pooled under the region, a linear map for each of the
    last four levels, summed. One reads the last level alone. One names the shape, or none, that each single cell shows.
    """

    def __init__(self, config: TinyTowerConfig) -> None:
        super().__init__()
        self.levels = range(max(0, config.num_hidden_layers - 3), config.num_hidden_layers + 1)
        self.all_levels = nn.ModuleList(nn.Linear(config.hidden_size, sum(_COUNTS)) for _ in self.levels)
        self.last_level = nn.Linear(config.hidden_size, sum(_COUNTS))
        self.cell = nn.Linear(config.hidden_size, _SHAPES + 1)

    def logits(self, features: Sequence[torch.Tensor], coverage: torch.Tensor) -> list[torch.Tensor]:
        """What each head says of the regions.

        Args:
            features: for each level (tiles, cells, hidden_size).
            coverage: (regions, tiles * cells).

        Returns:
            For all levels together and for the last level (regions, textures + colours + shapes).
        """
        weights = coverage / coverage.sum(dim=1, keepdim=True)
        pooled = [weights @ features[level].flatten(0, 1) for level in self.levels]
        together = torch.stack([head(level) for head, level in zip(self.all_levels, pooled, strict=True)]).sum(dim=0)
        return [together, self.last_level(pooled[-1])]

    def answers(self, features: Sequence[torch.Tensor], coverage: torch.Tensor) -> torch.Tensor:
        """(regions, 3): the likeliest texture, colour and shape, as all levels together tell them."""
        together, _ = self.logits(features, coverage)
        return torch.stack([part.argmax(dim=1) for part in together.split(_COUNTS, dim=1)], dim=1)

    def loss(self, features: Sequence[torch.Tensor], batch: Sample) -> torch.Tensor:
        """Cross-entropy of regions on tiles, of regions on thumbnails, and of single cells, weighted and summed."""
        on_tiles = self._region_loss(features, batch.tiles_coverage, batch.labels)
        on_thumbnails = self._region_loss(features, batch.thumbnail_coverage, batch.labels)
        return on_tiles + THUMBNAIL_WEIGHT * on_thumbnails + CELL_WEIGHT * self._cell_loss(features[-1], batch)

    def _region_loss(
        self, features: Sequence[torch.Tensor], coverage: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        losses = [
            weight * F.cross_entropy(part, label)
            for logits in self.logits(features, coverage)
            for part, label, weight in zip(
                logits.split(_COUNTS, dim=1), labels.unbind(dim=1), ATTRIBUTE_WEIGHTS, strict=True
            )
        ]
        return torch.stack(losses).sum()

    def _cell_loss(self, last_level: torch.Tensor, batch: Sample) -> torch.Tensor:
        """Cross-entropy against the shares of each cell's area that shapes, and nothing, take."""
        coverage = batch.tiles_coverage + batch.thumbnail_coverage
        shapes = F.one_hot(batch.labels[:, 2], _SHAPES).to(coverage.dtype)
        shares = coverage.T @ shapes  # (tiles * cells, shapes)
        nothing = (1 - shares.sum(dim=1, keepdim=True)).clamp(min=0)
        return F.cross_entropy(self.cell(last_level.flatten(0, 1)), torch.cat([shares, nothing], dim=1))
