"""LLaVA-1.5's projector: every cell of one hidden state becomes a visual token, through two layers.

```
level (tiles, n·n, C) ─► Linear C→D, GELU, Linear D→D ─► (tiles, n·n, D)
```

"Improved Baselines with Visual Instruction Tuning", section 3.3; published weights `model.mm_projector.0` and `.2` are
`mlp.0` and `mlp.2` here, and the hidden state is the last but one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from osprey_tp.projectors.base import Projector

if TYPE_CHECKING:
    from osprey_tp.configuration import OspreyTPConfig


class MLPProjector(Projector):
    """Two layers over single cells: (tiles, n·n cells) of one tower level to (tiles, n·n) visual tokens."""

    published_scale_factor: ClassVar[int] = 1
    scale_factors: ClassVar[tuple[int, ...] | None] = (1,)
    reads_one_layer: ClassVar[bool] = True

    def __init__(self, config: OspreyTPConfig) -> None:
        super().__init__(config)
        width, hidden_size = config.vision_config.hidden_size, config.text_config.hidden_size
        self.mlp = nn.Sequential(nn.Linear(width, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))

    def project(self, levels: Tensor) -> Tensor:
        """From one level (1, tiles, n·n, C) to (tiles, n·n, D)."""
        return self.mlp(levels[0])
