"""A vision tower that `torch.compile` has made faster, for programs that read many pictures after a slow start."""

from __future__ import annotations

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from transformers import PreTrainedModel

from osprey_tp.encoded_tiles import without_unread_layers
from osprey_tp.modeling import OspreyTPForConditionalGeneration
from osprey_tp.outside import first_line, one_line


def compile_tower(model: OspreyTPForConditionalGeneration) -> None:
    """Compile the layers of the tower, for any number of tiles, and run them once.

    The layers of a tower are alike, so that one is compiled and all are fast; weights and their names stay. Answers
    are those of the tower as it was, but for rounding.

    Args:
        model: In evaluation mode, where it is to run.

    Raises:
        ImportError: if what is compiled cannot be made into a program, as without a C++ compiler on a processor.
    """
    for layer in tower_layers(model.model.vision_tower):
        layer.compile(dynamic=True)
    side, read = model.config.tiling.tile_size, without_unread_layers(model.model)
    try:
        with torch.no_grad():
            for tiles in (2, 1):  # what is compiled for any number of tiles does not hold for one
                read.encode_tiles(torch.zeros(tiles, 3, side, side, device=model.device))
    except TorchDynamoException as error:
        cause = getattr(error, "inner_exception", error)
        reason = one_line(f"{type(cause).__name__}: {first_line(cause)}")
        raise ImportError(
            f"the vision tower cannot be compiled here ({reason}); install a C++ compiler (g++), "
            "for a GPU Triton too, or leave compile out"
        ) from error


def tower_layers(tower: PreTrainedModel) -> list[nn.Module]:
    """The tower's transformer layers; the tower itself if it does not keep them in one list."""
    lists = [part for part in tower.modules() if isinstance(part, nn.ModuleList)]
    of_all = [part for part in lists if len(part) == tower.config.num_hidden_layers]
    return list(of_all[0]) if of_all else [tower]
