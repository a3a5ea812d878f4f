"""What comes out of REFER's original files, and why the rest does not."""

import json
import os
import pickle

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from data_pipelines.records import Turn

from .annotation_files import (
    annotation_entry,
    box_mask,
    compressed,
    image_entry,
    polygon,
    write_json,
    write_picture,
)
from .source_reading import read_source

NAME = "COCO_train2014_000000581857.jpg"


def sentence(number: int, sent: str, **changes) -> dict:
    return {"sent_id": number, "sent": sent, "raw": f"{sent.capitalize()}.", "tokens": sent.split(), **changes}


def reference(number: int, annotation: int, sentences: list, split: str = "train", **changes) -> dict:
    ids = [entry.get("sent_id") for entry in sentences if isinstance(entry, dict)]
    entry = {"ref_id": number, "ann_id": annotation, "image_id": 581857, "category_id": 1, "split": split}
    names = {"file_name": NAME.replace(".jpg", f"_{number}.jpg"), "sent_ids": ids, "sentences": sentences}
    return {**entry, **names, **changes}


REFERENCES = [
    reference(16, 1, [sentence(30, "the cat < the dog"), sentence(31, "café, left")]),
    reference(17, 2, [sentence(32, "right one", raw="\ud800")], split="testA"),
    reference(18, 1, [sentence(33, "again")], split="val"),
    reference(19, 3, [sentence(34, "a crowd")]),
    reference(20, 4, [sentence(35, "no mask"), sentence(36, "none")]),
    reference(21, 99, [sentence(37, "gone")]),
    reference(22, 5, [sentence(38, "picture is absent")], image_id=404),
    reference(23, 1, [sentence(39, "  "), sentence(40, "see <region1>"), {"sent": "no id"}, sentence(30, "fine")]),
    reference(24, 1, [sentence(41, "other picture")], image_id=404),
    reference(25, 1, []),
    reference(None, 1, [sentence(42, "no id")]),
    "no reference",
]
ANNOTATIONS = [
    annotation_entry(1, 581857, [polygon(2, 2, 20, 20), polygon(30, 3, 33.5, 9.25)]),
    annotation_entry(2, 581857, compressed(box_mask(40, 1, 50, 30)), category_id=9),
    annotation_entry(3, 581857, compressed(box_mask(0, 0, 9, 9)), iscrowd=1),
    annotation_entry(4, 581857, None),
    annotation_entry(5, 404, [polygon(1, 1, 9, 9)]),
    annotation_entry(6, 581857, [polygon(1, 1, 9, 9)]),
]


def write_refer(folder, references=REFERENCES, protocol: int = 2):
    write_picture(folder / "images", "000000581857.jpg")
    images = [image_entry(581857, file_name=NAME), image_entry(404, file_name="../404.jpg")]
    content = {"images": images, "annotations": ANNOTATIONS, "categories": [{"id": 1, "name": "cat"}]}
    write_json(folder / "instances.json", content)
    path = folder / "refs(unc).p"
    path.write_bytes(pickle.dumps(references, protocol))
    return path


def read(folder, path, name="refcoco", **options):
    reading = read_source(name, path, folder / "images", **options)
    return reading.records, reading.rejections, reading


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_expression_is_a_record_about_its_region(tmp_path, protocol):
    records, rejections, reading = read(tmp_path, write_refer(tmp_path, protocol=protocol))
    assert [(record.id, record.turns[1].text) for record in records] == [
        ("refcoco:16-30", "the cat < the dog"),
        ("refcoco:16-31", "café, left"),
        ("refcoco:18-33", "again"),
        ("refcoco:23-30", "fine"),
        ("refcoco:17-32", "right one"),
    ]
    coco = COCO(tmp_path / "instances.json")
    for record, annotation in zip(records, (1, 1, 1, 1, 2), strict=True):
        assert (record.image, record.height, record.width) == ("000000581857.jpg", 40, 60)
        assert record.turns[0] == Turn("user", "<region1>")
        (region,) = record.regions
        assert np.array_equal(mask_utils.decode(region.segmentation), coco.annToMask(coco.anns[annotation]))
        assert (region.id, region.name) == (str(annotation), "cat" if annotation == 1 else "")
    assert records[0].metadata == {
        "split": "train",
        "ref_id": 16,
        "sentence_id": 30,
        "category_id": 1,
        "raw": "The cat < the dog.",
    }
    assert "raw" not in records[-1].metadata
    assert [(item.id, item.reason) for item in rejections] == [
        ("refcoco:23-?", "sentence without an id"),
        ("refcoco:25", "reference without its sentences"),
        ("refcoco:?", "reference without its ids"),
        ("refcoco:?", "reference that is no dictionary"),
        ("refcoco:21-37", "expression of an unknown annotation"),
        ("refcoco:23-39", "caption without text"),
        ("refcoco:23-40", "caption holds a placeholder of the prompt"),
        ("refcoco:24-41", "reference and annotation name different pictures"),
        ("refcoco:19-34", "crowd region"),
        ("refcoco:20-35", "no segmentation"),
        ("refcoco:20-36", "no segmentation"),
        ("refcoco:22-38", "image path leaves the image folder"),
    ]
    assert reading.counts_in["annotations"] == len(records) + sum(item.annotations for item in rejections) == 17


def test_one_split_is_read_without_a_word_about_the_others(tmp_path):
    path = write_refer(tmp_path)
    records, rejections, reading = read(tmp_path, path, split="testA")
    assert [record.id for record in records] == ["refcoco:17-32"]
    assert rejections == []
    assert reading.counts_in == {"images": 1, "annotations": 1}
    with pytest.raises(ValueError, match=r"has no split testB; it has testA, train, val$"):
        read(tmp_path, path, split="testB")
    with pytest.raises(ValueError, match=r"source refcoco has no split 'minival'; choose from train, val, test"):
        read(tmp_path, path, split="minival")


def test_crowds_are_kept_on_request(tmp_path):
    records, _, _ = read(tmp_path, write_refer(tmp_path), "refcocog", include_crowd=True)
    assert "refcocog:19-34" in [record.id for record in records]


def test_a_file_of_python_2_gives_the_same_records(tmp_path):
    """As Python 2 wrote it, with byte strings: protocol 2 of the text alone, then its opcodes changed to theirs."""
    path = write_refer(tmp_path, [reference(16, 1, [sentence(30, "the cat")])])
    expected = read(tmp_path, path)[0]
    data = path.read_bytes()
    for text in ("ref_id", "sentences", "the cat", "train", "sent", "ann_id"):
        unicode = b"X" + len(text).to_bytes(4, "little") + text.encode()
        assert unicode in data
        data = data.replace(unicode, b"U" + bytes([len(text)]) + text.encode())
    path.write_bytes(data)
    assert pickle.loads(data, encoding="bytes")[0][b"ref_id"] == 16
    assert read(tmp_path, path)[0] == expected


class Shell:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_malicious_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_refer(tmp_path, [*REFERENCES, Shell()])
    with pytest.raises(ValueError, match=r"is refused: it holds the name '\w+\.system'"):
        read(tmp_path, path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, r"not an original REFER file: it holds a dict, not a list"),
        ([{"image_id": 1}], r"not an original REFER file: nothing in it has ref_id"),
    ],
)
def test_another_pickle_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, write_refer(tmp_path, content))


def test_the_instances_are_needed_and_checked(tmp_path):
    path = write_refer(tmp_path)
    other = (tmp_path / "instances.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match=r"instances\.json does not exist; .* --input instances=PATH"):
        read(tmp_path, path)
    records, _, _ = read(tmp_path, path, inputs={"instances": other})
    assert len(records) == 5
    other.write_text(json.dumps({"images": [{"id": 1}], "annotations": [{"caption": "a", "image_id": 1}]}))
    with pytest.raises(ValueError, match="looks like COCO captions, use `captions`"):
        read(tmp_path, path, inputs={"instances": other})
    path.write_text("a text")
    with pytest.raises(ValueError, match="is no pickle"):
        read(tmp_path, path, inputs={"instances": other})


def test_a_folder_is_answered_with_the_files_in_it(tmp_path):
    write_refer(tmp_path)
    with pytest.raises(ValueError, match=r"a folder; give a file of references in it: refs\(unc\)\.p$"):
        read_source("refcoco", tmp_path, tmp_path / "images")


def test_what_a_small_file_repeats_does_not_grow(tmp_path):
    """A list of sentences that thousands of references share, and one long text that all of them hold."""
    shared = [sentence(number, "x") for number in range(2000)]
    references = [reference(number, 1, shared) for number in range(2000)]
    references.append(reference(2000, 1, [sentence(1, "y" * 1_000_000)]))
    records, rejections, _ = read(tmp_path, write_refer(tmp_path, references, 4))
    assert records == []
    assert {item.reason for item in rejections} == {"reference without its sentences", "caption without text"}
