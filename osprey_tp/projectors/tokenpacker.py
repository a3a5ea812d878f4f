"""TokenPacker's projector: coarse queries that take detail from their own block of fine cells.

```
levels (tiles, n·n, L·C) ─► Linear, GELU, Linear, LayerNorm ─► keys   (tiles, n·n, C) ─┐ cut into s×s blocks,
                        └─► Linear, GELU, Linear, LayerNorm ─► values (tiles, n·n, C) ─┤ one block a query
last level (tiles, n·n, C) ─► resize n×n → n/s×n/s ─► Linear, LayerNorm ─► queries     ▼
                                                            attention (tiles, (n/s)², C) ─► MLP ─► (tiles, (n/s)², D)
```

The coarse query sees the whole tile at low resolution; *region-to-point injection* lets it take detail from its own
s×s block of multi-level cells and from nothing else ("TokenPacker: Efficient Visual Projector for Multimodal LLM",
section 3.2; `llava/model/multimodal_projector/builder.py` of the published code). There is no residual from the query.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from osprey_tp.projectors.base import Projector

if TYPE_CHECKING:
    from osprey_tp.configuration import OspreyTPConfig

_LAYER_NORM_EPSILON = 1e-6


class BlockAttention(nn.Module):
    """Multi-head attention in which every query attends to its own block of keys and values alone.

    Args:
        width: Channels of queries, keys, values and output.
        num_heads: Heads; divides `width`.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, queries: Tensor, key_blocks: Tensor, value_blocks: Tensor) -> Tensor:
        """Attend from `queries` (N, C) to `key_blocks` and `value_blocks` (N, K, C); return (N, C)."""
        heads = (self.num_heads, -1)
        query = self.query(queries).unflatten(-1, heads).unsqueeze(2)  # (N, heads, 1, C/heads)
        key = self.key(key_blocks).unflatten(-1, heads).transpose(1, 2)  # (N, heads, K, C/heads)
        value = self.value(value_blocks).unflatten(-1, heads).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self.output(attended.flatten(1))


class TokenPackerProjector(Projector):
    """TokenPacker: (tiles, n·n cells) of several tower levels to (tiles, (n/s)²) visual tokens."""

    def __init__(self, config: OspreyTPConfig) -> None:
        super().__init__(config)
        width = config.vision_config.hidden_size
        hidden_size = config.text_config.hidden_size
        self.coarse_query = nn.Linear(width, width, bias=False)
        self.fine_key = self._fine_branch(len(self.levels) * width, width)
        self.fine_value = self._fine_branch(len(self.levels) * width, width)
        self.query_norm = nn.LayerNorm(width, eps=_LAYER_NORM_EPSILON)
        self.key_norm = nn.LayerNorm(width, eps=_LAYER_NORM_EPSILON)
        self.value_norm = nn.LayerNorm(width, eps=_LAYER_NORM_EPSILON)
        self.attention = BlockAttention(width, config.projector_num_attention_heads or 1)
        self.mlp = nn.Sequential(nn.Linear(width, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))

    @staticmethod
    def _fine_branch(levels_width: int, width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(levels_width, width), nn.GELU(), nn.Linear(width, width))

    def project(self, levels: Tensor) -> Tensor:
        """From (levels, tiles, n·n, C) to (tiles, (n/s)², D); the last level is the coarse query."""
        tiles = levels.shape[1]
        fine = levels.permute(1, 2, 0, 3).flatten(2)  # (tiles, n·n, L·C)
        queries = self.query_norm(self.coarse_query(self._coarse_cells(levels[-1])))  # (tiles, (n/s)², C)
        keys = self._blocks(self.key_norm(self.fine_key(fine)))  # (tiles·(n/s)², s·s, C)
        values = self._blocks(self.value_norm(self.fine_value(fine)))
        attended = self.attention(queries.flatten(0, 1), keys, values)  # (tiles·(n/s)², C)
        return self.mlp(attended).unflatten(0, (tiles, -1))

    def _coarse_cells(self, cells: Tensor) -> Tensor:
        """Resize (tiles, n·n, C) to (tiles, (n/s)², C), bilinear in float32 without antialias, as published."""
        side = self.cells_per_side
        grid = cells.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (tiles, C, n, n)
        size = (side // self.scale_factor,) * 2
        coarse = functional.interpolate(grid, size=size, mode="bilinear", align_corners=False)
        return coarse.flatten(2).transpose(1, 2).to(cells.dtype)

    def _blocks(self, cells: Tensor) -> Tensor:
        """Cut (tiles, n·n, C) into the s×s block of every query: (tiles·(n/s)², s·s, C)."""
        scale, coarse = self.scale_factor, self.cells_per_side // self.scale_factor
        grid = cells.unflatten(1, (coarse, scale, coarse, scale))  # (tiles, n/s, s, n/s, s, C)
        return grid.transpose(2, 3).reshape(-1, scale * scale, cells.shape[-1])
