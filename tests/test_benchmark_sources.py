"""What comes out of Ferret-Bench, POPE and DLC-Bench, and why the rest does not."""

import json

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from data_pipelines.prepare import prepare
from data_pipelines.records import RecordFolder, Turn, record_problems

from .annotation_files import (
    CATEGORIES,
    annotation_entry,
    box_mask,
    compressed,
    image_entry,
    polygon,
    write_json,
    write_picture,
)
from .source_reading import read_source


def ferret(number, **changes) -> dict:
    box = {"bbox": [2.5, 3.0, 17.5, 27.0], "segmentation": [polygon(2.5, 3, 20, 30)]}
    entry = {"question_id": number, "image": "000000069138.jpg", "category": "description"}
    return {**entry, "text": "What surrounds <region>, 1 < 2, naïve 犬?", "annotation": box, **changes}


def test_ferret_bench_asks_one_region_and_nobody_has_answered(tmp_path):
    write_picture(tmp_path / "images", "000000069138.jpg")
    write_picture(tmp_path, "outside.jpg")
    traps = [
        ("question without text", {"text": ""}),
        ("question that names no region", {"text": "What is it?"}),
        ("picture not found", {"image": "000000069139.jpg"}),
        ("image path leaves the image folder", {"image": "../outside.jpg"}),
        ("question without a region", {"annotation": None}),
        ("segmentation lies outside the picture", {"annotation": {"segmentation": [polygon(99, 1, 120, 9)]}}),
        ("malformed box", {"annotation": {"segmentation": None, "bbox": [1, 2, 3]}}),
    ]
    entries = [
        ferret(0),
        ferret(1, annotation={"bbox": [30, 5, 20, 20]}),
        ferret(0),
        ferret(None),
        *(ferret(10 + number, **trap) for number, (_, trap) in enumerate(traps)),
    ]
    path = write_json(tmp_path / "box_refer_caption.json", entries)
    reading = read_source("ferret-bench", path, tmp_path / "images")
    first, second = reading.records
    assert (first.id, first.height, first.width) == ("ferret-bench:0", 40, 60)
    assert first.turns == (Turn("user", "What surrounds <region1>, 1 < 2, naïve 犬?"),)
    assert first.metadata == {"question_id": 0, "category": "description"}
    rles = mask_utils.frPyObjects([polygon(2.5, 3, 20, 30)], 40, 60)
    assert np.array_equal(mask_utils.decode(first.regions[0].segmentation), mask_utils.decode(mask_utils.merge(rles)))
    assert np.array_equal(mask_utils.decode(second.regions[0].segmentation).astype(bool), box_mask(30, 5, 50, 25))
    assert record_problems(first, "evaluation") == [] != record_problems(first, "training")
    assert [(item.id, item.reason) for item in reading.rejections] == [
        ("ferret-bench:2", "id stands twice"),
        ("ferret-bench:3", "question without an id"),
        *((f"ferret-bench:{10 + number}", reason) for number, (reason, _) in enumerate(traps)),
    ]


def pope(number, **changes) -> dict:
    entry = {"question_id": number, "image": "COCO_val2014_000000310196.jpg", "label": "yes"}
    return {**entry, "text": "Is there a snowboard in the image?", **changes}


@pytest.mark.parametrize("as_list", [False, True])
def test_pope_asks_about_whole_pictures(tmp_path, as_list):
    write_picture(tmp_path / "images", "000000310196.jpg", 31, 47)
    traps = [
        ("label that is neither yes nor no", {"label": "maybe"}),
        ("label that is neither yes nor no", {"label": True}),
        ("question without text", {"text": None}),
        ("picture not found", {"image": "COCO_val2014_000000310197.jpg"}),
    ]
    entries = [pope(1), pope(2, label="no"), pope(1), *(pope(10 + n, **trap) for n, (_, trap) in enumerate(traps))]
    path = tmp_path / "coco_pope_random.json"
    path.write_text(json.dumps(entries) if as_list else "".join(json.dumps(entry) + "\n" for entry in entries))
    reading = read_source("pope", path, tmp_path / "images")
    first, second = reading.records
    assert (first.id, first.image, first.height, first.width) == ("pope:1", "000000310196.jpg", 31, 47)
    assert first.turns == (Turn("user", "Is there a snowboard in the image?"), Turn("assistant", "yes"))
    assert first.metadata == {"question_id": 1, "label": "yes"}
    assert second.turns[1] == Turn("assistant", "no") and second.regions == ()
    assert [(item.id, item.reason) for item in reading.rejections] == [
        ("pope:2", "id stands twice"),
        *((f"pope:{10 + number}", reason) for number, (reason, _) in enumerate(traps)),
    ]
    assert reading.counts_in["annotations"] == len(entries)


QUESTIONS = [
    {
        "question": "What is it?",
        "choices": [["a zebra", "correct"], ["a naïve 犬", "incorrect"]],
        "type": "recognition",
    },
    {"question": "How is it?", "choices": [["striped", 1], ["not said", 0], ["plain", -1]], "type": "positive"},
]


def write_dlc_bench(folder):
    write_picture(folder / "images", "images/objects365_v2_00000001.jpg")
    images = [image_entry(1, file_name="images/objects365_v2_00000001.jpg"), image_entry(2, file_name="absent.jpg")]
    annotations = [
        annotation_entry(1077, 1, compressed(box_mask(2, 3, 20, 30))),
        annotation_entry(1078, 1, [polygon(30, 5, 50, 25)]),
        annotation_entry(1079, 1, [polygon(30, 5, 50, 25)]),
        annotation_entry(1080, 1, None),
        annotation_entry(1081, 2, [polygon(30, 5, 50, 25)]),
        annotation_entry(1082, 1, [polygon(30, 5, 50, 25)]),
    ]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    questions = {**dict.fromkeys(("1077", "1078", "1080", "1081"), QUESTIONS), "1079": [], "1082": [{"question": "?"}]}
    write_json(folder / "qa.json", questions)
    return write_json(folder / "annotations.json", content)


def test_dlc_bench_asks_each_region_and_keeps_its_questions(tmp_path):
    path = write_dlc_bench(tmp_path)
    reading = read_source("dlc-bench", path, tmp_path / "images")
    assert [(record.id, record.regions[0].name) for record in reading.records] == [
        ("dlc-bench:1077", "cat"),
        ("dlc-bench:1078", "cat"),
    ]
    for record, mask in zip(reading.records, (box_mask(2, 3, 20, 30), box_mask(30, 5, 50, 25)), strict=True):
        assert record.turns == (Turn("user", "<region1>"),)
        assert record.metadata == {"questions": QUESTIONS}
        assert np.array_equal(mask_utils.decode(record.regions[0].segmentation).astype(bool), mask)
        assert record_problems(record, "evaluation") == []
    assert [(item.id, item.reason) for item in reading.rejections] == [
        ("dlc-bench:1079", "annotation without questions"),
        ("dlc-bench:1080", "no segmentation"),
        ("dlc-bench:1082", "annotation without questions"),
        ("dlc-bench:2", "picture not found"),
    ]
    write_json(tmp_path / "class_names.json", {"1077": "zebra", "1078": " "})
    records = read_source("dlc-bench", path, tmp_path / "images").records
    assert [record.regions[0].name for record in records] == ["zebra", "cat"]


def test_dlc_bench_needs_its_questions(tmp_path):
    path = write_dlc_bench(tmp_path)
    with pytest.raises(ValueError, match="does not hold lists of questions by annotation id"):
        read_source("dlc-bench", path, tmp_path / "images", inputs={"qa": path})
    (tmp_path / "qa.json").unlink()
    with pytest.raises(ValueError, match=r"needs the qa\.json with the questions: name it with --input qa=PATH"):
        read_source("dlc-bench", path, tmp_path / "images")


@pytest.mark.parametrize("source", ["ferret-bench", "pope", "dlc-bench"])
def test_benchmarks_are_prepared_for_evaluation(tmp_path, source):
    writers = {
        "ferret-bench": lambda: write_json(tmp_path / "f.json", [ferret(0)]),
        "pope": lambda: write_json(tmp_path / "p.json", [pope(1)]),
        "dlc-bench": lambda: write_dlc_bench(tmp_path),
    }
    for name in ("000000069138.jpg", "000000310196.jpg"):
        write_picture(tmp_path / "images", name)
    manifest = prepare(source, writers[source](), tmp_path / "images", tmp_path / "out", progress=False)
    assert manifest["purpose"] == "evaluation"
    folder = RecordFolder.open(tmp_path / "out")
    assert folder.purpose == "evaluation" and folder[0].source == source
