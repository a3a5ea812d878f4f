"""What comes out of COCO-like files, and why the rest does not."""

import importlib

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from data_pipelines.records import Region, Turn
from data_pipelines.sources import SOURCES

from .annotation_files import (
    HEIGHT,
    WIDTH,
    annotation_entry,
    box_mask,
    compressed,
    image_entry,
    polygon,
    uncompressed,
    write_captions,
    write_instances,
    write_json,
    write_picture,
    write_referring,
    write_simple_instances,
)
from .source_reading import read_source


def read(folder, annotations, source="coco", **options):
    reading = read_source(source, annotations, folder / "images", **options)
    return reading.records, reading.rejections, reading


def mask_of(region: Region) -> np.ndarray:
    return mask_utils.decode(region.segmentation).astype(bool)


def test_every_form_of_segmentation_gives_the_mask_that_pycocotools_gives(tmp_path):
    mask = box_mask(3, 5, 20, 31) & ~box_mask(8, 9, 12, 12)
    forms = [
        [polygon(3.5, 5.25, 20, 31)],
        [polygon(3, 5, 10, 9), [30, 2, 50.5, 20.5, 22, 33]],
        compressed(mask),
        uncompressed(mask),
        uncompressed(~mask),
    ]
    annotations = [annotation_entry(number, 1, form) for number, form in enumerate(forms)]
    path = write_instances(tmp_path, [image_entry(1)], annotations)
    records, rejections, _ = read(tmp_path, path)
    coco = COCO(path)
    expected = [coco.annToMask(entry).astype(bool) for entry in annotations]
    assert rejections == []
    assert len(records) == 1
    for region, reference in zip(records[0].regions, expected, strict=True):
        assert np.array_equal(mask_of(region), reference)
        rows, columns = np.nonzero(reference)
        assert region.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert isinstance(region.segmentation["counts"], str)


def test_a_record_holds_what_the_file_says(tmp_path):
    path = write_simple_instances(tmp_path, pictures=2, regions=2)
    records, _, reader = read(tmp_path, path)
    assert [record.id for record in records] == ["coco:1", "coco:2"]
    assert records[0].image == "000000000001.jpg"
    assert (records[0].height, records[0].width, records[0].source) == (HEIGHT, WIDTH, "coco")
    assert [region.name for region in records[0].regions] == ["cat", "naïve dog 犬"]
    assert records[0].turns == ()
    assert reader.counts_in == {"images": 2, "annotations": 4}


TRAPS = [
    ("no segmentation", None, {}),
    ("empty segmentation", [], {}),
    ("empty segmentation", {}, {}),
    ("empty segmentation", [[]], {}),
    ("degenerate polygon", [[1, 1, 9, 9]], {}),
    ("degenerate polygon", [[1, 1], [2, 2, 5, 5]], {}),
    ("segmentation lies outside the picture", [polygon(WIDTH + 5, 2, WIDTH + 9, 9)], {}),
    ("segmentation lies outside the picture", [polygon(-30, -30, -5, -5)], {}),
    ("segmentation lies outside the picture", [polygon(-30, -3e18, -5, -1e18)], {}),
    ("outline too long to be drawn", [polygon(1, 1, 1e9, 9)], {}),
    ("outline too long to be drawn", [[1, 1, 50, 9] * 100_000], {}),
    ("segmentation covers no pixel", compressed(box_mask(0, 0, 0, 0)), {}),
    ("mask of another size than the picture", compressed(box_mask(0, 0, 3, 3, WIDTH, HEIGHT)), {}),
    ("malformed segmentation", {"size": [HEIGHT, WIDTH], "counts": [5, 5]}, {}),
    ("malformed segmentation", {"size": [HEIGHT, WIDTH], "counts": "\x7f~"}, {}),
    ("malformed segmentation", [[1, 2, 3, 4, 5, 6, 7]], {}),
    ("malformed segmentation", [[1, 2, float("nan"), 4, 5, 6]], {}),
    ("malformed segmentation", "a mask", {}),
    ("crowd region", compressed(box_mask(1, 1, 9, 9)), {"iscrowd": 1}),
    ("unknown category", [polygon(1, 1, 9, 9)], {"category_id": 77}),
    ("unknown category", [polygon(1, 1, 9, 9)], {"category_id": [1]}),
    ("unknown category", [polygon(1, 1, 9, 9)], {"category_id": 3}),
    ("annotation of an unknown picture", [polygon(1, 1, 9, 9)], {"image_id": 55}),
    ("annotation id stands twice", [polygon(1, 1, 9, 9)], {"id": 7}),
    ("annotation without an id", [polygon(1, 1, 9, 9)], {"id": None}),
]


@pytest.mark.parametrize(("reason", "segmentation", "changes"), TRAPS)
def test_what_cannot_be_used_is_named_with_its_reason(tmp_path, reason, segmentation, changes):
    good = annotation_entry(7, 1, [polygon(1, 1, 9, 9)])
    trap = {**annotation_entry(8, 1, segmentation), **changes}
    records, rejections, reader = read(tmp_path, write_instances(tmp_path, [image_entry(1)], [good, trap]))
    assert [len(record.regions) for record in records] == [1]
    assert [rejection.reason for rejection in rejections] == [reason]
    assert rejections[0].id in {"coco:1#8", "coco:55#8", "coco:1#7", "coco:?"}
    assert "\n" not in rejections[0].detail
    assert reader.counts_in["annotations"] == 2 == 1 + rejections[0].annotations


def test_all_traps_together_are_accounted_for(tmp_path):
    annotations = [annotation_entry(number, 1, [polygon(1, 1, 9, 9)]) for number in (5, 6, 7)]
    annotations += [{**annotation_entry(100 + n, 1, trap), **changes} for n, (_, trap, changes) in enumerate(TRAPS)]
    records, rejections, reader = read(tmp_path, write_instances(tmp_path, [image_entry(1)], annotations))
    kept = sum(len(record.regions) for record in records)
    assert kept == 3
    assert reader.counts_in["annotations"] == len(annotations) == kept + sum(item.annotations for item in rejections)


def test_crowds_are_kept_on_request_and_tiny_regions_always(tmp_path):
    annotations = [
        annotation_entry(1, 1, uncompressed(box_mask(0, 0, 30, 30)), iscrowd=1),
        annotation_entry(2, 1, compressed(box_mask(59, 39, 60, 40))),
    ]
    path = write_instances(tmp_path, [image_entry(1)], annotations)
    assert [mask_of(region).sum() for region in read(tmp_path, path)[0][0].regions] == [1]
    records, rejections, _ = read(tmp_path, path, include_crowd=True)
    assert [mask_of(region).sum() for region in records[0].regions] == [900, 1]
    assert rejections == []


def test_a_polygon_of_two_points_is_left_out_of_its_region_and_said_so(tmp_path):
    annotations = [annotation_entry(1, 1, [polygon(2, 2, 10, 10), [30, 30, 39, 39]])]
    records, rejections, _ = read(tmp_path, write_instances(tmp_path, [image_entry(1)], annotations))
    assert not mask_of(records[0].regions[0])[20:, 20:].any()
    assert [(item.id, item.annotations) for item in rejections] == [("coco:1#1", 0)]
    assert rejections[0].reason == "degenerate polygon left out of its region"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"file_name": "../outside.jpg"}, "image path leaves the image folder"),
        ({"file_name": "/etc/hostname"}, "image path leaves the image folder"),
        ({"file_name": "absent.jpg"}, "picture not found"),
        ({"file_name": None}, "picture without a file name"),
        ({"height": 0}, "picture without a size"),
        ({"width": "60"}, "picture without a size"),
        ({"width": 2**70}, "picture too large"),
    ],
)
def test_pictures_that_cannot_be_used_take_their_annotations_with_them(tmp_path, changes, reason):
    write_picture(tmp_path, "outside.jpg")
    write_picture(tmp_path / "images", "000000000001.jpg")
    images = [image_entry(1, **changes), {"height": 3}]
    annotations = [annotation_entry(number, 1, [polygon(1, 1, 9, 9)]) for number in range(3)]
    records, rejections, _ = read(tmp_path, write_instances(tmp_path, images, annotations, pictures=False))
    assert records == []
    assert [(item.id, item.reason, item.annotations) for item in rejections] == [
        ("coco:?", "image entry without an id", 0),
        ("coco:1", reason, 3),
    ]


def test_pictures_in_folders_and_pictures_without_regions(tmp_path):
    images = [image_entry(1, file_name="val/a.jpg"), image_entry(2), image_entry(2)]
    records, rejections, _ = read(
        tmp_path, write_instances(tmp_path, images, [annotation_entry(1, 1, [polygon(1, 1, 9, 9)])])
    )
    assert [record.image for record in records] == ["val/a.jpg"]
    assert [(item.id, item.reason) for item in rejections] == [
        ("coco:2", "image id stands twice"),
        ("coco:2", "picture without a usable region"),
    ]


def test_captions_are_records_without_regions(tmp_path):
    records, rejections, reader = read(tmp_path, write_captions(tmp_path), "captions")
    assert [(record.id, record.regions, record.turns[-1]) for record in records] == [
        ("captions:11", (), Turn("assistant", "A cat.")),
        ("captions:12", (), Turn("assistant", "The same cat, again.")),
        ("captions:15", (), Turn("assistant", "An <image> of a dog.")),
    ]
    assert [(item.id, item.reason) for item in rejections] == [
        ("captions:13", "caption without text"),
        ("captions:9", "picture not found"),
    ]
    assert reader.counts_in == {"images": 3, "annotations": 5}


def test_an_expression_is_the_answer_about_its_region(tmp_path):
    records, rejections, reader = read(tmp_path, write_referring(tmp_path), "refcoco")
    assert [(record.id, record.image) for record in records] == [("refcoco:0", "000000581857.jpg")]
    assert records[0].turns == (Turn("user", "<region1>"), Turn("assistant", "the cat < the dog"))
    assert len(records[0].regions) == 1
    assert [(item.id, item.reason, item.annotations) for item in rejections] == [
        ("refcoco:1", "expression without text", 1),
        ("refcoco:2", "expression with several regions", 2),
        ("refcoco:3", "picture not found", 1),
    ]
    assert reader.counts_in["annotations"] == 5


def test_a_synthetic_scene_is_asked_about_its_attributes_too(tmp_path):
    write_picture(tmp_path / "images", "000000000001.jpg")
    content = {
        "images": [image_entry(1)],
        "annotations": [annotation_entry(1, 1, [polygon(1, 1, 9, 9)])],
        "categories": [{"id": 1, "name": "striped red triangle"}],
    }
    records, _, _ = read(tmp_path, write_json(tmp_path / "scenes.json", content), "synthetic")
    texts = [turn.text for turn in records[0].turns]
    assert dict(zip(texts[::2], texts[1::2], strict=True)) == {
        "<region1>": "striped red triangle",
        "What texture does <region1> have?": "striped",
        "What colour is <region1>?": "red",
        "What shape is <region1>?": "triangle",
    }


@pytest.mark.parametrize(
    ("content", "source", "message"),
    [
        ("captions", "coco", "looks like COCO captions, use `captions`"),
        ("captions", "refcoco", "looks like COCO captions, use `captions`"),
        ("refs", "coco", "looks like a RefCOCO re-export, use `refcoco`"),
        ("refs", "captions", "looks like a RefCOCO re-export, use `refcoco`"),
        ("instances", "captions", "looks like COCO instances, use `coco`"),
        ("instances", "refcoco+", "looks like COCO instances, use `coco`"),
        ({"images": [], "annotations": [{"segments_info": []}]}, "coco", "looks like COCO panoptic"),
        ([{"image_id": 1, "category_id": 2, "score": 0.5}], "coco", "looks like COCO results"),
        ([{"id": 1, "conversations": []}], "coco", "looks like LLaVA conversations"),
        ([{"file_name": "a", "annotation": [], "conversations": []}], "coco", "looks like Osprey-724K"),
        ([1, 2], "coco", "holds a JSON list"),
        ({"a": 1}, "coco", "holds an object with a"),
        (None, "coco", "holds a JSON NoneType"),
    ],
)
def test_a_file_of_another_format_is_named_for_what_it_looks_like(tmp_path, content, source, message):
    writers = {"captions": write_captions, "refs": write_referring, "instances": write_simple_instances}
    (tmp_path / "images").mkdir()
    path = writers[content](tmp_path) if isinstance(content, str) else write_json(tmp_path / "file.json", content)
    with pytest.raises(ValueError) as caught:
        read(tmp_path, path, source)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_input_is_named(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"cut\.json cannot be read as JSON"):
        read(tmp_path, tmp_path / "cut.json")
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"deep\.json cannot be read as JSON"):
        read(tmp_path, tmp_path / "deep.json")
    with pytest.raises(ValueError, match="does not exist"):
        read(tmp_path, tmp_path / "absent.json")
    with pytest.raises(ValueError, match=r"image folder .* does not exist"):
        read(tmp_path / "elsewhere", tmp_path / "cut.json")
    with pytest.raises(ValueError, match="unknown source 'coca'; choose from coco"):
        read(tmp_path, tmp_path / "cut.json", "coca")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("coco", write_simple_instances),
        ("synthetic", write_simple_instances),
        ("captions", write_captions),
        ("refcoco", write_referring),
        ("refcoco+", write_referring),
        ("refcocog", write_referring),
    ],
)
def test_records_carry_the_name_of_their_source(tmp_path, name, write):
    (tmp_path / "images").mkdir()
    records, _, _ = read(tmp_path, write(tmp_path), name)
    assert {record.source for record in records} == {name}
    assert {record.id.partition(":")[0] for record in records} == {name}


@pytest.mark.parametrize("name", SOURCES)
def test_every_registered_source_has_a_reader_and_says_what_it_is(name):
    module, _, maker = SOURCES[name].reader.partition(":")
    assert callable(getattr(importlib.import_module(f"data_pipelines.sources.{module}"), maker))
    assert SOURCES[name].summary
