"""From the cells of a tile to its visual tokens: the projectors, by name.

| `projector_type` | a tile of n x n cells becomes | reads, of `feature_layers`         | as in       |
|------------------|-------------------------------|------------------------------------|-------------|
| `tokenpacker`    | (n/s)² tokens                 | all of them, the last one as query | TokenPacker |
| `stf`            | (n/s)² tokens                 | all of them, fused cell by cell    | LLaVA-STF   |
| `mlp`            | n² tokens, s is 1             | the last one                       | LLaVA-1.5   |

A new projector is a `Projector` (`osprey_tp.projectors.base`) and an entry of `PROJECTORS`; everything else - tiling,
regions, training, saving - follows from what its class says of itself. The number of tokens is `Tiling`'s alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from osprey_tp.projectors.base import Projector
from osprey_tp.projectors.mlp import MLPProjector
from osprey_tp.projectors.stf import STFProjector
from osprey_tp.projectors.tokenpacker import TokenPackerProjector

if TYPE_CHECKING:
    from osprey_tp.configuration import OspreyTPConfig

PROJECTORS: dict[str, type[Projector]] = {"mlp": MLPProjector, "stf": STFProjector, "tokenpacker": TokenPackerProjector}


def build_projector(config: OspreyTPConfig) -> Projector:
    """The projector that `config.projector_type` names."""
    return PROJECTORS[config.projector_type](config)
