"""Brush strokes against the exact distance of each pixel's centre from the polylines."""

import itertools

import numpy as np
import pytest

from osprey_tp.strokes import mask_of_strokes

HALF_PIXEL_TWICE = 1.25  # OpenCV rounds the brush's width to whole pixels and draws every pixel that an edge crosses


def distances(strokes, height, width) -> np.ndarray:
    """(height, width) distance in pixels from the nearest stroke."""
    centres = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)
    nearest = np.full((height, width), np.inf)
    for stroke in np.asarray(strokes, dtype=float):
        for start, end in itertools.pairwise(stroke) if len(stroke) > 1 else [(stroke[0], stroke[0])]:
            step = end - start
            along = np.clip((centres - start) @ step / max(step @ step, 1e-12), 0, 1)
            nearest = np.minimum(nearest, np.linalg.norm(centres - start - along[..., None] * step, axis=-1))
    return nearest


@pytest.mark.parametrize("radius", [0.3, 1, 2.7, 8, 40])
@pytest.mark.parametrize("points", [1, 2, 4])
def test_what_the_brush_touches_is_inside(radius, points):
    rng = np.random.default_rng(points)
    for _ in range(10):
        height, width = (int(side) for side in rng.integers(20, 110, 2))
        strokes = rng.uniform(-40, 150, (2, points, 2))
        strokes[0, 0] = width / 2, height / 2
        mask = mask_of_strokes(strokes.tolist(), radius, height, width)
        distance = distances(strokes, height, width)
        assert mask.shape == (height, width) and mask.dtype == bool
        assert mask[distance < radius - HALF_PIXEL_TWICE].all()
        assert not mask[distance > radius + HALF_PIXEL_TWICE].any()


@pytest.mark.parametrize("far", [1e5, 2.0**31, 1e18, 1e300, 10**300])
def test_a_stroke_may_come_from_as_far_as_numbers_go(far):
    mask = mask_of_strokes([[(-far, 30), (far, 30)]], 5, 60, 80)
    assert np.array_equal(mask.any(axis=1), mask.all(axis=1))
    assert mask[26:34].all() and not mask[:24].any() and not mask[36:].any()


def test_a_picture_as_long_as_they_get_is_drawn_on():
    mask = mask_of_strokes([[(0.5, 19_000.5), (0.5, 19_999)]], 3, 20_000, 1)
    assert mask[19_000:].all() and not mask[:18_990].any()
    assert mask_of_strokes([[(5, 5)]], 16_000, 30, 40).all()


@pytest.mark.parametrize(
    ("strokes", "radius", "message"),
    [
        ([], 5, "no stroke touches the picture of 40x30 pixels"),
        ([[(-90, 5), (-60, 500)]], 5, "no stroke touches the picture"),
        ([[(1e300, 1e300)]], 5, "no stroke touches the picture"),
        ([[(5, 5)], [(5, float("nan"))]], 5, "stroke 2 has a position that is not finite"),
        ([[(5, 5), (float("inf"), 5)]], 5, "stroke 1 has a position that is not finite"),
        ([[(5, 10**400)]], 5, "stroke 1 is no list of"),
        ([[]], 5, "stroke 1 is no list of"),
        ([[(5, 5, 5)]], 5, "stroke 1 is no list of"),
        ([[(5, 5), (5,)]], 5, "stroke 1 is no list of"),
        ([[("a", "b")]], 5, "stroke 1 is no list of"),
        ([[(5, 5)]], 0, "radius must be above 0"),
        ([[(5, 5)]], 1e9, "at most 16000 pixels, not 1e"),
        ([[(5, 5)]], float("nan"), "radius must be above 0"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_one_line(strokes, radius, message):
    with pytest.raises(ValueError, match=message) as caught:
        mask_of_strokes(strokes, radius, 30, 40)
    assert "\n" not in str(caught.value)
