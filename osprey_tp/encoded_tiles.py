"""Tiles of a picture that the vision tower has read, all at once or each when it is first needed.

```
pixel_values (tiles, 3, S, S) ─► tower ─► cells (levels, tiles, n·n, C) ─► projector ─► tokens (tiles, t, D)
```

A `TileBudget` says how many tiles a picture is cut into, and which of them a question is shown: all, or with
`near-regions` those that one of its regions touches and the thumbnail, which stands for the rest.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from osprey_tp.loading_options import TILES_SHOWN
from osprey_tp.modeling import OspreyTPForConditionalGeneration, OspreyTPModel
from osprey_tp.processing import OspreyTPProcessor
from osprey_tp.tiling import TilePlan, Tiling

MOST_ACTIVATION_BYTES = 8 << 20
"""Of the widest activations that a processor computes at a time: larger ones are given back to the system and taken
from it anew in every layer, which made the medium tower of the benchmarks take half as long again. One tile is always.
"""


@dataclass(frozen=True)
class TileBudget:
    """How much of a picture is read.

    Attributes:
        max_tiles: Most tiles that a picture is cut into, at most as many as the model's; None for the model's own.
        tiles: `all`, or `near-regions`: a question is shown the tiles that its regions touch, and the thumbnail. A
            picture of one tile is shown as it is.

    Raises:
        ValueError: for another value of `tiles`.
    """

    max_tiles: int | None = None
    tiles: str = "all"

    def __post_init__(self) -> None:
        if self.tiles not in TILES_SHOWN:
            raise ValueError(f"tiles must be one of {', '.join(TILES_SHOWN)}, not {self.tiles!r}")

    @property
    def near_regions(self) -> bool:
        """Whether a question is shown only tiles that its regions touch."""
        return self.tiles == "near-regions"

    def of(self, tiling: Tiling) -> Tiling:
        """The model's tiling within this budget.

        Raises:
            ValueError: if the budget asks for more tiles than the model's, or for thumbnails that it does not have.
        """
        if self.near_regions and not tiling.thumbnail:
            raise ValueError(
                "tiles='near-regions' needs thumbnails, and this model has none (thumbnail_source 'none'); "
                "take tiles='all'"
            )
        if self.max_tiles is None:
            return tiling
        if not 1 <= self.max_tiles <= tiling.max_tiles:
            raise ValueError(f"max_tiles can be lowered to 1 to {tiling.max_tiles} tiles, not set to {self.max_tiles}")
        return replace(tiling, max_tiles=self.max_tiles)


def without_unread_layers(model: OspreyTPModel) -> OspreyTPModel:
    """The model, sharing all its weights, with a tower that ends at the last layer whose states are read.

    A tower whose layers are not in `encoder.layers` stays as it is.
    """
    tower, read = model.vision_tower, max(model.config.feature_layers or ())
    layers = getattr(getattr(tower, "encoder", None), "layers", None)
    if not isinstance(layers, nn.ModuleList) or read >= len(layers):
        return model
    maybe_install_capturing_hooks(tower)  # the layers are shared, and a copy must know that they have hooks
    encoder = _with_part(tower.encoder, "layers", layers[:read])
    return _with_part(model, "vision_tower", _with_part(tower, "encoder", encoder))


def _with_part(module: Any, name: str, part: nn.Module) -> Any:
    """The same module, but for one part."""
    other = copy.copy(module)
    other._modules = {**module._modules, name: part}
    return other


class EncodedTiles:
    """The tiles of one picture; the tower reads each at most once.

    Args:
        model: In evaluation mode.
        plan: Geometry of the picture.
        pixel_values: (plan.num_tiles, 3, S, S), the thumbnail last where there is one.

    Attributes:
        plan: As given.
    """

    def __init__(self, model: OspreyTPForConditionalGeneration, plan: TilePlan, pixel_values: Tensor) -> None:
        self._model, self.plan = model, plan
        self._pixels: Tensor | None = pixel_values
        self._places: dict[int, int] = {}  # of tiles among those that have been read
        self._cells, self._tokens = torch.empty(0), torch.empty(0)

    @property
    def read(self) -> list[int]:
        """Tiles that the tower has read, in the order in which it did."""
        return list(self._places)

    @property
    def nbytes(self) -> int:
        """Bytes of cells and tokens, and of the pixels of all tiles as long as some are unread."""
        return sum(tensor.nbytes for tensor in (self._cells, self._tokens, self._pixels) if tensor is not None)

    def cells(self, tiles: Sequence[int]) -> Tensor:
        """(levels, tiles, n·n, C), hidden states of the tower."""
        return self._of(tiles, self._cells, dim=1) if self._has(tiles) else self._read_first(tiles).cells(tiles)

    def tokens(self, tiles: Sequence[int]) -> Tensor:
        """(tiles, t, D), visual tokens without separators."""
        return self._of(tiles, self._tokens, dim=0) if self._has(tiles) else self._read_first(tiles).tokens(tiles)

    def _has(self, tiles: Sequence[int]) -> bool:
        return self._places.keys() >= set(tiles)

    def _read_first(self, tiles: Sequence[int]) -> EncodedTiles:
        read_tiles(self._model, [self], [tiles])
        return self

    def _of(self, tiles: Sequence[int], of_read: Tensor, dim: int) -> Tensor:
        places = [self._places[tile] for tile in tiles]
        if places == list(range(of_read.shape[dim])):
            return of_read
        return of_read.index_select(dim, torch.tensor(places, device=of_read.device))

    def _pixels_of(self, tiles: Sequence[int]) -> Tensor:
        assert self._pixels is not None
        return self._pixels if len(tiles) == len(self._pixels) else self._pixels[list(tiles)]

    def _keep(self, tiles: Sequence[int], cells: Tensor, tokens: Tensor) -> None:
        self._cells = torch.cat([self._cells, cells], dim=1) if self._places else cells
        self._tokens = torch.cat([self._tokens, tokens]) if self._places else tokens
        self._places |= {tile: len(self._places) + place for place, tile in enumerate(tiles)}
        if len(self._places) == self.plan.num_tiles:
            self._pixels = None


@torch.no_grad()
def read_tiles(
    model: OspreyTPForConditionalGeneration, pictures: Sequence[EncodedTiles], tiles: Sequence[Sequence[int]]
) -> None:
    """Let tower and projector read together those of each picture's `tiles` that have not been read."""
    unread = [
        [tile for tile in wanted if tile not in picture._places]
        for picture, wanted in zip(pictures, tiles, strict=True)
    ]
    pixels = [picture._pixels_of(own) for picture, own in zip(pictures, unread, strict=True) if own]
    if not pixels:
        return
    batch = pixels[0] if len(pixels) == 1 else torch.cat(pixels)
    tower = without_unread_layers(model.model)
    parts = batch.split(_tiles_at_a_time(model, len(batch)))
    encoded = [tower.encode_tiles(part.to(model.device)) for part in parts]
    cells = encoded[0] if len(encoded) == 1 else torch.cat(encoded, dim=1)
    tokens, first = model.model.projector(cells), 0
    for picture, own in zip(pictures, unread, strict=True):
        of_picture = slice(first, first + len(own))
        if len(pixels) == 1:
            picture._keep(own, cells[:, of_picture], tokens[of_picture])
        elif own:
            picture._keep(own, cells[:, of_picture].clone(), tokens[of_picture].clone())
        first += len(own)


def _tiles_at_a_time(model: OspreyTPForConditionalGeneration, tiles: int) -> int:
    """All on a GPU; on a processor as many as `MOST_ACTIVATION_BYTES` allow, in parts of like size."""
    if model.device.type != "cpu":
        return tiles
    config = model.config.vision_config
    width = getattr(config, "intermediate_size", config.hidden_size)
    of_tile = model.config.tiling.cells_per_tile * width * model.dtype.itemsize
    parts = math.ceil(tiles / max(1, MOST_ACTIVATION_BYTES // of_tile))
    return math.ceil(tiles / parts)


def open_tiles(
    model: OspreyTPForConditionalGeneration,
    processor: OspreyTPProcessor,
    images: Sequence[Image.Image],
    budget: TileBudget,
) -> list[EncodedTiles]:
    """Cut pictures and read, in one batch, all of their tiles, or with `near-regions` their thumbnails.

    Args:
        model: In evaluation mode.
        processor: Fits the model.
        images: PIL RGB.
        budget: Of all pictures.

    Raises:
        ValueError: as `TileBudget.of`.
    """
    tiling = budget.of(processor.image_processor.tiling)
    prepared = processor.image_processor.preprocess(list(images), return_tensors="pt", max_tiles=tiling.max_tiles)
    plans = [tiling.plan(image.height, image.width) for image in images]
    counts = [plan.num_tiles for plan in plans]
    pixels = list(prepared["pixel_values"].split(counts))
    if budget.near_regions:
        pixels = [of_picture.clone() for of_picture in pixels]  # they are kept, each as long as its own picture
    pictures = [EncodedTiles(model, plan, of_picture) for plan, of_picture in zip(plans, pixels, strict=True)]
    wanted = [
        range(plan.num_tiles - 1 if budget.near_regions and plan.has_thumbnail else 0, plan.num_tiles) for plan in plans
    ]
    read_tiles(model, pictures, wanted)
    return pictures
