"""LLaVA-STF's projector: hidden states of many depths fused cell by cell, then neighbouring cells merged.

```
levels (tiles, n·n, L·C) ─► Linear L·C→4C, GELU, Linear 4C→C ─► (tiles, n·n, C) ─► s×s neighbours side by side
                                     (tiles, (n/s)², s²·C) ─► Linear s²C→4s²C, GELU, Linear 4s²C→D ─► (tiles, (n/s)², D)
```

Multi-block token fusion and spatial token compression of LLaVA-STF (visresearch/LLaVA-STF); in the published code the
fusion comes first. Published weights `model.mm_projector_crosslayer.0` and `.2` are `fusion.0` and `fusion.2` here,
`model.mm_projector.0` and `.2` are `mlp.0` and `mlp.2`. There is no norm and no residual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from osprey_tp.projectors.base import Projector

if TYPE_CHECKING:
    from osprey_tp.configuration import OspreyTPConfig

_WIDENING = 4
"""Width of both hidden layers, in widths of what follows the first and of what enters the second."""


class STFProjector(Projector):
    """LLaVA-STF: (tiles, n·n cells) of several tower levels to (tiles, (n/s)²) visual tokens."""

    published_layers: ClassVar[tuple[int, ...]] = (-2, 21, 18, 15, 12, 9, 6, 3)

    def __init__(self, config: OspreyTPConfig) -> None:
        super().__init__(config)
        width, hidden_size = config.vision_config.hidden_size, config.text_config.hidden_size
        fused, merged = _WIDENING * width, self.scale_factor**2 * width
        self.fusion = nn.Sequential(nn.Linear(len(self.levels) * width, fused), nn.GELU(), nn.Linear(fused, width))
        self.mlp = nn.Sequential(
            nn.Linear(merged, _WIDENING * merged), nn.GELU(), nn.Linear(_WIDENING * merged, hidden_size)
        )

    def project(self, levels: Tensor) -> Tensor:
        """From (levels, tiles, n·n, C) to (tiles, (n/s)², D)."""
        fused = self.fusion(levels.permute(1, 2, 0, 3).flatten(2))  # (tiles, n·n, C)
        return self.mlp(self._merge(fused))

    def _merge(self, cells: Tensor) -> Tensor:
        """Put s×s neighbours side by side, channel by channel as published: (tiles, (n/s)², C·s·s)."""
        scale, coarse = self.scale_factor, self.cells_per_side // self.scale_factor
        grid = cells.unflatten(1, (coarse, scale, coarse, scale))  # (tiles, n/s, s, n/s, s, C)
        return grid.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)
