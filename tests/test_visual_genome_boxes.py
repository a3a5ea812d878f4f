"""What comes out of Visual Genome's region descriptions: boxes, or masks that a segmenter finds in them."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from .annotation_files import box_mask, write_json, write_picture
from .source_reading import read_source


def region(number: int, x, y, width, height, phrase, **changes) -> dict:
    entry = {"region_id": number, "image_id": 1, "x": x, "y": y, "width": width, "height": height, "phrase": phrase}
    return {**entry, **changes}


def write_visual_genome(folder):
    write_picture(folder / "images", "VG_100K/1.jpg")
    write_picture(folder / "images", "VG_100K_2/2.jpg")
    write_picture(folder / "images", "7.jpg")
    sizes = [{"image_id": number, "width": 60, "height": 40, "url": "https://x/1.jpg"} for number in (1, 2, 3, 7, 7)]
    write_json(folder / "image_data.json", [*sizes, {"image_id": 8, "url": "", "width": 60}, {"url": ""}])
    listed = [
        {
            "id": 1,
            "regions": [
                region(11, 3, 4, 20, 10, " the naïve 犬 < a cat\n"),
                region(12, -5, 30, 20, 40, "reaches over the edge"),
                region(13, 70, 4, 20, 10, "outside"),
                region(14, 3, 4, 0, 10, "flat"),
                region(15, "3", 4, 5, 10, "no number"),
                region(16, 3, 4, 5, 10, "  "),
                region(17, 3, 4, 5, 10, "see <region2>"),
                "no region",
            ],
        },
        {"id": 2, "regions": [region(21, 0, 0, 60, 40, "everything")]},
        {"id": 3, "regions": [region(31, 0, 0, 6, 4, "no picture"), region(32, 0, 0, 6, 4, "nor here")]},
        {"id": 4, "regions": [region(41, 0, 0, 6, 4, "no size"), region(42, 0, 0, 6, 4, "nor here")]},
        {"id": 2, "regions": [region(22, 0, 0, 6, 4, "twice")]},
        {"id": 7, "regions": []},
        {"id": 8, "regions": [region(81, 0, 0, 6, 4, "no height")]},
        {"regions": []},
    ]
    return write_json(folder / "region_descriptions.json", listed)


def test_boxes_are_regions_with_their_phrases(tmp_path):
    reading = read_source("visual-genome", write_visual_genome(tmp_path), tmp_path / "images")
    first, second = reading.records
    assert (first.id, first.image, first.turns) == ("visual-genome:1", "VG_100K/1.jpg", ())
    assert (second.id, second.image, second.height, second.width) == ("visual-genome:2", "VG_100K_2/2.jpg", 40, 60)
    assert [(item.id, item.name, item.box) for item in first.regions] == [
        ("11", "the naïve 犬 < a cat", (3, 4, 23, 14)),
        ("12", "reaches over the edge", (0, 30, 15, 40)),
    ]
    expected = [box_mask(3, 4, 23, 14), box_mask(0, 30, 15, 40), box_mask(0, 0, 60, 40)]
    for item, mask in zip((*first.regions, *second.regions), expected, strict=True):
        assert np.array_equal(mask_utils.decode(item.segmentation).astype(bool), mask)
    assert [(item.id.removeprefix("visual-genome:"), item.reason, item.annotations) for item in reading.rejections] == [
        ("7", "image id stands twice", 0),
        ("?", "image entry without an id", 0),
        ("2", "image id stands twice", 1),
        ("?", "picture without its regions", 1),
        ("4", "regions of an unknown picture", 2),
        ("1#12", "box reaches beyond the picture and was clipped", 0),
        ("1#13", "box lies outside the picture", 1),
        ("1#14", "box without area", 1),
        ("1#15", "malformed box", 1),
        ("1#16", "caption without text", 1),
        ("1#17", "caption holds a placeholder of the prompt", 1),
        ("1#?", "malformed region", 1),
        ("3", "picture not found", 2),
        ("7", "picture without a usable region", 0),
        ("8", "picture without a size", 1),
    ]
    kept = sum(len(record.regions) for record in reading.records)
    assert reading.counts_in["annotations"] == kept + sum(item.annotations for item in reading.rejections)


def test_a_segmenter_finds_the_object_in_its_box(tmp_path):
    pixels = np.full((120, 160, 3), (30, 120, 40), np.uint8)
    disc = (np.arange(120)[:, None] - 60) ** 2 + (np.arange(160)[None, :] - 80) ** 2 < 30**2
    pixels[disc] = (220, 40, 30)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "1.png")
    (tmp_path / "images" / "1.png").rename(tmp_path / "images" / "1.jpg")
    write_json(tmp_path / "image_data.json", [{"image_id": 1, "width": 160, "height": 120, "url": ""}])
    listed = [{"id": 1, "regions": [region(1, 45, 25, 70, 70, "a red disc")]}]
    path = write_json(tmp_path / "region_descriptions.json", listed)
    reading = read_source("visual-genome", path, tmp_path / "images", segmenter="grabcut")
    mask = mask_utils.decode(reading.records[0].regions[0].segmentation).astype(bool)
    assert (mask & disc).sum() / (mask | disc).sum() > 0.95
    assert read_source("visual-genome", path, tmp_path / "images", segmenter="grabcut") == reading
    write_json(tmp_path / "image_data.json", [{"image_id": 1, "width": 161, "height": 120, "url": ""}])
    (rejection,) = read_source("visual-genome", path, tmp_path / "images", segmenter="grabcut").rejections
    assert rejection.reason == "picture of another size than the annotations say"


def test_where_the_segmenter_finds_nothing_the_box_stays_and_that_is_noted(tmp_path, monkeypatch):
    class Finds:
        def open(self, image):
            return self

        def segment(self, points, labels, box):
            raise ValueError("nothing found")

    monkeypatch.setattr("data_pipelines.sources.visual_genome_boxes.load_segmenter", lambda name: Finds())
    reading = read_source("visual-genome", write_visual_genome(tmp_path), tmp_path / "images", segmenter="nothing")
    assert reading.records[0].regions[0].box == (3, 4, 23, 14)
    kept = [item for item in reading.rejections if item.reason == "segmenter found nothing, box kept"]
    assert [(item.id, item.annotations, item.detail) for item in kept] == [
        ("visual-genome:1#11", 0, "nothing found"),
        ("visual-genome:1#12", 0, "nothing found"),
        ("visual-genome:2#21", 0, "nothing found"),
    ]


def test_wrong_inputs_are_named(tmp_path):
    path = write_visual_genome(tmp_path)
    with pytest.raises(ValueError, match="unknown segmenter 'magic'"):
        read_source("visual-genome", path, tmp_path / "images", segmenter="magic")
    with pytest.raises(
        ValueError, match=r"is not Visual Genome's image_data\.json: this looks like .* `visual-genome`"
    ):
        read_source("visual-genome", path, tmp_path / "images", inputs={"image_data": path})
    (tmp_path / "image_data.json").rename(tmp_path / "sizes.json")
    with pytest.raises(ValueError, match=r"needs the image_data\.json .* --input image_data=PATH"):
        read_source("visual-genome", path, tmp_path / "images")
    records = read_source("visual-genome", path, tmp_path / "images", inputs={"image_data": tmp_path / "sizes.json"})
    assert len(records.records) == 2
