"""What comes out of VCR, and why the rest does not."""

import json

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from data_pipelines.records import Turn

from .annotation_files import box_mask, write_json, write_picture
from .source_reading import read_source

NAMES = ["person", "person", "potted plant"]
METADATA = {
    "names": NAMES,
    "width": 60,
    "height": 40,
    "boxes": [[3.2, 4.0, 20.0, 30.0, 0.99], [30.0, 5.0, 50.5, 25.0, 0.9], [1.0, 1.0, 9.0, 9.0, 0.5]],
    "segms": [[[[4, 5], [18, 5], [18, 29], [4, 29]], [[25, 5], [28, 5], [28, 9]]], [], [[[2, 2], [5, 5]]]],
}


def question(number, **changes) -> dict:
    entry = {
        "annot_id": f"train-{number}",
        "img_fn": "movie/a@0.jpg",
        "metadata_fn": "movie/a@0.json",
        "objects": NAMES,
        "question_orig": "Does 2 like 3 ?",
        "question": ["Does", [1], "like", [2], "?"],
        "answer_orig": "No, 1 < 2.",
        "rationale_orig": "2's frown says so in 13th place, naïve 犬.",
        "answer_label": 1,
    }
    return {**entry, **changes}


def write_vcr(folder, questions):
    write_picture(folder / "images", "movie/a@0.jpg")
    write_json(folder / "images" / "movie" / "a@0.json", METADATA)
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in questions), encoding="utf-8")
    return path


def test_numbers_count_the_objects_from_1_as_the_tokenised_question_shows(tmp_path):
    path = write_vcr(tmp_path, [question(0)])
    (record,) = read_source("vcr", path, tmp_path / "images").records
    assert (record.id, record.image, record.height, record.width) == ("vcr:train-0", "movie/a@0.jpg", 40, 60)
    tokens = question(0)["question"]
    numbers = [f"<region{token[0] + 1}>" if isinstance(token, list) else token for token in tokens]
    assert record.turns == (
        Turn("user", " ".join(numbers)),
        Turn("assistant", "No, <region1> < <region2>."),
    )
    assert record.metadata == {"rationale": "<region2>'s frown says so in 13th place, naïve 犬."}


def test_all_objects_are_regions_and_boxes_stand_in_for_outlines(tmp_path):
    reading = read_source("vcr", write_vcr(tmp_path, [question(0)]), tmp_path / "images")
    regions = reading.records[0].regions
    assert [(region.id, region.name) for region in regions] == [("1", "person"), ("2", "person"), ("3", "potted plant")]
    flat = [[float(value) for point in polygon for value in point] for polygon in METADATA["segms"][0]]
    outline = mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(flat, 40, 60))).astype(bool)
    for region, mask in zip(regions, (outline, box_mask(30, 5, 51, 25), box_mask(1, 1, 9, 9)), strict=True):
        assert np.array_equal(mask_utils.decode(region.segmentation).astype(bool), mask)
    (note,) = reading.rejections
    assert (note.reason, note.annotations) == ("outline cannot be used, box kept", 0)
    assert note.detail.startswith("object 3 degenerate polygon")


TRAPS = [
    ("number that is no object", {"question_orig": "Why is 4 here?"}),
    ("number that is no object", {"answer_orig": "0 likes it."}),
    ("number that is no object", {"rationale_orig": "It is 99999999999 o'clock."}),
    ("question without text", {"question_orig": " "}),
    ("answer without text", {"answer_orig": None}),
    ("rationale without text", {"rationale_orig": 5}),
    ("question without objects", {"objects": []}),
    ("question without objects", {"objects": "person"}),
    ("object without a name", {"objects": ["person", "", "cat"]}),
    ("objects and metadata differ", {"objects": ["person", "cat", "dog", "bird"]}),
    ("question without a metadata file", {"metadata_fn": 3}),
    ("metadata file not found", {"metadata_fn": "movie/b.json"}),
    ("metadata path leaves the image folder", {"metadata_fn": "../outside.json"}),
    ("metadata file cannot be read", {"metadata_fn": "movie/a@0.jpg"}),
    ("metadata file cannot be read", {"metadata_fn": "list.json"}),
    ("metadata file cannot be read", {"metadata_fn": "deep.json"}),
    ("metadata file cannot be read", {"metadata_fn": "x" * 5000}),
    ("picture without a size", {"metadata_fn": "small.json"}),
    ("malformed box", {"metadata_fn": "boxes.json"}),
    ("box lies outside the picture", {"metadata_fn": "outside.json"}),
    ("picture not found", {"img_fn": "movie/b.jpg"}),
    ("image path leaves the image folder", {"img_fn": "../outside.jpg"}),
    ("picture without a file name", {"img_fn": None}),
    ("text that is not Unicode", {"question_orig": "\ud800 why?"}),
]


def test_what_cannot_be_used_is_named_with_its_reason(tmp_path):
    questions = [question(number, **changes) for number, (_, changes) in enumerate(TRAPS)]
    path = write_vcr(tmp_path, [*questions, question(0), question(0, annot_id=None)])
    images = tmp_path / "images"
    write_json(images / "list.json", [1])
    (images / "deep.json").write_text("[" * 200_000)
    write_json(images / "small.json", {**METADATA, "height": "40"})
    write_json(images / "boxes.json", {**METADATA, "boxes": [[1, 2], 7, None]})
    write_json(images / "outside.json", {**METADATA, "boxes": METADATA["boxes"][:1] + [[90, 1, 99, 9, 1]] * 2})
    reading = read_source("vcr", path, images)
    assert [record.id for record in reading.records] == [f"vcr:{len(TRAPS) + 1}"]
    twice, *rejections, note = reading.rejections
    assert (twice.id, twice.reason) == (f"vcr:{len(TRAPS)}", "id stands twice")
    assert [(item.id, item.reason) for item in rejections] == [
        (f"vcr:train-{number}", reason) for number, (reason, _) in enumerate(TRAPS)
    ]
    assert note.annotations == 0
    assert all("\n" not in item.detail and len(item.detail) < 600 for item in rejections)
    assert reading.counts_in["annotations"] == 1 + len(rejections) + 1 == len(TRAPS) + 2


def test_broken_lines_and_other_files_are_named(tmp_path):
    path = write_vcr(tmp_path, [question(0)])
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(ValueError, match=r"train\.jsonl, line 2, cannot be read as JSON"):
        read_source("vcr", path, tmp_path / "images")
    write_json(path, {"images": [{"id": 1}], "annotations": [{"segmentation": []}], "categories": [{"id": 1}]})
    with pytest.raises(ValueError, match=r"is not VCR questions: this looks like COCO instances, use `coco`"):
        read_source("vcr", path, tmp_path / "images")
