import hashlib
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from osprey_tp import coverage
from osprey_tp.coverage import nearest_source_index
from osprey_tp.masks import rle_area, to_mask, to_rle, to_runs
from osprey_tp.run_lengths import Runs
from osprey_tp.tiling import TilePlan, Tiling

from .golden_recipe import golden_canvas_masks, load_json
from .mask_coverage import area_coverage, area_shape, published_coverage, published_shape

SLICING = load_json("b_slicing.json")["cases"]
POOLING = load_json("d_mask_extractor.json")

TINY = Tiling(tile_size=32, patch_size=8, scale_factor=2)


def golden_source_masks(height, width):
    """The four masks of the published slicing case, in its order."""
    y, x = np.mgrid[0:height, 0:width]
    top, left = height // 4, width // 3
    rect = (y >= top) & (y < max(height // 2, top + 1)) & (x >= left) & (x < max(2 * width // 3, left + 1))
    circle = (y - height // 2) ** 2 + (x - width // 2) ** 2 <= max(min(height, width) // 4, 1) ** 2
    dot = np.isin(y, (height // 3, height // 3 + 1)) & np.isin(x, (width // 3, width // 3 + 1))
    return [rect, circle, y == height // 2, dot]


def canvas_mask(mask, plan):
    """Nearest-neighbour resize to the canvas and zero padding, as the published code does it."""
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(mask)[None, None].to(torch.uint8), size=(plan.resized_height, plan.resized_width)
    )
    canvas = np.zeros((plan.canvas_height, plan.canvas_width), dtype=np.uint8)
    canvas[: plan.resized_height, : plan.resized_width] = resized[0, 0].numpy()
    return canvas


def integrate_by_supersampling(mask, plan):
    """Coverage by brute force: source pixels are cut into resized x resized parts, so no edge of a cell cuts one."""
    fine = np.kron(mask, np.ones((plan.resized_height, plan.resized_width)))
    patch_height = plan.tiling.patch_size * plan.height
    patch_width = plan.tiling.patch_size * plan.width
    shape = (plan.canvas_height * plan.height, plan.canvas_width * plan.width)
    canvas = np.zeros(shape)
    canvas[: fine.shape[0], : fine.shape[1]] = fine
    cells = canvas.reshape(shape[0] // patch_height, patch_height, shape[1] // patch_width, patch_width).mean((1, 3))
    coverage = np.zeros(plan.num_cells)
    for (row, col), value in np.ndenumerate(cells):
        coverage[plan.cell_index(row, col)] = value
    return coverage


@st.composite
def masks(draw, max_side=60):
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    seed, share = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
    generator = np.random.default_rng(seed)
    mask = generator.random((height, width)) < share
    mask[generator.integers(height), generator.integers(width)] = True
    return mask


class TestCoverage:
    @pytest.mark.parametrize("case", SLICING, ids=lambda case: "x".join(map(str, case["source_hw"])))
    def test_published_coverage_equals_the_golden_masks(self, case):
        plan = Tiling().plan(*case["source_hw"])
        for index, mask in enumerate(golden_source_masks(*case["source_hw"])):
            assert mask.sum() == case["mask_source_areas"][index]
            canvas = canvas_mask(mask, plan)
            assert hashlib.sha256(canvas.tobytes()).hexdigest() == case["mask_canvas_sha256"][index]
            coverage = published_coverage(mask, plan)
            assert coverage.dtype == np.float32
            assert coverage.sum() == case["mask_cells_on_24x24_per_tile"][index]

    @pytest.mark.parametrize("case", POOLING["images"], ids=lambda case: "x".join(map(str, case["grid"])))
    def test_published_coverage_keeps_and_loses_what_the_golden_pooling_does(self, case):
        rows, cols = case["grid"]
        plan = TilePlan(Tiling(), 336 * rows, 336 * cols, rows, cols)
        all_masks = golden_canvas_masks(plan.height, plan.width)
        assert [int(mask.sum()) for mask in all_masks] == case["mask_areas"]
        on = [int(published_coverage(mask, plan).sum()) for mask in all_masks]
        assert on == case["cells_on"]
        vanished = [name for name, cells in zip(POOLING["mask_names"], on, strict=True) if cells == 0]
        assert vanished == case["all_zero_pooled"]
        weighed = [area_coverage(mask, plan).sum() > 0 for mask in all_masks]
        assert weighed == [name != "empty" for name in POOLING["mask_names"]]

    @given(masks())
    @settings(max_examples=60, deadline=None)
    def test_published_coverage_equals_bilinear_shrinking_of_the_canvas(self, mask):
        for tiling in (TINY, Tiling(tile_size=28, patch_size=7, scale_factor=1)):
            plan = tiling.plan(*mask.shape)
            canvas = torch.from_numpy(canvas_mask(mask, plan))[None, None].float()
            size = (plan.canvas_height // tiling.patch_size, plan.canvas_width // tiling.patch_size)
            shrunk = torch.nn.functional.interpolate(canvas, size=size, mode="bilinear")[0, 0] > 0
            coverage = published_coverage(mask, plan)
            assert all(coverage[plan.cell_index(*cell)] == on for cell, on in np.ndenumerate(shrunk.numpy()))

    @given(st.integers(1, 5000), st.integers(1, 5000))
    @settings(max_examples=200, deadline=None)
    def test_nearest_neighbours_are_those_of_torch(self, source, resized):
        pixels = torch.arange(source, dtype=torch.float32)[None, None]
        expected = torch.nn.functional.interpolate(pixels, size=resized, mode="nearest")[0, 0].long()
        assert nearest_source_index(np.arange(resized), source, resized).tolist() == expected.tolist()

    @given(masks(max_side=12))
    @settings(max_examples=60, deadline=None)
    def test_area_coverage_equals_brute_force_integration(self, mask):
        plan = Tiling(tile_size=16, patch_size=4, scale_factor=2).plan(*mask.shape)
        np.testing.assert_allclose(area_coverage(mask, plan), integrate_by_supersampling(mask, plan), atol=1e-6)

    @given(masks(max_side=300), st.sampled_from([TINY, Tiling(), Tiling(max_tiles=25)]))
    @settings(max_examples=100, deadline=None)
    def test_area_coverage_adds_up_to_the_area_of_the_mask(self, mask, tiling):
        plan = tiling.plan(*mask.shape)
        coverage = area_coverage(mask, plan)
        assert coverage.dtype == np.float32
        assert coverage.min() >= 0
        assert coverage.max() <= 1 + 1e-6
        cell_height = tiling.patch_size * plan.height / plan.resized_height
        cell_width = tiling.patch_size * plan.width / plan.resized_width
        area = coverage.astype(np.float64).sum() * cell_height * cell_width
        assert area == pytest.approx(mask.sum(), rel=1e-6)

    @given(
        st.integers(1, 700), st.integers(1, 700), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)
    )
    @settings(max_examples=100, deadline=None)
    def test_a_single_pixel_weighs_on_its_own_cell(self, height, width, down, across):
        y, x = int(down * height), int(across * width)
        mask = np.zeros((height, width), dtype=bool)
        mask[y, x] = True
        plan = TINY.plan(height, width)
        coverage = area_coverage(mask, plan)
        assert coverage[plan.cell_of_source_pixel(y, x)] > 0
        for index in np.flatnonzero(coverage):
            x0, y0, x1, y1 = plan.source_box_of_cell(int(index))
            assert x0 < x + 1 and x1 > x and y0 < y + 1 and y1 > y

    @pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1), (3000, 4000)])
    def test_extreme_pictures_lose_no_pixel(self, size):
        plan = Tiling(max_tiles=25).plan(*size)
        for place in ((0, 0), (size[0] - 1, size[1] - 1), (size[0] // 2, size[1] // 2)):
            mask = np.zeros(size, dtype=bool)
            mask[place] = True
            assert area_coverage(mask, plan).sum() > 0

    @given(st.lists(masks(max_side=40), min_size=1, max_size=4), st.integers(1, 50))
    @settings(max_examples=40, deadline=None)
    def test_many_regions_are_covered_as_each_alone(self, some_masks, runs_at_a_time):
        height, width = some_masks[0].shape
        same_size = [np.resize(mask, (height, width)) for mask in some_masks] + [np.zeros((height, width), bool)]
        runs = [Runs.of_mask(mask) for mask in same_size]
        plan = TINY.plan(height, width)
        for together, alone in [
            (coverage.area_coverage, area_coverage),
            (coverage.published_coverage, published_coverage),
        ]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(coverage, "_RUNS_AT_A_TIME", runs_at_a_time)
                covered = together(runs, plan)
            np.testing.assert_array_equal(covered, np.stack([alone(mask, plan) for mask in same_size]))
        assert coverage.area_coverage([], plan).shape == (0, plan.num_cells)

    def test_a_full_mask_covers_the_picture_and_not_the_padding(self):
        plan = TilePlan(Tiling(tile_size=16, patch_size=4, scale_factor=2), 10, 16, 1, 1)
        coverage = area_coverage(np.ones((10, 16), dtype=bool), plan).reshape(4, 4)
        np.testing.assert_allclose(coverage, np.repeat([1, 1, 0.5, 0], 4).reshape(4, 4))

    def test_an_empty_mask_covers_nothing(self):
        plan = TINY.plan(10, 20)
        assert not area_coverage(np.zeros((10, 20), dtype=bool), plan).any()

    @pytest.mark.parametrize("coverage", [area_coverage, published_coverage])
    def test_a_mask_of_another_size_is_refused(self, coverage):
        with pytest.raises(ValueError, match=r"the mask has 20 x 10 pixels, the picture 10 x 20"):
            coverage(np.ones((20, 10), dtype=bool), TINY.plan(10, 20))


class TestShapes:
    """A region shrunk to a square, for the spatial token."""

    @given(masks(max_side=20), st.integers(1, 9))
    @settings(max_examples=40, deadline=None)
    def test_exact_shares_are_means_of_a_mask_cut_fine(self, mask, side):
        height, width = mask.shape
        fine = np.kron(mask, np.ones((side, side))).reshape(side, height, side, width)
        shape = area_shape(mask, side)
        np.testing.assert_allclose(shape, fine.mean((1, 3)), atol=1e-6)
        assert shape.dtype == np.float32

    @given(masks(max_side=40), st.integers(1, 30))
    @settings(max_examples=40, deadline=None)
    def test_the_published_form_is_the_bilinear_one_of_torch(self, mask, side):
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(mask)[None, None].float(), size=(side, side), mode="bilinear"
        )
        shape = published_shape(mask, side)
        np.testing.assert_allclose(shape, expected[0, 0].numpy(), atol=1e-5)
        assert shape.dtype == np.float32 and shape.flags.c_contiguous


class TestForms:
    @given(masks())
    @settings(max_examples=40, deadline=None)
    def test_every_form_of_a_mask_gives_the_same_pixels(self, mask):
        height, width = mask.shape
        compressed = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        text = {"size": [height, width], "counts": compressed["counts"].decode()}
        runs = [len(list(group)) for _, group in _runs(mask)]
        listed = {"size": [height, width], "counts": runs if not mask[0, 0] else [0, *runs]}
        picture = Image.fromarray(mask.astype(np.uint8) * 255)
        annotation = {"id": 7, "iscrowd": 1, "segmentation": listed}
        forms = [mask, mask.astype(np.uint8), mask * 1.0, torch.from_numpy(mask), compressed, text, listed, picture]
        forms += [annotation, {"mask": mask, "points": [[width - 1, 0]]}, picture.convert("1"), picture.convert("RGB")]
        for form in forms:
            result = to_mask(form, height, width)
            assert result.dtype == bool
            np.testing.assert_array_equal(result, mask)
            runs = to_runs(form, height, width)
            assert runs.area == mask.sum()
            np.testing.assert_array_equal(runs.draw(), mask)
        assert to_rle(listed, height, width) == text
        json.dumps(to_rle(mask, height, width))

    @pytest.mark.parametrize("counts", [[2, 3, 0, 4, 0, 1, 10], [0, 5, 0, 5, 0, 5, 0, 5], [4, 0, 3, 6, 5, 0, 2]])
    def test_runs_that_touch_or_hold_nothing_are_encoded_as_the_drawn_mask(self, counts):
        region = to_runs({"size": [5, 4], "counts": counts}, 5, 4)
        drawn = coco_mask.encode(np.asfortranarray(region.draw(), dtype=np.uint8))
        assert region.to_rle() == {"size": [5, 4], "counts": drawn["counts"].decode()}

    @given(st.integers(3, 80), st.integers(3, 80), st.integers(0, 2**32 - 1), st.integers(1, 3))
    @settings(max_examples=60, deadline=None)
    def test_polygons_are_drawn_as_pycocotools_draws_them(self, height, width, seed, number):
        generator = np.random.default_rng(seed)
        polygons = [
            (generator.random((generator.integers(3, 8), 2)) * [width, height]).reshape(-1).tolist()
            for _ in range(number)
        ]
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))).astype(bool)
        np.testing.assert_array_equal(to_mask(polygons, height, width, allow_empty=True), expected)
        np.testing.assert_array_equal(to_mask({"segmentation": polygons}, height, width, allow_empty=True), expected)

    @given(st.integers(1, 30), st.integers(1, 30), st.lists(st.floats(-1, 31), min_size=6, max_size=16))
    @settings(max_examples=150, deadline=None)
    def test_polygons_up_to_a_pixel_beyond_the_picture_are_drawn_inside_it(self, height, width, numbers):
        sides = np.resize([width, height], len(numbers) // 2 * 2)
        polygon = np.minimum(numbers[: len(sides)], sides + 1).tolist()
        assert to_mask([polygon], height, width, allow_empty=True).shape == (height, width)

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_files_are_read(self, tmp_path, suffix):
        mask = np.zeros((6, 9), dtype=np.uint8)
        mask[2:4, 3:8] = 1
        path = tmp_path / f"mask.{suffix}"
        Image.fromarray(mask).save(path)
        for source in (path, str(path), {"mask": path, "points": [[4, 3]]}):
            np.testing.assert_array_equal(to_mask(source, 6, 9), mask.astype(bool))

    def test_palettes_and_transparency_are_understood(self):
        indices = np.array([[0, 1], [2, 0]], dtype=np.uint8)
        palette = Image.fromarray(indices, mode="P")
        palette.putpalette([0, 0, 0] * 3)
        np.testing.assert_array_equal(to_mask(palette, 2, 2), indices != 0)
        cut_out = Image.fromarray(np.array([[[9, 0, 0, 0], [9, 0, 0, 255]]], dtype=np.uint8))
        np.testing.assert_array_equal(to_mask(cut_out, 1, 2), [[False, True]])

    @pytest.mark.parametrize(
        ("box", "rows", "cols"),
        [
            ([1, 2, 4, 6], (2, 6), (1, 4)),
            ([1.5, 2.2, 3.1, 5.9], (2, 6), (1, 4)),
            ([2.2, 2.2, 2.3, 2.3], (2, 3), (2, 3)),
            ([-5, -5, 100, 3], (0, 3), (0, 10)),
        ],
    )
    def test_a_box_covers_the_pixels_it_touches(self, box, rows, cols):
        expected = np.zeros((8, 10), dtype=bool)
        expected[slice(*rows), slice(*cols)] = True
        np.testing.assert_array_equal(to_mask({"box": box}, 8, 10), expected)

    def test_an_empty_mask_can_be_asked_for(self):
        assert not to_mask(np.zeros((3, 4), dtype=bool), 3, 4, allow_empty=True).any()

    @given(st.lists(st.integers(0, 3000), min_size=1, max_size=30))
    @settings(max_examples=100, deadline=None)
    def test_compressed_runs_of_any_length_are_understood(self, runs):
        runs = [*runs, 1] if len(runs) % 2 else runs
        if not sum(runs[1::2]):
            runs[1] += 1
        height, width = 1, sum(runs)
        encoded = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
        np.testing.assert_array_equal(to_mask(encoded, height, width), coco_mask.decode(encoded).astype(bool))


def _runs(mask):
    from itertools import groupby

    return groupby(mask.reshape(-1, order="F"))


def _rle(counts, size=(4, 5)):
    return {"size": list(size), "counts": counts}


def _truncated_png():
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5), dtype=np.uint8)).save(stream, "png")
    return stream.getvalue()[:-25]


BAD_REGIONS = {
    "array of another size": (np.ones((5, 4), bool), r"the mask has 5 x 4 pixels, the picture 4 x 5"),
    "three-dimensional array": (np.ones((1, 4, 5), bool), r"the mask has 1 x 4 x 5 pixels"),
    "empty array": (np.zeros((4, 5), bool), "the region is empty"),
    "probabilities": (np.full((4, 5), 0.5), "only 0 and 1"),
    "NaN array": (np.full((4, 5), np.nan), "only 0 and 1"),
    "complex array": (np.ones((4, 5), complex), "not complex128"),
    "picture of another size": (Image.new("L", (4, 5), 1), r"the mask has 5 x 4 pixels, the picture 4 x 5"),
    "no polygon": ([], "it has no polygon"),
    "two points": ([[0, 0, 1, 1]], "polygon 0 has 2 points"),
    "odd coordinates": ([[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2, 3]], "polygon 1 has 7 coordinates"),
    "NaN polygon": ([[0, 0, 3, float("nan"), 3, 3]], "polygon 0 holds NaN"),
    "infinite polygon": ([[0, 0, 3, float("inf"), 3, 3]], "polygon 0 holds NaN or an infinite"),
    "huge polygon": ([[0, 0, 1e9, 0, 3, 3]], r"polygon 0 leaves the picture of 4 x 5 pixels"),
    "negative polygon": ([[-9, 0, 3, 0, 3, 3]], "polygon 0 leaves the picture"),
    "thin polygon": ([[1, 1, 1, 1, 1, 1]], "the region is empty"),
    "words": ([["a", "b", "c", "d", "e", "f"]], "polygon 0 must be a flat list of numbers"),
    "points not flat": ([[[0, 0], [1, 1], [2, 2]]], "polygon 0 must be a flat list of numbers"),
    "ragged": ([[[0, 0], [1]]], "polygon 0 must be a flat list of numbers"),
    "flat list": ([0, 0, 3, 0, 3, 3], "polygon 0 must be a flat list of numbers"),
    "runs too short": (_rle([5, 5]), r"add up to 10 pixels, the picture has 4 x 5 = 20"),
    "runs too long": (_rle([5, 2**40]), "add up to"),
    "negative run": (_rle([25, -5]), "run 1 is negative"),
    "fractional run": (_rle([10.5, 9.5]), "^malformed run-length encoding: a run is not a whole number"),
    "runs too short in a string": (_rle("55"), r"add up to 10 pixels, the picture has 4 x 5 = 20"),
    "runs too long in a string": (_rle("55d0"), "add up to 30 pixels"),
    "runs of an annotation": ({"segmentation": _rle([5, 5])}, "add up to 10 pixels"),
    "runs of an astronomic picture": (_rle([2**62, 2**62], size=(2**40, 2**40)), r"the mask has 1\.09951e\+12 x"),
    "NaN runs": (_rle([float("nan"), 20]), "holds NaN or an infinite number"),
    "astronomic run": (_rle([10**400, 10]), "must be a flat list of numbers"),
    "astronomic polygon": ([[0, 0, 10**400, 0, 3, 3]], "polygon 0 must be a flat list of numbers"),
    "runs of many sizes": (_rle([10, 10], size=[5e-324] * 999), r"the mask has 4.94066e-324 x .{250,300} … pixels"),
    "runs of another size": (_rle([10, 10], size=(5, 4)), r"the mask has 5 x 4 pixels, the picture 4 x 5"),
    "no size": ({"counts": [10, 10]}, "an unknown number of pixels"),
    "no runs": (_rle([]), "add up to 0 pixels"),
    "empty string": (_rle(""), "add up to 0 pixels"),
    "string with a foreign character": (
        _rle("5 5"),
        "^malformed run-length encoding: a character does not belong there",
    ),
    "string with a character below all": (_rle("5/"), "^malformed run-length encoding: a character does not belong"),
    "string with a character above all": (_rle("5p"), "^malformed run-length encoding: a character does not belong"),
    "string that is not ASCII": (_rle("5é"), "^malformed run-length encoding: a character does not belong there"),
    "string that breaks off": (_rle("5o"), "^malformed run-length encoding: it breaks off inside a number"),
    "string with a giant run": (_rle("o" * 20 + "0"), "^malformed run-length encoding: a run has too many digits"),
    "string with a run of one digit too many": (_rle("o" * 7 + "0"), "a run has too many digits"),
    "string with a run of all digits": (_rle("o" * 6 + "0"), "add up to"),
    "string of a large number": (_rle("oooo0"), "add up to"),
    "string of a negative number": (_rle("5N"), "run 1 is negative"),
    "string of many runs": (_rle(b"5" * 1000), "add up to"),
    "runs that are null": (_rle(None), '^the "counts" of the run-length encoding must be a flat list of numbers'),
    "box without area": ({"box": [1, 1, 1, 3]}, r"the box \[1, 1, 1, 3\] has no area"),
    "box inside out": ({"box": [3, 3, 1, 1]}, "has no area"),
    "box outside": ({"box": [5, 0, 9, 3]}, r"the box \[5, 0, 9, 3\] lies outside the picture of 4 x 5"),
    "box of three": ({"box": [0, 0, 3]}, "a box has 4 coordinates"),
    "NaN box": ({"box": [0, 0, float("nan"), 3]}, "the box holds NaN"),
    "point outside": ({"mask": np.ones((4, 5), bool), "points": [[5, 0]]}, r"the point \(5, 0\) lies outside"),
    "point of three": ({"mask": np.ones((4, 5), bool), "points": [[1, 1, 1]]}, "a point has 2 coordinates"),
    "points alone": ({"points": [[1, 1]]}, 'needs "counts", "segmentation", "box" or "mask"; it has points'),
    "empty dictionary": ({}, "it has no keys"),
    "nothing": (None, "not NoneType"),
}


class TestBadRegions:
    @pytest.mark.parametrize("name", BAD_REGIONS)
    def test_bad_regions_are_refused_in_one_line(self, name):
        region, message = BAD_REGIONS[name]
        with pytest.raises(ValueError, match=message) as caught:
            to_mask(region, 4, 5)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("content", [b"", b"no picture", _truncated_png()], ids=["empty", "text", "truncated"])
    def test_bad_files_are_named(self, tmp_path, content):
        path = tmp_path / "mask.png"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"mask file .*mask\.png") as caught:
            to_mask(path, 4, 5)
        assert "\n" not in str(caught.value)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"mask file .*absent\.png cannot be read"):
            to_mask(tmp_path / "absent.png", 4, 5)

    @given(st.binary(max_size=40))
    @settings(max_examples=200, deadline=None)
    def test_random_bytes_never_reach_the_decoder_unchecked(self, counts):
        try:
            mask = to_mask(_rle(counts), 4, 5)
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            np.testing.assert_array_equal(mask, coco_mask.decode(_rle(counts)).astype(bool))

    def test_a_picture_without_pixels_is_refused(self):
        with pytest.raises(ValueError, match="the picture has no pixels: it is 0 x 5"):
            to_mask({"box": [0, 0, 1, 1]}, 0, 5)


@pytest.mark.parametrize("name", [name for name in BAD_REGIONS if "picture" not in name])
def test_bad_regions_never_reach_pycocotools(name, monkeypatch):
    """What is drawn by it is drawn after every check; "thin polygon" is sound, but has no pixel."""
    for function in ("decode", "frPyObjects", "merge", "encode"):
        monkeypatch.setattr(coco_mask, function, lambda *_: pytest.fail("pycocotools was called"))
    if name == "thin polygon":
        return
    with pytest.raises(ValueError, match=BAD_REGIONS[name][1]):
        to_runs(BAD_REGIONS[name][0], 4, 5)


@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (40, 25)])
def test_rle_area_is_that_of_the_drawn_mask(shape):
    for seed in range(20):
        mask = np.random.default_rng(seed).random(shape) < seed / 19
        rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        assert rle_area({"size": list(shape), "counts": rle["counts"].decode()}, *shape) == mask.sum()
    with pytest.raises(ValueError, match="malformed"):
        rle_area({"size": list(shape), "counts": "~~"}, *shape)
    with pytest.raises(ValueError, match="add up to"):
        rle_area({"size": list(shape), "counts": [shape[0] * shape[1], 1]}, *shape)


def test_an_outline_that_fills_the_memory_is_refused():
    zigzag = [0, 0, 999, 999] * 3000
    with pytest.raises(ValueError, match=r"the polygon is 5994\d{3} pixels long; at most 2000000"):
        to_mask([zigzag], 1000, 1000)
