"""From the cells a region covers to its token of the prompt: Osprey-style mask pooling.

```
coverage (regions, cells) ─► rows that sum to 1 ─► weights (regions, cells of the batch)
levels (L, cells of the batch, C) ─► weights @ levels ─► (L, regions, C)
(L, regions, C) ─► one Linear a level, summed ─► [GELU, for `region_fusion: mlp`] ─► Linear ─► (regions, D)
```

A model with a spatial token gives every region a second token, of its shape alone: `SpatialEncoder`.

As `MaskExtractor` of the published code ("Osprey: Pixel Understanding with Visual Instruction Tuning", section 3.2),
but as one matrix product over the cells that the projector reads anyway: no feature map is put together, and there is
no loop over images, regions or levels. Which cells count, and how much, is the image processor's choice
(`region_pooling`); a region whose coverage is all zero pools to the zero vector, as published.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from osprey_tp.projectors.base import output_norm, read_levels

if TYPE_CHECKING:
    from osprey_tp.configuration import OspreyTPConfig


class SpatialEncoder(nn.Module):
    """Where a region lies and what form it has: its mask, shrunk to a square and flattened, through an MLP.

    The `<pos>` branch of Osprey's mask extractor (section 3.2), whose square has 112 pixels a side.

    Args:
        config: Sizes are read from it: the square's side, the tower's width C, the language model's width D.
    """

    def __init__(self, config: OspreyTPConfig) -> None:
        super().__init__()
        width = config.vision_config.hidden_size
        sizes = (config.spatial_side**2, width, width, config.text_config.hidden_size)
        self.layers = nn.ModuleList(nn.Linear(size, next_size) for size, next_size in pairwise(sizes))

    def forward(self, shapes: Tensor) -> Tensor:
        """Encode shapes (regions, side, side) as (regions, D)."""
        first, *rest = self.layers
        states = first(shapes.flatten(1).to(first.weight.dtype))  # type: ignore[arg-type]
        for layer in rest:
            states = layer(functional.relu(states))
        return states


class RegionEncoder(nn.Module):
    """Pool features under regions and turn each into one token, or two with a token of its shape.

    Args:
        config: Sizes are read from it: the tower's width C, the levels read (L of them), the language model's width D.
    """

    def __init__(self, config: OspreyTPConfig) -> None:
        super().__init__()
        width = config.vision_config.hidden_size
        self.levels = config.region_levels
        self.level_projections = nn.ModuleList(nn.Linear(width, width) for _ in self.levels)
        self.activation = nn.GELU() if config.region_fusion == "mlp" else nn.Identity()
        self.output = nn.Linear(width, config.text_config.hidden_size)
        self.spatial = SpatialEncoder(config) if config.spatial_token else None
        self.output_norm = output_norm(config)

    def forward(self, features: Tensor, coverage: Tensor, first_cells: Tensor, shapes: Tensor | None = None) -> Tensor:
        """Encode every region of the batch.

        Args:
            features: (levels, tiles, n·n, C), the tower's hidden states of all tiles of the batch.
            coverage: (regions, cells), how much of each cell of its own picture a region covers, tile-major, zero
                beyond the picture's last cell.
            first_cells: (regions,), index of the first cell of each region's picture among all cells of the batch.
            shapes: (regions, side, side), the regions' masks shrunk to a square; needed for a spatial token.

        Returns:
            (regions, D), or (2·regions, D) with a spatial token, which follows the first token of its region.

        Raises:
            ValueError: if there is a spatial token but no shapes.
        """
        pooled = pool(read_levels(features, self.levels).flatten(1, 2), coverage, first_cells)  # (levels, regions, C)
        projected = [project(level) for project, level in zip(self.level_projections, pooled, strict=True)]
        tokens = self.output(self.activation(torch.stack(projected).sum(dim=0)))
        if self.spatial is not None:
            if shapes is None:
                raise ValueError("regions come without region_shapes; pass all that the processor made")
            tokens = torch.stack([tokens, self.spatial(shapes).to(tokens.dtype)], dim=1).flatten(0, 1)
        return self.output_norm(tokens)


def pool(cells: Tensor, coverage: Tensor, first_cells: Tensor) -> Tensor:
    """Mean of the cells under each region, weighted by coverage.

    Args:
        cells: (levels, cells of the batch, C).
        coverage: (regions, cells of a picture).
        first_cells: (regions,).

    Returns:
        (levels, regions, C) in the dtype of `cells`; computed in float32. Zero where a region covers nothing.
    """
    weights = coverage.float()
    weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    columns = first_cells[:, None] + torch.arange(weights.shape[1], device=weights.device)
    placed = weights.new_zeros(weights.shape[0], cells.shape[1])
    placed.scatter_add_(1, columns.clamp_max(cells.shape[1] - 1), weights)
    return (placed @ cells.float()).to(cells.dtype)
