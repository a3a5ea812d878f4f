"""What the model asks of a vision tower: any vision transformer of transformers that keeps one state for every patch.

```
pixel_values (tiles, 3, S, S) ─► tower ─► hidden states (tiles, class and register tokens + n·n, C) ─► the last n·n
```

CLIP, SigLIP and SigLIP 2 of fixed resolution, DINOv2 with and without registers, DINOv3, ViT, DeiT, BEiT, I-JEPA, AIMv2
and others do; towers whose grid shrinks from stage to stage (Swin, ConvNeXt, Hiera) or that take patches in place of
pictures (SigLIP 2 NaFlex, Pixtral) do not.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

_FIT = "choose one of fixed patches, such as clip_vision_model, siglip_vision_model or dinov2_with_registers"

_UNFIT = {
    "siglip2_vision_model": "takes patches of any number in place of pictures (NaFlex); choose a SigLIP 2 of fixed "
    "resolution, whose type is siglip_vision_model",
    "pixtral": f"puts the patches of all pictures into one row; {_FIT}",
    "vit_mae": f"drops patches at random; {_FIT}",
}


def require_fit(config: PreTrainedConfig) -> None:
    """Raise ValueError for a tower that says of itself that it keeps no grid of patches."""
    if config.model_type in _UNFIT:
        raise ValueError(f"a vision tower of the type {config.model_type} {_UNFIT[config.model_type]}")
    for name in ("image_size", "patch_size", "hidden_size", "num_hidden_layers"):
        if getattr(config, name, None) is None:
            raise ValueError(f"a vision tower of the type {config.model_type} has no {name}; {_FIT}")


def square_side(size: int | Sequence[int]) -> int:
    """The side of a square given by one or two sides.

    Raises:
        ValueError: if they differ.
    """
    if isinstance(size, int):
        return size
    if len(set(size)) != 1:
        raise ValueError(f"tiles and patches are square; the vision tower has {tuple(size)}")
    return size[0]


def native_tile_size(config: PreTrainedConfig) -> int:
    """Pixels a side of what a tower looks at: its image size without the rest that no patch covers."""
    patch = square_side(config.patch_size)
    return square_side(config.image_size) // patch * patch


def encode(tower: PreTrainedModel, pixel_values: Tensor, layers: Sequence[int], cells_per_tile: int) -> Tensor:
    """Run the tower once on every tile.

    Args:
        tower: Interpolates its position embeddings if tiles are not of its image size.
        pixel_values: (tiles, 3, S, S).
        layers: Indices into the hidden states.
        cells_per_tile: n·n.

    Returns:
        (levels, tiles, n·n, C), without class and register tokens, which stand before the cells.

    Raises:
        ValueError: if the tower cannot read tiles of that size, or has not one state for every cell.
    """
    side = pixel_values.shape[-1]
    options: dict[str, Any] = {"output_hidden_states": sorted(set(layers)), "return_dict": True}
    resized = side != square_side(tower.config.image_size)
    if resized and "interpolate_pos_encoding" in inspect.signature(tower.forward).parameters:
        options["interpolate_pos_encoding"] = True
    try:
        states = tower(pixel_values.to(tower.dtype), **options).hidden_states
    except (RuntimeError, ValueError) as error:
        if not resized:
            raise
        raise ValueError(
            f"the vision tower ({tower.config.model_type}, of {tower.config.image_size} pixels) cannot read tiles of "
            f"{side} pixels; leave tile_size out"
        ) from error
    kept = [states[layer] for layer in layers]
    for layer, state in zip(layers, kept, strict=True):
        if state.ndim != 3 or state.shape[0] != pixel_values.shape[0] or state.shape[1] < cells_per_tile:
            raise ValueError(
                f"hidden state {layer} of the vision tower ({tower.config.model_type}) has the shape "
                f"{tuple(state.shape)} for {len(pixel_values)} tiles of {cells_per_tile} patches; {_FIT}"
            )
    return torch.stack([state[:, -cells_per_tile:] for state in kept])
