import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from osprey_tp import tiling as tiling_module
from osprey_tp.tiling import TilePlan, Tiling, count_visual_tokens, visual_token_layout

from .golden_recipe import load_json

GRIDS = load_json("a_grid_selection.json")
SLICING = load_json("b_slicing.json")
LAYOUTS = load_json("f_sequence_layout.json")["grids"]

sides = st.one_of(st.integers(1, 40), st.integers(1, 6000))
tilings = st.builds(
    lambda cells, patch, max_tiles: Tiling(cells * patch, patch, 1, max_tiles),
    st.integers(1, 12),
    st.integers(1, 16),
    st.sampled_from([9, 16, 25]),
)


@pytest.mark.parametrize("max_tiles", [9, 16, 25])
def test_grids_equal_the_published_choice(max_tiles):
    tiling = Tiling(max_tiles=max_tiles)
    chosen = [list(tiling.choose_grid(height, width)) for height, width in GRIDS["sizes_hw"]]
    assert len(chosen) == 441
    assert chosen == GRIDS["grid_rows_cols"][str(max_tiles)]


@pytest.mark.parametrize("max_tiles", [9, 16, 25])
def test_candidates_come_in_the_published_order(max_tiles):
    published = [tuple(grid) for grid in GRIDS["tables_rows_cols_in_order"][str(max_tiles)]]
    assert Tiling(max_tiles=max_tiles).grids == tuple(dict.fromkeys(published))


@pytest.mark.parametrize("case", SLICING["cases"], ids=lambda case: "x".join(map(str, case["source_hw"])))
def test_sizes_equal_the_published_slicing(case):
    plan = Tiling().plan(*case["source_hw"])
    assert [plan.rows, plan.cols] == case["grid_rows_cols"]
    assert [plan.resized_height, plan.resized_width] == case["resized_hw"]
    assert [plan.canvas_height, plan.canvas_width] == case["canvas_hw"]
    assert plan.num_tiles == case["n_crops"]
    assert plan.has_thumbnail == ("thumb_resized_hw" in case)
    if plan.has_thumbnail:
        assert [plan.thumbnail_height, plan.thumbnail_width] == case["thumb_resized_hw"]


def test_halves_round_to_even():
    # 3 * 336 / 288 = 3.5 and 5 * 336 / 672 = 2.5
    assert TilePlan(Tiling(), 288, 3, 1, 1).resized_width == 4
    assert TilePlan(Tiling(), 672, 5, 1, 1).resized_width == 2


@pytest.mark.parametrize(
    ("height", "width", "resized", "thumbnail"),
    [(1, 5000, (1, 3024), (1, 336)), (5000, 1, (3024, 1), (336, 1)), (1, 1, (336, 336), (336, 336))],
)
def test_extreme_pictures_keep_at_least_one_pixel_a_side(height, width, resized, thumbnail):
    plan = Tiling().plan(height, width)
    assert (plan.resized_height, plan.resized_width) == resized
    assert (plan.thumbnail_height, plan.thumbnail_width) == thumbnail


@pytest.mark.parametrize("scale_factor", [2, 3, 4])
@pytest.mark.parametrize("name", LAYOUTS)
def test_visual_tokens_equal_the_published_sequence(name, scale_factor):
    rows, cols = map(int, name.split("x"))
    tokens = Tiling(scale_factor=scale_factor).tokens_per_tile
    expected, next_token = [], 2
    for symbol in LAYOUTS[name]["symbols"]:
        if symbol in (",", "\\n"):
            expected.append(0 if symbol == "," else 1)
        else:
            expected.extend(range(next_token, next_token + tokens))
            next_token += tokens
    layout = visual_token_layout(rows, cols, tokens)
    assert layout.tolist() == expected
    assert layout.dtype == np.int64
    plan = TilePlan(Tiling(scale_factor=scale_factor), 100, 100, rows, cols)
    assert len(layout) == plan.num_visual_tokens == LAYOUTS[name][f"n_visual_tokens_scale{scale_factor}"]


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 20))
def test_layout_holds_every_token_once_in_order(rows, cols, tokens):
    layout = visual_token_layout(rows, cols, tokens)
    assert len(layout) == count_visual_tokens(rows, cols, tokens)
    kept = layout[layout >= 2]
    assert kept.tolist() == list(range(2, 2 + len(kept)))


@given(st.data(), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_shown_tiles_are_joined_within_their_rows(data, rows, cols, tokens, thumbnail):
    """Against text: a tile is a digit a token, and what joins the tiles of a row is a comma."""
    shown = data.draw(st.lists(st.integers(0, rows * cols - 1), unique=True).map(sorted))
    has_thumbnail = thumbnail and rows * cols > 1
    first_of = {tile: 2 + place * tokens for place, tile in enumerate([*shown, "thumbnail"])}
    lines = [[tile for tile in shown if tile // cols == row] for row in range(rows)] + [["thumbnail"] * has_thumbnail]
    text = "".join(
        "0 ".join("".join(f"{first_of[tile] + token} " for token in range(tokens)) for tile in line) + "1 "
        for line in lines
        if line
    )
    layout = visual_token_layout(rows, cols, tokens, thumbnail, shown)
    assert " ".join(map(str, layout.tolist())) == text.strip()
    assert layout.dtype == np.int64
    if len(shown) == rows * cols:
        np.testing.assert_array_equal(layout, visual_token_layout(rows, cols, tokens, thumbnail))


def test_of_a_picture_without_a_shown_tile_the_thumbnail_is_left_or_nothing():
    assert visual_token_layout(2, 2, 3, True, []).tolist() == [2, 3, 4, 1]
    assert visual_token_layout(2, 2, 3, False, []).tolist() == visual_token_layout(1, 1, 3, True, []).tolist() == []


@pytest.mark.parametrize(("thumbnail", "tiles"), [(True, 7), (False, 6)])
def test_without_separators_tile_follows_tile(thumbnail, tiles):
    layout = visual_token_layout(2, 3, 4, thumbnail, separators=False)
    assert layout.tolist() == list(range(2, 2 + 4 * tiles))


@given(tilings, sides, sides, st.booleans())
def test_visual_tokens_are_counted_as_they_are_laid_out(tiling, height, width, thumbnail):
    plan = replace(tiling, thumbnail=thumbnail).plan(height, width)
    layout = visual_token_layout(plan.rows, plan.cols, tiling.tokens_per_tile, thumbnail)
    assert plan.num_visual_tokens == len(layout)
    assert plan.num_tiles == (layout >= 2).sum() / tiling.tokens_per_tile


@given(tilings, sides, sides)
def test_picture_fits_the_canvas_and_touches_two_sides(tiling, height, width):
    plan = tiling.plan(height, width)
    assert plan.rows * plan.cols <= tiling.max_tiles
    assert 1 <= plan.resized_height <= plan.canvas_height
    assert 1 <= plan.resized_width <= plan.canvas_width
    assert plan.resized_height == plan.canvas_height or plan.resized_width == plan.canvas_width
    assert tiling.tile_size in (plan.thumbnail_height, plan.thumbnail_width)
    assert min(plan.thumbnail_height, plan.thumbnail_width) >= 1
    assert plan.num_cells <= tiling.max_cells


@given(tilings, sides, sides, st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_pixel_lies_in_the_box_of_its_cell(tiling, height, width, down, across):
    plan = tiling.plan(height, width)
    y, x = int(down * height), int(across * width)
    x0, y0, x1, y1 = plan.source_box_of_cell(plan.cell_of_source_pixel(y, x))
    slack = 1e-9 * max(height, width)
    assert x0 - slack <= x + 0.5 <= x1 + slack
    assert y0 - slack <= y + 0.5 <= y1 + slack


@given(st.sampled_from([(37, 53), (300, 70), (1, 900), (64, 64)]))
def test_boxes_of_the_cells_partition_the_picture(size):
    plan = Tiling(tile_size=64, patch_size=8).plan(*size)
    boxes = np.array([plan.source_box_of_cell(index) for index in range(plan.num_cells)])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert (areas >= 0).all()
    assert areas.sum() == pytest.approx(size[0] * size[1], rel=1e-9)


def test_cells_are_numbered_tile_by_tile():
    plan = TilePlan(Tiling(tile_size=28, patch_size=14, scale_factor=1), 56, 84, 2, 3)
    numbers = [plan.cell_of_source_pixel(y, x) for y in (0, 20, 40) for x in (0, 20, 40, 83)]
    assert numbers == [0, 1, 4, 9, 2, 3, 6, 11, 12, 13, 16, 21]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_tiles": 26}, "max_tiles must be at most 25"),
        ({"patch_size": 16, "tile_size": 330}, "patch_size 16 does not divide tile_size 330"),
        ({"scale_factor": 5}, "scale_factor 5 does not divide the 24 cells"),
        ({"tile_size": 0}, "tile_size must be a positive whole number"),
        ({"scale_factor": 2.0}, "scale_factor must be a positive whole number"),
    ],
)
def test_rules_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tiling(**arguments)


@pytest.mark.parametrize(
    ("tiling", "grid", "message"),
    [
        (Tiling(), (0, 1), "a tile grid has at least one row and one column, not 0 x 1"),
        (Tiling(), (1, 0), "a tile grid has at least one row and one column, not 1 x 0"),
        (Tiling(max_tiles=1, square=True), (2, 2), "a square is one tile, not 2 x 2"),
    ],
)
def test_grids_that_do_not_fit_are_refused(tiling, grid, message):
    with pytest.raises(ValueError) as raised:
        TilePlan(tiling, 10, 20, *grid)
    assert str(raised.value) == message


def test_places_outside_the_picture_are_refused():
    plan = Tiling().plan(10, 20)
    for y, x in ((10, 0), (0, 20), (-1, 0), (0, -1)):
        with pytest.raises(ValueError, match=rf"^pixel \(y={y}, x={x}\) lies outside"):
            plan.cell_of_source_pixel(y, x)
    with pytest.raises(ValueError, match="does not exist"):
        plan.source_box_of_cell(plan.num_cells)
    with pytest.raises(ValueError, match="at least one pixel"):
        Tiling().plan(0, 20)


def test_torch_is_not_needed():
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("tiling", {tiling_module.__file__!r})
module = sys.modules["tiling"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert module.Tiling().plan(480, 640).num_visual_tokens == 1015
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
