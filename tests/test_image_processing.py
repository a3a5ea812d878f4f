import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from osprey_tp.image_processing import OspreyTPImageProcessor

from .golden_recipe import GOLDEN, image, load_json
from .mask_coverage import area_coverage, published_coverage

CASES = load_json("b_slicing.json")["cases"]
ARRAYS = np.load(GOLDEN / "b_slicing.npz")
TINY = {"tile_size": 64, "patch_size": 8}
PUBLISHED = {"resize_mode": "published", "thumbnail_source": "canvas", "region_pooling": "published"}


@pytest.fixture(scope="module")
def published():
    return OspreyTPImageProcessor(**PUBLISHED)


@pytest.fixture(scope="module")
def tiny():
    return OspreyTPImageProcessor(**TINY)


def denormalise(processor, pixels):
    """Normalised (..., 3, h, w) -> 0 to 255."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    return (pixels * std + mean) * 255


def untile(tiles, rows, cols):
    """Tiles row by row -> canvas (3, rows * side, cols * side)."""
    lines = [torch.cat(list(tiles[row * cols : (row + 1) * cols]), dim=2) for row in range(rows)]
    return torch.cat(lines, dim=1)


class TestPublished:
    @pytest.mark.parametrize("case", CASES, ids=lambda case: "x".join(map(str, case["source_hw"])))
    def test_tiles_equal_the_published_slicing(self, published, case):
        features = published(Image.fromarray(image(*case["source_hw"])), return_tensors="pt")
        tiles = features.pixel_values
        assert tiles.shape == (case["n_crops"], 3, 336, 336)
        assert features.tile_grids.tolist() == [case["grid_rows_cols"]]
        name = f"img{case['index']}"
        blocks = tiles.unflatten(3, (12, 28)).unflatten(2, (12, 28)).mean(dim=(3, 5))
        for computed, key in [
            (tiles[:, :, ::41, ::41], "probe"),
            (blocks, "area12"),
            (tiles.mean(dim=(2, 3)), "mean"),
            (tiles.std(dim=(2, 3), correction=0), "std"),
        ]:
            np.testing.assert_allclose(computed, ARRAYS[f"{name}_{key}"], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("settings", [PUBLISHED, {}], ids=["published", "recommended"])
    def test_padding_is_the_mean_colour(self, settings):
        processor = OspreyTPImageProcessor(**settings)
        plan = processor.tiling.plan(480, 640)
        tiles = processor(image(480, 640), return_tensors="pt").pixel_values
        canvas = untile(tiles[:-1], plan.rows, plan.cols)
        assert plan.resized_width < plan.canvas_width
        assert (canvas[:, :, plan.resized_width :] == 0).all()
        assert (canvas[:, : plan.resized_height, : plan.resized_width] != 0).float().mean() > 0.99
        assert (tiles[-1, :, plan.thumbnail_height :] == 0).all()


class TestRecommended:
    @pytest.mark.parametrize("size", [(480, 640), (53, 37), (900, 200), (1000, 1400), (64, 64)])
    def test_canvas_and_thumbnail_show_what_pillow_resizes(self, size):
        processor = OspreyTPImageProcessor(tile_size=112)
        pixels = image(*size)
        plan = processor.tiling.plan(*size)
        tiles = denormalise(processor, processor(pixels, return_tensors="pt").pixel_values)
        shown = [
            untile(tiles[: plan.rows * plan.cols], plan.rows, plan.cols)[:, : plan.resized_height, : plan.resized_width]
        ]
        sizes = [(plan.resized_width, plan.resized_height)]
        if plan.has_thumbnail:
            shown.append(tiles[-1, :, : plan.thumbnail_height, : plan.thumbnail_width])
            sizes.append((plan.thumbnail_width, plan.thumbnail_height))
        for part, pillow_size in zip(shown, sizes, strict=True):
            expected = np.asarray(Image.fromarray(pixels).resize(pillow_size, Image.Resampling.BICUBIC)).astype(float)
            difference = np.abs(part.permute(1, 2, 0).numpy() - expected)
            assert difference.max() <= 2.01
            assert difference.mean() < 0.1

    @pytest.mark.parametrize("settings", [{}, PUBLISHED], ids=["recommended", "published"])
    @given(size=st.tuples(st.integers(1, 300), st.integers(1, 300)), colour=st.tuples(*[st.integers(0, 255)] * 3))
    @settings(max_examples=25, deadline=None)
    def test_a_constant_picture_stays_constant(self, settings, size, colour):
        processor = OspreyTPImageProcessor(**{**settings, **TINY, "thumbnail_source": "image"})
        plan = processor.tiling.plan(*size)
        tiles = processor(np.full((*size, 3), colour, dtype=np.uint8), return_tensors="pt").pixel_values
        tiles = denormalise(processor, tiles)
        canvas = untile(tiles[: plan.rows * plan.cols], plan.rows, plan.cols)
        expected = torch.tensor(colour, dtype=torch.float32)[:, None, None]
        assert (canvas[:, : plan.resized_height, : plan.resized_width] - expected).abs().max() < 1e-2
        if plan.has_thumbnail:
            assert (tiles[-1, :, : plan.thumbnail_height, : plan.thumbnail_width] - expected).abs().max() < 1e-2

    def test_the_thumbnail_keeps_the_aspect_where_the_published_one_squeezes(self):
        pixels = np.zeros((53, 37, 3), dtype=np.uint8)
        pixels[:, 19:] = 255
        right_half = {}
        for source in ("image", "canvas"):
            processor = OspreyTPImageProcessor(thumbnail_source=source)
            thumbnail = processor(pixels, return_tensors="pt").pixel_values[-1]
            right_half[source] = int((thumbnail[0, 100] > 1).sum())
        assert right_half["image"] == pytest.approx(235 * 18 / 37, abs=2)
        plan = OspreyTPImageProcessor().tiling.plan(480, 640)
        squeezed = OspreyTPImageProcessor(thumbnail_source="canvas")(
            np.full((480, 640, 3), 255, np.uint8), return_tensors="pt"
        )
        filled = int((squeezed.pixel_values[-1, 0, 10] > 1).sum())
        assert filled == pytest.approx(336 * plan.resized_width / plan.canvas_width, abs=2)

    @pytest.mark.parametrize("settings", [{}, PUBLISHED], ids=["recommended", "published"])
    @pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
    def test_extreme_pictures_have_finite_tiles(self, settings, size):
        processor = OspreyTPImageProcessor(**{**settings, **TINY})
        tiles = processor(image(*size), return_tensors="pt").pixel_values
        assert len(tiles) == processor.tiling.plan(*size).num_tiles
        assert torch.isfinite(tiles).all()


class TestBatches:
    def test_pictures_and_regions_keep_their_order(self, tiny):
        sizes = [(64, 64), (200, 300), (90, 40)]
        pictures = [image(*size) for size in sizes]
        generator = np.random.default_rng(0)
        masks = [
            [generator.random(size) < 0.3 for _ in range(count)] for size, count in zip(sizes, (2, 0, 1), strict=True)
        ]
        features = tiny(pictures, masks, return_tensors="pt")
        plans = [tiny.tiling.plan(*size) for size in sizes]
        singles = [tiny(picture, return_tensors="pt").pixel_values for picture in pictures]
        assert torch.equal(features.pixel_values, torch.cat(singles))
        assert features.tile_grids.tolist() == [[plan.rows, plan.cols] for plan in plans]
        assert features.tile_grids.dtype == features.region_image_index.dtype == torch.int64
        assert features.region_image_index.tolist() == [0, 0, 2]
        assert features.region_coverage.dtype == torch.float32
        assert features.region_coverage.shape == (3, max(plan.num_cells for plan in plans))
        for row, (picture, mask) in enumerate([(0, masks[0][0]), (0, masks[0][1]), (2, masks[2][0])]):
            cells = plans[picture].num_cells
            np.testing.assert_array_equal(features.region_coverage[row, :cells], area_coverage(mask, plans[picture]))
            assert not features.region_coverage[row, cells:].any()

    def test_one_picture_takes_its_own_list_of_regions(self, tiny):
        regions = [{"box": [1, 2, 30, 40]}, [[0, 0, 20, 0, 20, 20]]]
        flat = tiny(image(50, 60), regions, return_tensors="pt")
        nested = tiny([image(50, 60)], [regions], return_tensors="pt")
        assert torch.equal(flat.region_coverage, nested.region_coverage)
        assert flat.region_image_index.tolist() == [0, 0]

    def test_no_regions_and_no_pictures_have_empty_shapes(self, tiny):
        features = tiny([image(64, 64), image(200, 300)], [[], []], return_tensors="pt")
        assert features.region_coverage.shape == (0, tiny.tiling.plan(200, 300).num_cells)
        assert features.region_image_index.shape == (0,)
        assert "region_coverage" not in tiny(image(64, 64), return_tensors="pt")
        features = tiny([], [], return_tensors="pt")
        assert features.pixel_values.shape == (0, 3, 64, 64)
        assert features.tile_grids.shape == (0, 2)
        assert features.region_coverage.shape == (0, 0)

    def test_pooling_is_a_choice(self, tiny):
        mask = np.zeros((64, 64), dtype=bool)
        mask[0, 0] = True
        plan = tiny.tiling.plan(64, 64)
        coverage = tiny(image(64, 64), [mask], region_pooling="published", return_tensors="pt").region_coverage[0]
        np.testing.assert_array_equal(coverage, published_coverage(mask, plan))
        assert coverage.sum() == 0
        assert tiny(image(64, 64), [mask], return_tensors="pt").region_coverage[0].sum() == pytest.approx(1 / 64)

    def test_arrays_are_returned_when_asked_for(self, tiny):
        features = tiny(image(64, 64), [{"box": [0, 0, 9, 9]}], return_tensors="np")
        assert all(isinstance(value, np.ndarray) for value in features.values())


class TestSettings:
    def test_settings_survive_saving(self, tmp_path):
        chosen = {
            **TINY,
            **PUBLISHED,
            "scale_factor": 4,
            "max_tiles": 25,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        }
        processor = OspreyTPImageProcessor(**chosen)
        processor.save_pretrained(tmp_path)
        loaded = OspreyTPImageProcessor.from_pretrained(tmp_path)
        assert loaded.to_dict() == processor.to_dict()
        assert json.loads((tmp_path / "preprocessor_config.json").read_text())["max_tiles"] == 25
        assert loaded.tiling == processor.tiling
        pictures = image(70, 90)
        assert torch.equal(
            loaded(pictures, return_tensors="pt").pixel_values, processor(pictures, return_tensors="pt").pixel_values
        )

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"max_tile": 9}, "unknown settings of the image processor: max_tile"),
            ({"max_tiles": 26}, "max_tiles must be at most 25"),
            ({"patch_size": 15}, "patch_size 15 does not divide tile_size 336"),
            ({"scale_factor": 5}, "scale_factor 5 does not divide"),
            ({"resize_mode": "fast"}, r"resize_mode must be one of \('antialiased', 'published'\), not 'fast'"),
            ({"thumbnail_source": "tile"}, "thumbnail_source must be one of"),
            ({"region_pooling": "max"}, "region_pooling must be one of"),
            ({"size": {"height": 3, "width": 3}}, "size cannot be set"),
            ({"do_normalize": False}, "do_normalize=False is not supported"),
        ],
    )
    def test_settings_that_cannot_be_are_refused(self, settings, message):
        with pytest.raises(ValueError, match=message):
            OspreyTPImageProcessor(**settings)

    def test_settings_of_a_call_are_checked_too(self, tiny):
        with pytest.raises(ValueError, match="region_pooling must be one of"):
            tiny(image(9, 9), region_pooling="max")
        with pytest.raises(TypeError, match="max_tile"):
            tiny(image(9, 9), max_tile=9)

    @pytest.mark.parametrize("scale_factor", [2, 3, 4])
    def test_visual_tokens_are_counted(self, scale_factor):
        processor = OspreyTPImageProcessor(scale_factor=scale_factor)
        assert processor.num_visual_tokens(480, 640) == {2: 1015, 3: 455, 4: 259}[scale_factor]


class TestBadInput:
    def test_pictures_and_regions_are_named_by_number(self, tiny):
        pictures = [image(20, 30), image(40, 30)]
        box = {"box": [0, 0, 5, 5]}
        for regions, message in [
            (
                [[box], [box, np.ones((20, 30), bool)]],
                r"picture 1, region 1: the mask has 20 x 30 pixels, the picture 40 x 30",
            ),
            ([[np.zeros((20, 30), bool)], []], "picture 0, region 0: the region is empty"),
            ([[box], [{"box": [3, 3, 3, 9]}]], r"picture 1, region 0: the box \[3, 3, 3, 9\] has no area"),
            ([[box]], "2 pictures, 1 lists of regions"),
            ([[box], box], "picture 1: its regions must be a list, not dict"),
            ([[box], None], "picture 1: its regions must be a list, not NoneType"),
        ]:
            with pytest.raises(ValueError, match=message) as caught:
                tiny(pictures, regions)
            assert "\n" not in str(caught.value)

    def test_a_bad_picture_is_named_by_number(self, tiny):
        with pytest.raises(ValueError, match=r"picture 1: array of shape \(4, 4, 3\) holds NaN"):
            tiny([image(9, 9), np.full((4, 4, 3), np.nan)])
        with pytest.raises(ValueError, match=r"picture 0: picture /no/such/file\.png cannot be read"):
            tiny("/no/such/file.png")
