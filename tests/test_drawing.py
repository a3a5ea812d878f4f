"""Regions drawn on pictures stay readable whatever the picture looks like."""

import numpy as np
import pytest
from PIL import Image

from osprey_tp.drawing import draw_points, draw_regions, line_width, region_colour
from osprey_tp.labels import place_labels


def disc(height=120, width=160, y=60, x=80, radius=30):
    rows, columns = np.mgrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (128, 128, 128), region_colour(0)])
def test_an_outline_contrasts_with_any_picture(colour):
    mask = disc()
    drawn = np.asarray(draw_regions(Image.new("RGB", (160, 120), colour), [mask])).astype(int)
    ring = mask ^ disc(radius=28)
    difference = np.abs(drawn - np.array(colour)).max(-1)
    light = (drawn == 255).all(-1) & ring
    dark = (drawn < 30).all(-1) & disc(radius=32) & ~mask
    assert light.sum() > 100 and dark.sum() > 100
    assert max(difference[light].min(), difference[dark].min()) > 90


def test_what_lies_outside_stays_and_the_source_is_not_changed():
    image = Image.effect_noise((160, 120), 60).convert("RGB")
    before = np.asarray(image).copy()
    drawn = np.asarray(draw_regions(image, [disc()]))
    assert np.array_equal(drawn[~disc(radius=33)], before[~disc(radius=33)])
    assert np.array_equal(np.asarray(image), before)
    draw_points(image, [(5, 5)], [True])
    assert np.array_equal(np.asarray(image), before)


def test_the_fill_is_the_stated_mixture():
    drawn = np.asarray(draw_regions(Image.new("RGB", (160, 120)), [disc()], opacity=0.5))
    assert np.array_equal(drawn[60, 80], np.round(np.array(region_colour(0)) * 0.5))


def test_a_region_inside_another_stays_visible():
    drawn = draw_regions(Image.new("RGB", (160, 120)), [disc(radius=12), disc(radius=40)], ["", ""])
    small, large = np.array(region_colour(0)), np.array(region_colour(1))
    mixed = np.round(np.round(large * 0.4) * 0.6 + small * 0.4)
    assert np.array_equal(np.asarray(drawn)[60, 80], mixed)


def test_labels_are_drawn_inside_the_picture_at_every_border():
    image = Image.new("RGB", (160, 120), (90, 90, 90))
    for y, x in ((2, 2), (2, 158), (118, 2), (118, 158), (60, 80)):
        mask = disc(y=y, x=x, radius=8)
        plain = np.asarray(draw_regions(image, [mask], [""]))
        named = np.asarray(draw_regions(image, [mask], ["striped ring"]))
        assert (plain != named).any(-1).sum() > 200


def test_several_regions_are_numbered_and_a_single_one_is_not():
    image = Image.new("RGB", (160, 120))
    one, two = disc(x=40, radius=15), disc(x=120, radius=15)
    assert draw_regions(image, [one]) == draw_regions(image, [one], [""])
    assert draw_regions(image, [one, two]) == draw_regions(image, [one, two], ["1", "2"])


def test_one_pixel_and_no_pixel():
    image = Image.new("RGB", (160, 120), (90, 90, 90))
    empty, pixel = np.zeros((120, 160), bool), np.zeros((120, 160), bool)
    pixel[0, 0] = True
    assert draw_regions(image, [empty], ["name"]) == image
    assert draw_regions(image, [pixel]).getpixel((0, 0)) == (255, 255, 255)
    assert draw_regions(image, []) == image


def test_points_are_marked_green_and_red():
    drawn = draw_points(Image.new("RGB", (160, 120)), [(40, 60), (120, 60)], [True, False], radius=10)
    green, red = drawn.getpixel((40 + 6, 60 + 6)), drawn.getpixel((120 + 6, 60 + 6))
    assert green[1] > green[0] and red[0] > red[1]
    assert drawn.getpixel((40, 56)) == (255, 255, 255) and drawn.getpixel((120, 56)) != (255, 255, 255)


def test_counts_and_sizes_are_checked():
    image = Image.new("RGB", (160, 120))
    with pytest.raises(ValueError, match=r"mask 1 has shape \(160, 120\), the picture is .* = \(120, 160\)"):
        draw_regions(image, [disc(), disc().T])
    with pytest.raises(ValueError, match="1 masks, 2 names, 1 colours"):
        draw_regions(image, [disc()], ["a", "b"])


def test_labels_make_room_for_each_other_and_stay_in_the_picture():
    boxes = [(60 + 6 * index, 50, 64 + 6 * index, 60) for index in range(12)] + [(0, 0, 160, 120)]
    regions = [(np.ones((y1 - y0, x1 - x0), bool), y0, x0) for x0, y0, x1, y1 in boxes]
    plates = [plate.rectangle for plate in place_labels(regions, [(14, 10)] * 13, 120, 160, gap=2)]
    for index, (x0, y0, x1, y1) in enumerate(plates):
        assert 0 <= x0 < x1 <= 160 and 0 <= y0 < y1 <= 120
        assert all(x1 <= a0 or a1 <= x0 or y1 <= b0 or b1 <= y0 for a0, b0, a1, b1 in plates[:index])


@pytest.mark.parametrize("side", [400, 1500])
def test_outlines_grow_with_the_picture_whatever_the_memory_order(side):
    mask = disc(side, side, side // 2, side // 2, side // 4)
    drawn = draw_regions(Image.new("RGB", (side, side), (120, 120, 120)), [np.asfortranarray(mask)])
    row = np.asarray(drawn)[side // 2]
    dark, light = (row < 30).all(-1).sum(), (row == 255).all(-1).sum()
    assert dark == 2 * line_width(side, side) <= light <= dark + 2
