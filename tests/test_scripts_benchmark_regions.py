"""The published procedure of the benchmark: the cells it counts, and answers equal to those of a session."""

import numpy as np
import pytest
from PIL import Image

from osprey_tp.prompts import CATEGORY_QUESTION
from osprey_tp.tiling import Tiling
from scripts.benchmark.__main__ import main
from scripts.benchmark.published_procedure import canvas_mask, published_answers, shrunk_mask

from .mask_coverage import published_coverage
from .tiny_models import tiny_describer


@pytest.mark.parametrize("seed", range(5))
def test_the_cells_it_counts_are_those_of_the_published_pooling(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(30, 900, 2))
    mask = rng.random((height, width)) < rng.choice([0.001, 0.05, 0.5])
    plan = Tiling(tile_size=336, patch_size=14, scale_factor=2, max_tiles=9).plan(height, width)
    side = plan.tiling.cells_per_side
    cells = shrunk_mask(canvas_mask(mask, plan), plan).numpy()
    tiles = cells.reshape(plan.rows, side, plan.cols, side).swapaxes(1, 2).ravel()
    np.testing.assert_array_equal(tiles, published_coverage(mask, plan) > 0)


def test_its_answers_are_those_of_a_session(tmp_path) -> None:
    describer = tiny_describer(preset="published")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (90, 150, 3), dtype=np.uint8)).save(tmp_path / "picture.png")
    masks = [np.zeros((90, 150), bool) for _ in range(3)]
    for place, mask in enumerate(masks):
        mask[10 * place : 50, 20 * place : 100] = True
    expected = published_answers(describer, tmp_path / "picture.png", masks, CATEGORY_QUESTION, 8)
    assert describer.open(tmp_path / "picture.png").ask(masks, max_new_tokens=8) == expected


def test_wrong_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["regions", "--regions", "0"]) == 1
    assert capsys.readouterr().err == "error: --regions and --repeats must be at least 1\n"
