"""Trials of a tower and a language model that are joined to a new model, so that what does not fit is refused at once.

Nothing is tried where weights are not here: on the meta device, or divided among processes. Trials leave no trace: no
running statistics move, and every module stays in the mode it was in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from osprey_tp.configuration import OspreyTPConfig
from osprey_tp.language_models import FIT
from osprey_tp.vision_towers import encode


def require_cells(tower: PreTrainedModel, config: OspreyTPConfig) -> None:
    """Raise ValueError if the tower does not give the cells of a blank tile."""
    tiling = config.tiling
    if _is_here(tower):
        pixels = torch.zeros(1, 3, tiling.tile_size, tiling.tile_size, device=tower.device)
        with _trial(tower):
            encode(tower, pixels, config.feature_layers or (), tiling.cells_per_tile)


def require_same_logits(model: nn.Module, language_model: PreTrainedModel) -> None:
    """Raise ValueError if the model answers a few words otherwise than the language model it was made of."""
    if not _is_here(language_model):
        return
    words = torch.arange(1, 4, device=language_model.device)[None]
    with _trial(model), _trial(language_model):
        own, theirs = model(input_ids=words).logits.float(), language_model(input_ids=words).logits.float()
    if not torch.allclose(own, theirs, rtol=1e-2, atol=1e-2 * float(theirs.std())):
        raise ValueError(
            f"language models of the type {language_model.config.model_type} make their logits in a way that is not "
            f"known here, so answers would be wrong; {FIT}"
        )


def _is_here(module: nn.Module) -> bool:
    return all(parameter.numel() and not parameter.is_meta for parameter in module.parameters())


@contextmanager
def _trial(module: nn.Module) -> Iterator[None]:
    """Without gradients, in evaluation mode, and back in the mode that every module was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes.items():
            part.training = training
