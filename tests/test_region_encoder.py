"""The region encoder against the published mask extractor, and against a plain loop."""

import numpy as np
import pytest
import torch

from osprey_tp.configuration import OspreyTPConfig
from osprey_tp.conversion import PUBLISHED_REGION_ENCODER_PREFIX, region_encoder_from_published
from osprey_tp.region_encoder import RegionEncoder, pool
from osprey_tp.tiling import TilePlan, Tiling

from .golden_recipe import GOLDEN, golden_canvas_masks, load_json, normal, param
from .mask_coverage import published_coverage

CASE = load_json("d_mask_extractor.json")
OUTPUTS = np.load(GOLDEN / "d_mask_extractor.npz")
GRIDS = [tuple(grid) for grid in CASE["grids_rows_cols"]]


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    """Three pictures of 1, 5 and 7 tiles in one batch, 14 regions each."""
    levels = [torch.from_numpy(normal(f"d.feat.level{level}", (13, 576, 1024))) for level in (12, 16, 22, 23)]
    coverage, first_cells, first = torch.zeros(3 * 14, 6 * 576), [], 0
    for image, (rows, cols) in enumerate(GRIDS):
        height, width = rows * 336, cols * 336
        plan = TilePlan(Tiling(), height, width, rows, cols)
        for index, mask in enumerate(golden_canvas_masks(height, width)):
            coverage[14 * image + index, : plan.num_cells] = torch.from_numpy(published_coverage(mask, plan))
        first_cells += [first * 576] * 14
        first += plan.num_tiles
    return {"features": torch.stack(levels), "coverage": coverage, "first_cells": torch.tensor(first_cells)}


@pytest.fixture(scope="module")
def encoder() -> RegionEncoder:
    weights = {
        name.removeprefix(PUBLISHED_REGION_ENCODER_PREFIX): torch.from_numpy(param(name, tuple(shape)))
        for name, shape in CASE["state_dict"].items()
    }
    encoder = RegionEncoder(OspreyTPConfig.vicuna_7b())
    encoder.load_state_dict(region_encoder_from_published(weights))
    return encoder.eval()


@torch.no_grad()
def test_pools_as_published(batch):
    pooled = pool(batch["features"].flatten(1, 2), batch["coverage"], batch["first_cells"])
    for image in range(len(GRIDS)):
        mine = pooled[:, 14 * image : 14 * (image + 1), :64].numpy()
        np.testing.assert_allclose(mine, OUTPUTS[f"img{image}_pooled"], atol=2e-5, rtol=0)


@torch.no_grad()
def test_encodes_as_published(batch, encoder):
    tokens = encoder(**batch)
    for image in range(len(GRIDS)):
        mine = tokens[14 * image : 14 * (image + 1), :64].numpy()
        np.testing.assert_allclose(mine, OUTPUTS[f"img{image}_query"], atol=2e-5, rtol=0)


@torch.no_grad()
def test_the_same_regions_vanish_and_become_the_bias_alone(batch, encoder):
    tokens = encoder(**batch)
    for image, case in enumerate(CASE["images"]):
        vanished = [CASE["mask_names"].index(name) for name in case["all_zero_pooled"]]
        zero = (batch["coverage"][14 * image : 14 * (image + 1)].sum(1) == 0).nonzero().flatten().tolist()
        assert zero == vanished
        for index in vanished:
            np.testing.assert_allclose(
                tokens[14 * image + index].numpy(), OUTPUTS["vanished_query_full"], atol=2e-5, rtol=0
            )


@torch.no_grad()
def test_equals_a_plain_loop_with_area_weights():
    generator = torch.Generator().manual_seed(0)
    cells = torch.randn(3, 40, 8, generator=generator)  # two pictures: 16 cells from 0, 24 cells from 16
    coverage = torch.rand(5, 24, generator=generator)
    first_cells = torch.tensor([0, 16, 16, 0, 16])
    coverage[first_cells == 0, 16:] = 0
    pooled = pool(cells, coverage, first_cells)
    for region, first in enumerate(first_cells.tolist()):
        size = 16 if first == 0 else 24
        weights = coverage[region, :size]
        expected = (cells[:, first : first + size] * weights[:, None]).sum(1) / weights.sum()
        torch.testing.assert_close(pooled[:, region], expected)


@torch.no_grad()
def test_no_regions_give_no_tokens():
    encoder = RegionEncoder(OspreyTPConfig.tiny())
    tokens = encoder(torch.randn(3, 1, 36, 32), torch.zeros(0, 36), torch.zeros(0, dtype=torch.long))
    assert tokens.shape == (0, 64)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_and_near(dtype):
    cells, coverage = torch.randn(2, 36, 8), torch.zeros(1, 36)
    coverage[0, 3] = 1e-6
    pooled = pool(cells.to(dtype), coverage, torch.tensor([0]))
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled[:, 0].float(), cells[:, 3], atol=0.02, rtol=0.02)
