"""What every projector is: a module from the cells of tiles to their visual tokens, and what its class says of itself.

```
features (levels, tiles, n·n, C) ─► those that the projector reads ─► project ─► (tiles, (n/s)², D) ─► output norm
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from osprey_tp.configuration import OspreyTPConfig


class Projector(nn.Module):
    """Cells to visual tokens; a subclass makes its layers and defines `project`.

    Class attributes:
        published_layers: `feature_layers` where the configuration names none: indices into the hidden states, negative
            ones from the end.
        published_scale_factor: `scale_factor` s where the configuration names none.
        scale_factors: The scale factors that it can have; None for any that divides the cells of a tile's side.
        reads_one_layer: It reads one hidden state, by default the last of `feature_layers`; else all of them.

    Args:
        config: Sizes are read from it: the tower's width C, the levels read, the language model's width D, the scale
            factor s.

    Attributes:
        levels: Which of `feature_layers` it reads, by their place in it, in this order.
    """

    published_layers: ClassVar[tuple[int, ...]] = (12, 16, 22, 23)
    published_scale_factor: ClassVar[int] = 2
    scale_factors: ClassVar[tuple[int, ...] | None] = None
    reads_one_layer: ClassVar[bool] = False

    def __init__(self, config: OspreyTPConfig) -> None:
        super().__init__()
        self.levels = config.projector_levels
        self.cells_per_side = config.tiling.cells_per_side
        self.scale_factor = config.tiling.scale_factor
        self.output_norm = output_norm(config)

    def forward(self, features: Tensor) -> Tensor:
        """Project the cells of every tile.

        Args:
            features: (levels, tiles, n·n, C), the tower's hidden states at `feature_layers`, cells row by row.

        Returns:
            (tiles, (n/s)², D), visual tokens row by row.
        """
        return self.output_norm(self.project(read_levels(features, self.levels)))

    def project(self, levels: Tensor) -> Tensor:
        """From the levels that are read, (levels, tiles, n·n, C), to (tiles, (n/s)², D) before the output norm."""
        raise NotImplementedError


def read_levels(features: Tensor, levels: list[int]) -> Tensor:
    """Those of `features` (levels, ...) whose places `levels` names; no copy is made where it names all in order."""
    return features if levels == list(range(len(features))) else features[levels]


def output_norm(config: OspreyTPConfig) -> nn.Module:
    """The LayerNorm that ends projector and region encoder where `output_norm_scale` asks for one, else identity."""
    if config.output_norm_scale is None:
        return nn.Identity()
    norm = nn.LayerNorm(config.text_config.hidden_size)
    torch.nn.init.constant_(norm.weight, config.output_norm_scale)
    return norm
