"""Scenes as the tiny tower learns from them: tiles, and for each region the coverage of their cells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations

import torch
from torch.utils.data import Dataset

from data_pipelines.synthetic.scenes import Scene
from data_pipelines.synthetic.vocabulary import COLOURS, SHAPES, TEXTURES
from data_pipelines.synthetic.writer import scene_of
from osprey_tp.coverage import area_coverage
from osprey_tp.image_processing import OspreyTPImageProcessor
from osprey_tp.masks import to_runs
from osprey_tp.tiling import TilePlan

NO_LABEL = -100
"""What torch's cross-entropy leaves out."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {"texture": TEXTURES, "colour": COLOURS, "shape": SHAPES}


@dataclass(frozen=True)
class Sample:
    """One scene, or several as `collate` joins them.

    Attributes:
        pixel_values: (tiles, 3, tile_size, tile_size), each scene's thumbnail last.
        tiles_coverage: (regions, tiles * cells), the share of each cell that a region covers; 0 in thumbnails.
        thumbnail_coverage: the same in thumbnails, 0 in all other tiles.
        labels: (regions, 3), indices of texture, colour and shape in their vocabularies, or `NO_LABEL`.
    """

    pixel_values: torch.Tensor
    tiles_coverage: torch.Tensor
    thumbnail_coverage: torch.Tensor
    labels: torch.Tensor


def collate(samples: list[Sample]) -> Sample:
    """Join scenes: the cells of all tiles in a row, each region covering those of its own scene."""
    return Sample(
        torch.cat([sample.pixel_values for sample in samples]),
        torch.block_diag(*[sample.tiles_coverage for sample in samples]),
        torch.block_diag(*[sample.thumbnail_coverage for sample in samples]),
        torch.cat([sample.labels for sample in samples]),
    )


def make_sample(processor: OspreyTPImageProcessor, scene: Scene) -> Sample:
    """Tile a scene as the whole model tiles a picture; it must take more than one tile, so that it has a thumbnail."""
    height, width = scene.picture.shape[:2]
    masks = [item.mask for item in scene.objects]
    inputs = processor.preprocess([scene.picture], regions=[masks], return_tensors="pt")
    on_tiles = inputs["region_coverage"]
    overview = TilePlan(processor.tiling, height, width, rows=1, cols=1)
    on_thumbnail = torch.from_numpy(area_coverage([to_runs(mask, height, width) for mask in masks], overview))
    labels = [
        [words.index(word) for words, word in zip(ATTRIBUTES.values(), item.triple, strict=True)]
        for item in scene.objects
    ]
    return Sample(
        inputs["pixel_values"],
        torch.cat([on_tiles, torch.zeros_like(on_thumbnail)], dim=1),
        torch.cat([torch.zeros_like(on_tiles), on_thumbnail], dim=1),
        torch.tensor(labels),
    )


_CHANNEL_ORDERS = [list(order) for order in permutations(range(3))][1:]


class DrawnScenes(Dataset[Sample]):
    """Scenes drawn when they are asked for; scene ``index`` of a split is the same for the same seed.

    Args:
        processor: see `make_sample`.
        split: of the scenes.
        count: number of scenes.
        seed: of the scenes.
        recolour: swap the colour channels of every other picture and leave its colours without a label. Without this a
            tower guesses the shape from texture and colour, as some combinations of the three are never drawn.
    """

    def __init__(
        self, processor: OspreyTPImageProcessor, split: str, count: int, seed: int, recolour: bool = False
    ) -> None:
        self.processor, self.split, self.count, self.seed, self.recolour = processor, split, count, seed, recolour

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        scene, _ = scene_of(self.split, index, self.seed)
        if not self.recolour or index % 2 == 0:
            return make_sample(self.processor, scene)
        order = _CHANNEL_ORDERS[index // 2 % len(_CHANNEL_ORDERS)]
        sample = make_sample(self.processor, replace(scene, picture=scene.picture[:, :, order]))
        sample.labels[:, list(ATTRIBUTES).index("colour")] = NO_LABEL
        return sample
