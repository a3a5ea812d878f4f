"""GrabCut against drawn shapes and synthetic scenes, and which of many masks are kept."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data_pipelines.synthetic.scenes import draw_scene
from osprey_tp.mask_selection import MOST_PIXELS, affordable, encode_masks, select_masks, times_found
from osprey_tp.segmenters import load_segmenter

from .drawn_shapes import drawn, iou, striped


@pytest.fixture(scope="module")
def grabcut():
    return load_segmenter("grabcut")


@pytest.mark.parametrize("kind", ["ring", "triangle", "star"])
def test_grabcut_finds_a_plain_shape_from_one_click(grabcut, kind):
    image, mask, point = drawn(kind)
    best = grabcut.open(image).segment([point], [True])[0]
    assert best.mask.shape == mask.shape and best.mask.dtype == bool
    assert iou(best.mask, mask) > 0.95
    assert 0 < best.score <= 1


def test_grabcut_finds_a_striped_shape_whole(grabcut):
    image, mask, point = striped()
    assert iou(grabcut.open(image).segment([point], [True])[0].mask, mask) > 0.9


def test_grabcut_finds_a_small_object_in_a_large_picture(grabcut):
    pixels = np.random.default_rng(1).normal((90, 140, 90), 5, (1200, 1600, 3))
    mask = np.zeros((1200, 1600), bool)
    mask[700:724, 1300:1330] = True
    pixels[mask] = (230, 200, 40)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    assert iou(grabcut.open(image).segment([(1315.0, 712.0)], [True])[0].mask, mask) > 0.85


def test_grabcut_is_deterministic_and_candidates_differ(grabcut):
    image, _, point = striped()
    first, second = (grabcut.open(image).segment([point], [True]) for _ in range(2))
    assert [candidate.score for candidate in first] == [candidate.score for candidate in second]
    assert all(np.array_equal(one.mask, other.mask) for one, other in zip(first, second, strict=True))
    assert [candidate.score for candidate in first] == sorted((c.score for c in first), reverse=True)
    assert all(candidate.mask.any() for candidate in first)


def test_grabcut_uses_every_point_and_keeps_off_negative_ones(grabcut):
    image, _, _ = drawn("star")
    opened = grabcut.open(image)
    both = opened.segment([(95.0, 95.0), (215.0, 150.0)], [True, True])[0].mask
    assert both[95, 95] and both[150, 215]
    without = opened.segment([(215.0, 150.0), (95.0, 95.0)], [True, False])[0].mask
    assert without[150, 215] and not without[95, 95]


def test_grabcut_cuts_the_object_out_of_a_box(grabcut):
    image, mask, _ = drawn("star")
    best = grabcut.open(image).segment([], [], box=(30, 30, 160, 160))[0].mask
    assert iou(best, mask) > 0.95
    assert not best[:, 162:].any()


@pytest.mark.parametrize("colour", [0, 128])
def test_grabcut_answers_on_a_picture_without_any_edge(grabcut, colour):
    opened = grabcut.open(Image.new("RGB", (64, 48), (colour,) * 3))
    assert all(candidate.mask[24, 32] for candidate in opened.segment([(32.0, 24.0)], [True]))


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 3)])
def test_grabcut_answers_on_the_smallest_pictures(grabcut, size):
    opened = grabcut.open(Image.new("RGB", size, (10, 20, 30)))
    assert opened.segment([(0.0, 0.0)], [True])[0].mask.shape == (size[1], size[0])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (([(300.0, 5.0)], [True], None), r"point \(300, 5\) lies outside the picture of 300x200"),
        (([(5.0, 5.0)], [False], None), "no point on the object"),
        (([], [], None), "no point on the object"),
        (([(5.0, 5.0)], [], None), "1 points, 0 labels"),
        (([], [], (10, 10, 10, 50)), "box .* does not fit"),
    ],
)
def test_unusable_prompts_are_named(grabcut, prompts, message):
    with pytest.raises(ValueError, match=message):
        grabcut.open(drawn("star")[0]).segment(*prompts)


def everything_found(grabcut, seed, size):
    """The best IoU of each object of a synthetic scene, and the candidates."""
    scene = draw_scene(np.random.default_rng(seed), size)
    candidates = grabcut.open(Image.fromarray(scene.picture)).everything()
    return [max(iou(candidate.mask, item.mask) for candidate in candidates) for item in scene.objects], candidates


def test_grabcut_finds_nine_of_ten_objects_of_synthetic_scenes_without_a_click(grabcut):
    found, masks = [], 0
    for seed in range(20):
        best, candidates = everything_found(grabcut, seed, (128, 192))
        found += best
        masks += len(candidates)
    assert np.mean(np.array(found) >= 0.7) >= 0.9
    assert masks <= 20 * 48


def test_everything_in_a_large_picture_has_exact_edges_and_no_object_twice(grabcut):
    best, candidates = everything_found(grabcut, 3, (600, 800))
    assert np.mean(np.array(best) >= 0.9) >= 0.8
    scores = [candidate.score for candidate in candidates]
    assert scores == sorted(scores, reverse=True) and all(0 < score <= 1 for score in scores)
    assert all(candidate.mask.shape == (600, 800) and candidate.mask.dtype == bool for candidate in candidates)


def test_everything_keeps_the_best_and_is_deterministic(grabcut):
    opened = grabcut.open(striped()[0])
    first, few = opened.everything(), opened.everything(most=2)
    assert len(few) == 2 < len(first)
    assert all(np.array_equal(one.mask, other.mask) for one, other in zip(first, few, strict=False))
    with pytest.raises(ValueError, match="at least one mask must be allowed, not 0"):
        opened.everything(most=0)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 50), (20_000, 1), (64, 48)])
def test_everything_in_a_picture_of_one_colour_is_nothing(grabcut, size):
    assert grabcut.open(Image.new("RGB", size, (10, 20, 30))).everything() == []


def test_masks_are_kept_as_plain_arrays_say():
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(60, 40, 50)), (3, 3, 3))
    masks = smooth > np.quantile(smooth, 0.6)
    masks[3], masks[7] = False, True
    scores = rng.integers(0, 20, 60) / 20
    kept: list[int] = []
    for index in sorted(range(60), key=lambda index: -scores[index]):
        if 0.0005 <= masks[index].mean() <= 0.9 and all(iou(masks[index], masks[other]) < 0.8 for other in kept):
            kept.append(index)
    encoded = encode_masks(masks)
    assert select_masks(encoded, scores, 100) == kept
    assert select_masks(encoded, scores, 5) == kept[:5]
    assert 5 < len(kept) < 58
    agreeing = [sum(iou(mask, other) >= 0.8 for other in masks if other.any()) for mask in masks if mask.any()]
    assert [int(times) for index, times in enumerate(times_found(encoded)) if masks[index].any()] == agreeing
    assert select_masks([], np.zeros(0), 5) == [] and len(times_found([])) == 0


def test_fewer_masks_of_a_huge_picture_are_kept():
    assert affordable(64, 1200, 1600) == 64
    assert affordable(64, 10_000, 10_000) == MOST_PIXELS // 10**8 < 64
    assert affordable(64, 1, MOST_PIXELS + 1) == 1
