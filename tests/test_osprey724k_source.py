"""What comes out of the five parts of Osprey-724K, and why the rest does not."""

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from data_pipelines.records import Turn

from .annotation_files import HEIGHT, WIDTH, box_mask, compressed, polygon, uncompressed, write_json, write_picture
from .source_reading import read_source

CONVERSATIONS = (
    "osprey-short-form",
    "osprey-part-level",
    "osprey-conversation",
    "osprey-lvis-positive-negative",
)
FIRST, SECOND = box_mask(2, 3, 20, 30), box_mask(30, 5, 50, 25)


def said(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


def entry(**changes) -> dict:
    regions = [{"segmentation": uncompressed(FIRST), "bbox": [2, 3, 18, 27]}, {"segmentation": compressed(SECOND)}]
    name = {"file_name": "COCO_train2014_000000000025.jpg", "height": HEIGHT, "width": WIDTH}
    return {**name, "annotation": regions, **changes}


def write_osprey(folder, entries, name: str = "osprey.json"):
    write_picture(folder / "images", "000000000025.jpg")
    write_picture(folder, "outside.jpg")
    return write_json(folder / name, entries)


@pytest.mark.parametrize("source", CONVERSATIONS)
def test_a_conversation_keeps_its_words(tmp_path, source):
    talk = said(
        "<image>\nThis provides an overview of the picture.\nWhat is <region2>?",
        " A naïve 犬, 1 < 2 & <b>.\n",
        "Where is <image> <region1>?",
        "Left of <region2>.",
    )
    path = write_osprey(tmp_path, [entry(conversations=talk)])
    reading = read_source(source, path, tmp_path / "images")
    (record,) = reading.records
    assert (record.id, record.source, record.image) == (f"{source}:0", source, "000000000025.jpg")
    assert record.turns == (
        Turn("user", "What is <region2>?"),
        Turn("assistant", "A naïve 犬, 1 < 2 & <b>."),
        Turn("user", "Where is <region1>?"),
        Turn("assistant", "Left of <region2>."),
    )
    assert [region.box for region in record.regions] == [(2, 3, 20, 30), (30, 5, 50, 25)]
    for region, mask in zip(record.regions, (FIRST, SECOND), strict=True):
        assert np.array_equal(mask_utils.decode(region.segmentation).astype(bool), mask)
    assert reading.rejections == []
    assert reading.counts_in == {"images": 1, "annotations": 2}


def test_file_names_without_a_prefix_stay_as_they_are(tmp_path):
    path = write_osprey(tmp_path, [entry(file_name="000000000025.jpg", conversations=said("<region1>?", "yes"))])
    (record,) = read_source("osprey-lvis-positive-negative", path, tmp_path / "images").records
    assert record.image == "000000000025.jpg"


GOOD = said("What is <region1>?", "A dog.")
BAD_REGION = [{"segmentation": compressed(FIRST)}, {"segmentation": None}]
TRAPS = [
    ("region reference out of range", {"conversations": said("What is <region3>?", "A dog.")}, 2),
    ("region reference out of range", {"conversations": said("What is it?", "<region0>.")}, 2),
    ("region reference out of range", {"conversations": said(f"<region{'9' * 5000}>?", "A dog.")}, 2),
    ("fewer than two turns", {"conversations": []}, 2),
    ("fewer than two turns", {"conversations": said("What is <region1>?")}, 2),
    ("turns do not alternate between user and assistant", {"conversations": said("a?", "b", "c?")}, 2),
    ("turns do not alternate between user and assistant", {"conversations": [*GOOD, *GOOD[1:], *GOOD]}, 2),
    ("turn of an unknown role", {"conversations": [{"from": "system", "value": "x"}, *GOOD]}, 2),
    ("turn of an unknown role", {"conversations": ["x", "y"]}, 2),
    ("question without text", {"conversations": said("<image>\n", "A dog.")}, 2),
    ("answer without text", {"conversations": said("What?", " ")}, 2),
    ("answer without text", {"conversations": said("What?", 7)}, 2),
    ("no conversation", {"conversations": None}, 2),
    ("no segmentation", {"conversations": GOOD, "annotation": BAD_REGION}, 2),
    ("segmentation lies outside the picture", {"annotation": [{"segmentation": [polygon(99, 1, 120, 9)]}]}, 1),
    ("mask of another size than the picture", {"height": WIDTH, "width": HEIGHT}, 2),
    ("malformed annotation", {"annotation": ["mask"]}, 1),
    ("entry without regions", {"annotation": []}, 1),
    ("entry without regions", {"annotation": None}, 1),
    ("picture not found", {"file_name": "COCO_train2014_000000000026.jpg"}, 2),
    ("image path leaves the image folder", {"file_name": "../outside.jpg"}, 2),
    ("picture without a size", {"height": None}, 2),
]


def test_what_cannot_be_used_is_named_by_its_place(tmp_path):
    entries = [entry(**{"conversations": GOOD, **changes}) for _, changes, _ in TRAPS]
    path = write_osprey(tmp_path, [*entries, "no entry", entry(conversations=GOOD)])
    reading = read_source("osprey-conversation", path, tmp_path / "images")
    assert [record.id for record in reading.records] == [f"osprey-conversation:{len(TRAPS) + 1}"]
    first, *rejections = reading.rejections
    assert (first.id, first.reason) == (f"osprey-conversation:{len(TRAPS)}", "entry that is no object")
    assert [(item.id, item.reason, item.annotations) for item in rejections] == [
        (f"osprey-conversation:{place}", reason, lost) for place, (reason, _, lost) in enumerate(TRAPS)
    ]
    assert all("\n" not in item.detail and len(item.detail) < 300 for item in rejections)
    assert reading.counts_in["annotations"] == 2 + sum(item.annotations for item in reading.rejections)


@pytest.mark.parametrize("name", ["osprey_detail_description.json", "osprey_detailed_description.json"])
def test_detailed_descriptions_answer_for_the_region_they_name(tmp_path, name):
    texts = ["<region2>: A tall <b>naïve</b> 犬.\nIt stands.", " <region1> : Left of <region2>."]
    path = write_osprey(tmp_path, [entry(description=texts)], name)
    reading = read_source("osprey-detailed-description", path, tmp_path / "images")
    (record,) = reading.records
    assert record.id == "osprey-detailed-description:0"
    assert record.turns == (
        Turn("user", "<region1>"),
        Turn("assistant", "Left of <region2>."),
        Turn("user", "<region2>"),
        Turn("assistant", "A tall <b>naïve</b> 犬.\nIt stands."),
    )
    assert np.array_equal(mask_utils.decode(record.regions[0].segmentation).astype(bool), FIRST)
    assert reading.rejections == []


def test_regions_without_a_usable_description_or_mask_are_left_out(tmp_path):
    masks = [{"segmentation": mask} for mask in (None, compressed(FIRST), compressed(SECOND), compressed(FIRST))]
    texts = [
        "<region1>: no mask",
        "<region2>: fine",
        "<region3>: see <region2>",
        "<region5>: out of range",
        "<region3>: twice",
        "no region",
        "<region4>:  ",
        7,
    ]
    path = write_osprey(
        tmp_path,
        [
            entry(annotation=masks, description=texts),
            entry(annotation=masks[:2], description=["<region1>: x", "<region2>: next to <region1>"]),
            entry(description=["nothing"]),
            entry(description="<region1>: x"),
        ],
    )
    reading = read_source("osprey-detailed-description", path, tmp_path / "images")
    (record,) = reading.records
    assert [turn.text for turn in record.turns] == ["<region1>", "fine", "<region2>", "see <region1>"]
    assert [region.id for region in record.regions] == ["2", "3"]
    assert np.array_equal(mask_utils.decode(record.regions[1].segmentation).astype(bool), SECOND)
    name = "osprey-detailed-description"
    assert [(item.id.removeprefix(name), item.reason, item.annotations) for item in reading.rejections] == [
        (":0", "region reference out of range", 0),
        (":0", "region described twice", 0),
        (":0", "description that names no region", 0),
        (":0", "description without text", 0),
        (":0", "description without text", 0),
        (":0#1", "no segmentation", 1),
        (":0#4", "region without a description", 1),
        (":1", "description speaks of a region that was left out", 2),
        (":2", "no region with a description", 2),
        (":3", "entry without descriptions", 2),
    ]
    assert reading.counts_in["annotations"] == 2 + sum(item.annotations for item in reading.rejections)


@pytest.mark.parametrize(
    ("content", "source", "message"),
    [
        ([entry(description=["x"])], "osprey-conversation", "Osprey-724K detailed descriptions, use `osprey-detailed-"),
        ([entry(conversations=GOOD)], "osprey-detailed-description", "use `osprey-short-form` or `osprey-part-level`"),
        ([{"id": 1, "conversations": GOOD}], "osprey-short-form", "this looks like LLaVA conversations, use `llava`"),
        ([{"a": 1}], "osprey-short-form", "it holds a JSON list of objects with a, where a list of objects is"),
        ({"a": 1}, "osprey-short-form", "it holds an object with a, where a list of objects is expected"),
    ],
)
def test_other_files_are_named(tmp_path, content, source, message):
    with pytest.raises(ValueError) as caught:
        read_source(source, write_osprey(tmp_path, content), tmp_path / "images")
    assert message in str(caught.value)
