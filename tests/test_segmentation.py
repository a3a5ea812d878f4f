"""Segmentations and boxes of annotation files as masks; the references are pycocotools and plain arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from data_pipelines.sources.reader import Unusable
from data_pipelines.sources.segmentation import (
    BOX_CLIPPED,
    CLIPPED,
    LEFT_OUT,
    box_of,
    read_box,
    read_corner_box,
    read_segmentation,
)
from osprey_tp.masks import to_mask

from .annotation_files import HEIGHT, WIDTH, box_mask, polygon


def reference(segmentation) -> np.ndarray:
    """pycocotools' own reading of an annotation."""
    coco = COCO()
    coco.imgs = {1: {"height": HEIGHT, "width": WIDTH}}
    return coco.annToMask({"image_id": 1, "segmentation": segmentation}).astype(bool)


@pytest.mark.parametrize(
    ("segmentation", "reasons"),
    [
        ([polygon(-0.5, 3, 20, HEIGHT + 0.9)], []),
        ([polygon(-9, 3, 20, HEIGHT + 30)], [CLIPPED]),
        ([polygon(5, 5, 9, 9), polygon(WIDTH - 4, 3, WIDTH + 70, 11)], [CLIPPED]),
        ([polygon(5, 5, 9, 9), polygon(WIDTH + 20, 3, WIDTH + 70, 11)], [CLIPPED]),
        ([[-40.3, -20.2, 100.7, 18.1, -40.3, 60.9], [3, 3, 4, 4]], [LEFT_OUT, CLIPPED]),
    ],
)
def test_outlines_that_leave_the_picture_are_clipped_as_pycocotools_clips_them(segmentation, reasons):
    rle, notes = read_segmentation(segmentation, HEIGHT, WIDTH)
    drawn = [outline for outline in segmentation if len(outline) >= 6]
    assert np.array_equal(mask_utils.decode(rle).astype(bool), reference(drawn))
    assert np.array_equal(to_mask(rle, HEIGHT, WIDTH), reference(drawn))
    assert [note.reason for note in notes] == reasons
    assert not any("\n" in note.detail for note in notes)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.floats(-200, 200), min_size=6, max_size=12), min_size=1, max_size=3))
def test_any_outline_gives_the_mask_of_pycocotools_or_a_reason(polygons):
    polygons = [outline[: len(outline) // 2 * 2] for outline in polygons]
    expected = reference(polygons)
    try:
        rle, _ = read_segmentation(polygons, HEIGHT, WIDTH)
    except Unusable as problem:
        assert problem.reason in {"segmentation lies outside the picture", "segmentation covers no pixel"}
        assert not expected.any()
        return
    assert np.array_equal(mask_utils.decode(rle).astype(bool), expected)
    rows, columns = np.nonzero(expected)
    assert box_of(rle) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize(
    ("box", "expected", "reasons"),
    [
        ((2, 3, 10, 12), box_mask(2, 3, 10, 12), []),
        ([2.4, 3.9, 10.1, 12], box_mask(2, 3, 11, 12), []),
        ([-0.7, 0, 10, HEIGHT + 1], box_mask(0, 0, 10, HEIGHT), []),
        ([50, 30, 1e300, 90], box_mask(50, 30, WIDTH, HEIGHT), [BOX_CLIPPED]),
    ],
)
def test_boxes_are_the_pixels_that_they_touch(box, expected, reasons):
    rle, notes = read_box(box, HEIGHT, WIDTH)
    assert np.array_equal(mask_utils.decode(rle).astype(bool), expected)
    assert [note.reason for note in notes] == reasons
    x0, y0, x1, y1 = box
    assert read_corner_box([x0, y0, x1 - x0, y1 - y0], HEIGHT, WIDTH)[0] == rle


@given(st.tuples(*[st.floats(-20, 80, allow_nan=False)] * 4))
def test_any_box_is_the_pixels_that_it_touches(corners):
    x0, x1 = sorted(corners[:2])
    y0, y1 = sorted(corners[2:])
    columns, rows = np.arange(WIDTH), np.arange(HEIGHT)
    touched = ((rows + 1 > y0) & (rows < y1))[:, None] & ((columns + 1 > x0) & (columns < x1))
    try:
        rle, _ = read_box([x0, y0, x1, y1], HEIGHT, WIDTH)
    except Unusable:
        assert x0 == x1 or y0 == y1 or not touched.any()
        return
    assert np.array_equal(mask_utils.decode(rle).astype(bool), touched)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (None, "malformed box"),
        ("0123", "malformed box"),
        ([1, 2, 3], "malformed box"),
        ([1, 2, 3, None], "malformed box"),
        ([1, 2, 3, float("nan")], "malformed box"),
        ([1, 2, 3, 10**400], "malformed box"),
        ([True, False, True, True], "malformed box"),
        ([[1, 2], [3, 4]], "malformed box"),
        ([5, 5, 5, 9], "box without area"),
        ([9, 5, 5, 9], "box without area"),
        ([WIDTH, 5, WIDTH + 5, 9], "box lies outside the picture"),
        ([3, -20, 30, 0], "box lies outside the picture"),
    ],
)
def test_boxes_that_are_none_are_named(box, reason):
    with pytest.raises(Unusable) as caught:
        read_box(box, HEIGHT, WIDTH)
    assert caught.value.reason == reason


@pytest.mark.parametrize("form", [str, lambda path: {"mask": str(path)}, lambda path: {"segmentation": str(path)}])
def test_an_annotation_cannot_name_a_file_as_its_mask(tmp_path, form):
    path = tmp_path / "mask.png"
    Image.new("1", (WIDTH, HEIGHT), 1).save(path)
    assert to_mask(str(path), HEIGHT, WIDTH).all()
    with pytest.raises(Unusable) as caught:
        read_segmentation(form(path), HEIGHT, WIDTH)
    assert caught.value.reason == "malformed segmentation"
