"""What comes out of LLaVA's image-level sets, and why the rest does not."""

import io
import json

import numpy as np
import pytest
from PIL import ExifTags, Image

from data_pipelines.records import Turn
from osprey_tp.images import load_image, picture_size

from .annotation_files import write_json, write_picture
from .source_reading import read_source
from .test_osprey724k_source import said


def write_llava(folder, entries, name: str = "llava.json"):
    write_picture(folder / "images", "coco/train2017/000000033471.jpg", 48, 64)
    write_picture(folder / "images", "gqa/1.png", 30, 20)
    return write_json(folder / name, entries)


PICTURE = "coco/train2017/000000033471.jpg"


def test_conversations_with_and_without_a_picture(tmp_path):
    entries = [
        {"id": "a1", "image": PICTURE, "conversations": said("<image>\nWhat is it?", "A naïve 犬, 1 < 2.")},
        {
            "id": "a2",
            "image": "gqa/1.png",
            "conversations": said("What is it?\n<image>", "x = <b>y</b>", "Why?", "So."),
        },
        {"id": 558, "image": PICTURE, "conversations": said("<image>", "a caption ")},
        {"id": "text", "conversations": said("Write <html>.", "<html></html> shows an <image>.")},
        {"id": "null", "image": None, "model": "", "conversations": said("Hello", "Hi")},
    ]
    reading = read_source("llava", write_llava(tmp_path, entries), tmp_path / "images")
    found = [(record.id, record.image, record.height, record.width, record.turns[:2]) for record in reading.records]
    assert found == [
        ("llava:a1", PICTURE, 48, 64, (Turn("user", "What is it?"), Turn("assistant", "A naïve 犬, 1 < 2."))),
        ("llava:a2", "gqa/1.png", 30, 20, (Turn("user", "What is it?"), Turn("assistant", "x = <b>y</b>"))),
        ("llava:558", PICTURE, 48, 64, (Turn("user", ""), Turn("assistant", "a caption"))),
        (
            *("llava:text", "", 0, 0),
            (Turn("user", "Write <html>."), Turn("assistant", "<html></html> shows an <image>.")),
        ),
        ("llava:null", "", 0, 0, (Turn("user", "Hello"), Turn("assistant", "Hi"))),
    ]
    assert [record.has_image for record in reading.records] == [True, True, True, False, False]
    assert reading.rejections == []
    assert reading.counts_in == {"images": 5, "annotations": 5}


def test_ids_that_stand_twice_are_told_apart_by_their_place(tmp_path):
    talk = said("Hello", "Hi")
    entries = [{"id": own, "conversations": talk} for own in ("a", "b", "a", 7, "7", "a", None, "")]
    reading = read_source("llava", write_llava(tmp_path, entries), tmp_path / "images")
    assert [record.id.removeprefix("llava:") for record in reading.records] == [
        *("a", "b", "a@2", "7", "7@4", "a@5", "@6", "@7")
    ]
    assert reading.rejections == []


def test_a_dialogue_that_begins_or_ends_in_the_middle_is_trimmed_and_said_so(tmp_path):
    answer, question = {"from": "gpt", "value": "First."}, {"from": "human", "value": "Last?"}
    entries = [
        {"id": "both", "conversations": [answer, *said("Hello", "Hi"), question]},
        {"id": "only", "conversations": [answer, question]},
    ]
    reading = read_source("llava", write_llava(tmp_path, entries), tmp_path / "images")
    assert [[turn.text for turn in record.turns] for record in reading.records] == [["Hello", "Hi"]]
    assert [(item.id, item.reason, item.annotations, item.detail) for item in reading.rejections] == [
        ("llava:both", "turn without its question or answer left out", 0, "first turn 'First.'"),
        ("llava:both", "turn without its question or answer left out", 0, "last turn 'Last?'"),
        ("llava:only", "fewer than two turns", 1, "0 turns"),
    ]


TALK = said("<image>\nWhat?", "A dog.")
TRAPS = [
    ("several pictures", {"image": ["a.jpg", "b.jpg"]}),
    ("several pictures", {"conversations": said("<image>\n<image>\nWhat?", "A dog.")}),
    ("several pictures", {"conversations": said("<image>\nWhat?", "A dog.", "<image> And?", "A cat.")}),
    ("picture mark without a picture", {"image": None}),
    ("picture not found", {"image": "coco/train2017/000000033472.jpg"}),
    ("image path leaves the image folder", {"image": "../outside.jpg"}),
    ("image path leaves the image folder", {"image": "/etc/hostname"}),
    ("picture without a file name", {"image": 5}),
    ("picture cannot be read", {"image": "broken.jpg"}),
    ("picture cannot be read", {"image": "huge.png"}),
    ("turn of an unknown role", {"conversations": [{"from": "system", "value": "Be nice."}, *TALK]}),
    ("turn of an unknown role", {"conversations": [{"from": ["human"], "value": "x"}, *TALK]}),
    ("turns do not alternate between user and assistant", {"conversations": [*TALK, *TALK[1:], *TALK[1:]]}),
    ("question without text", {"conversations": said("", "A dog.")}),
    ("question without text", {"image": "", "conversations": said("Hello", "Hi", " ", "A dog.")}),
    ("answer without text", {"conversations": said("<image>\nWhat?", None)}),
    ("region reference out of range", {"conversations": said("<image>\nWhat is <region1>?", "A dog.")}),
    ("no conversation", {"conversations": {"human": "What?"}}),
    ("no conversation", {"conversations": None}),
]


def test_what_cannot_be_used_is_named_with_its_reason(tmp_path):
    entries = [{"id": f"x{n}", "image": PICTURE, "conversations": TALK, **trap} for n, (_, trap) in enumerate(TRAPS)]
    path = write_llava(tmp_path, [*entries, ["no entry"]])
    write_picture(tmp_path, "outside.jpg")
    (tmp_path / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    (tmp_path / "images" / "huge.png").write_bytes(buffer.getvalue())
    reading = read_source("llava", path, tmp_path / "images")
    assert reading.records == []
    first, *rejections = reading.rejections
    assert (first.id, first.reason, first.detail) == (f"llava:{len(TRAPS)}", "entry that is no object", "a list of 1")
    assert [(item.id, item.reason) for item in rejections] == [
        (f"llava:x{number}", reason) for number, (reason, _) in enumerate(TRAPS)
    ]
    assert reading.counts_in["annotations"] == len(reading.rejections)


def test_one_object_a_line_is_read_too(tmp_path):
    path = write_llava(tmp_path, [])
    entries = [{"id": str(number), "conversations": said("Hello", "Hi")} for number in range(3)]
    path.write_text("\n".join(map(json.dumps, entries)))
    reading = read_source("llava", path, tmp_path / "images")
    assert [record.id for record in reading.records] == ["llava:0", "llava:1", "llava:2"]


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_picture_turned_upright(tmp_path, extension, orientation):
    picture = Image.fromarray(np.zeros((30, 50, 3), np.uint8))
    exif = picture.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"turned.{extension}"
    picture.save(path, exif=exif)
    image = load_image(path)
    assert picture_size(path) == (image.height, image.width) == ((50, 30) if orientation > 4 else (30, 50))


def test_a_header_is_enough_for_the_size(tmp_path):
    write_picture(tmp_path, "whole.jpg", 300, 400)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    assert picture_size(tmp_path / "cut.jpg") == (300, 400)
    with pytest.raises(ValueError, match="cannot be read"):
        load_image(tmp_path / "cut.jpg")
    with pytest.raises(ValueError, match="the limit is 1000"):
        picture_size(tmp_path / "whole.jpg", 1000)
