"""What comes out of further files of COCO's form: LVIS, PACO, part data sets, Visual Genome, a user's own file."""

import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from data_pipelines.conversations import conversation_of
from data_pipelines.records import record_problems
from data_pipelines.sources import SOURCES, open_source
from data_pipelines.sources.reader import SourceOptions

from . import published_files as files
from .annotation_files import (
    box_mask,
    compressed,
    write_captions,
    write_json,
    write_picture,
    write_referring,
    write_simple_instances,
)
from .source_reading import read_source


def read(folder, write, source):
    return read_source(source, write(folder), folder / "images")


def reasons(reading):
    return [(item.id.partition(":")[2], item.reason, item.annotations) for item in reading.rejections]


def names(record):
    return [(region.id, region.name) for region in record.regions]


def assert_masks_are_those_of_pycocotools(path, records):
    coco = COCO(path)
    for region in (region for record in records for region in record.regions):
        expected = coco.annToMask(coco.anns[int(region.id)])
        assert np.array_equal(mask_utils.decode(region.segmentation), expected)


def assert_all_accounted_for(reading):
    told = [region.id for record in reading.records for region in record.regions]
    pictures = sum(1 for record in reading.records if not record.regions)
    lost = sum(item.annotations for item in reading.rejections)
    assert reading.counts_in["annotations"] == len(told) + pictures + lost
    for record in reading.records:
        assert record_problems(record) == []


def traps(image, first):
    return [(f"{image}#{first + place}", reason, 1) for place, reason in enumerate(files.MASK_TRAP_REASONS)]


def test_lvis_1_finds_pictures_by_their_address_and_keeps_what_is_absent(tmp_path):
    write_picture(tmp_path, "outside.jpg")
    reading = read(tmp_path, files.write_lvis, "lvis")
    first, second = reading.records
    assert (first.id, first.image) == ("lvis:391895", "train2017/000000391895.jpg")
    assert names(first) == [("1", "bow_(weapon)"), ("2", "naïve_犬")]
    assert first.metadata == {
        "category_ids": [2, 3],
        "negative_categories": ["naïve_犬", "aerosol_can"],
        "not_exhaustive_categories": ["bow_(weapon)"],
    }
    assert (second.image, names(second)) == ("000000000002.jpg", [("20", "aerosol_can")])
    assert second.metadata["negative_categories"] == ["aerosol_can"]
    assert reasons(reading) == [
        ("2#1", "annotation id stands twice", 1),
        ("391895#2", "segmentation reaches beyond the picture and was clipped", 0),
        *traps(391895, 10),
        ("2", "unknown category in a list of the picture", 0),
        ("3", "image path leaves the image folder", 1),
        ("4", "picture without a file name", 1),
    ]
    assert_all_accounted_for(reading)
    assert_masks_are_those_of_pycocotools(tmp_path / "lvis_v1_train.json", [first])


def test_lvis_05_has_the_file_names_of_coco_2014(tmp_path):
    reading = read(tmp_path, files.write_lvis_05, "lvis")
    assert [(record.id, record.image) for record in reading.records] == [("lvis:42", "000000000042.jpg")]
    assert reading.records[0].metadata["negative_categories"] == ["bow_(weapon)"]
    assert reading.rejections == []


def test_parts_of_paco_point_to_their_objects(tmp_path):
    reading = read(tmp_path, files.write_paco, "paco")
    (record,) = reading.records
    assert record.image == "000000000005.jpg"
    assert names(record) == [
        ("10", "mug"),
        ("11", "mug:handle"),
        ("12", "mug:handle"),
        ("13", "laptop_computer:back"),
    ]
    assert record.metadata["object_ids"] == ["", "10", "10", ""]
    assert record.metadata["category_ids"] == [1, 2, 2, 3]
    assert record.metadata["negative_categories"] == ["laptop_computer:back"]
    assert reasons(reading) == traps(5, 20)
    assert_all_accounted_for(reading)
    assert_masks_are_those_of_pycocotools(tmp_path / "paco_lvis_v1_val.json", reading.records)


def test_parts_of_pascal_keep_their_published_names(tmp_path):
    write_picture(tmp_path, "2008_000008.jpg")
    reading = read(tmp_path, files.write_pascal_part, "pascal-part")
    (record,) = reading.records
    assert (record.id, record.image) == ("pascal-part:1", "2008_000008.jpg")
    assert names(record) == [("1", "horse:head"), ("2", "potted plant:pot")]
    assert reasons(reading) == [*traps(1, 10), ("2", "image path leaves the image folder", 1)]
    assert_all_accounted_for(reading)
    assert_masks_are_those_of_pycocotools(tmp_path / "train.json", reading.records)


def test_parts_of_imagenet_keep_their_published_names(tmp_path):
    reading = read(tmp_path, files.write_partimagenet, "partimagenet")
    (record,) = reading.records
    assert (record.id, record.image) == ("partimagenet:1", "n02389026/n02389026_10029.jpeg")
    assert names(record) == [("1", "Quadruped Head"), ("2", "Car Side Mirror")]
    assert reasons(reading) == traps(1, 10)
    assert_all_accounted_for(reading)
    assert_masks_are_those_of_pycocotools(tmp_path / "train_format.json", reading.records)


def test_captions_of_visual_genome_answer_about_their_regions(tmp_path):
    reading = read(tmp_path, files.write_visual_genome, "visual-genome")
    first, second = reading.records
    assert [(record.id, record.image) for record in reading.records] == [
        ("visual-genome:1", "VG_100K/1.jpg"),
        ("visual-genome:2", "VG_100K_2/2.jpg"),
    ]
    assert names(first) == [("1", "ein Fahrrad, größer < 2 m 犬"), ("2", "the sky")]
    assert names(second) == [("21", "the floor")]
    assert first.turns == ()
    answers = [turn["content"] for turn in conversation_of(first, "picture")[1::2]]
    assert sorted(answers) == ["ein Fahrrad, größer < 2 m 犬", "the sky"]
    assert reasons(reading) == [
        ("1#3", "caption without text", 1),
        ("1#4", "caption holds a placeholder of the prompt", 1),
        ("1#5", "caption holds a placeholder of the prompt", 1),
        ("1#6", "caption without text", 1),
        ("1#7", "no segmentation", 1),
        ("2#20", "text that is not Unicode", 1),
        ("2#21", "segmentation reaches beyond the picture and was clipped", 0),
    ]
    assert_all_accounted_for(reading)
    assert_masks_are_those_of_pycocotools(tmp_path / "vg_train_with_mask.json", reading.records)


def test_a_file_of_ones_own_may_say_things_in_several_ways(tmp_path):
    reading = read(tmp_path, files.write_custom, "custom")
    by_id = {record.id: record for record in reading.records}
    assert list(by_id) == ["custom:1", "custom:1#4", "custom:1#5", "custom:2", "custom:3#30"]
    asked = by_id["custom:1"].turns[::2]
    answered = by_id["custom:1"].turns[1::2]
    assert [turn.text for turn in answered] == ["a valve with a red handle", "pump: old", "größer < 3 犬"]
    assert [turn.text for turn in (asked[0], asked[2])] == ["<region1>", "<region3>"]
    assert "category of <region2>" in asked[1].text
    boxes = [compressed(box_mask(3, 5, 23, 15)), compressed(box_mask(0, 5, 10, 15))]
    assert [region.segmentation for region in by_id["custom:1"].regions[1:]] == [boxes[0], boxes[0]]
    assert [(turn.role, turn.text) for turn in by_id["custom:1#4"].turns] == [
        ("user", ""),
        ("assistant", "A pump room."),
    ]
    assert by_id["custom:2"].turns == ()
    assert names(by_id["custom:2"]) == [("20", "valve"), ("21", "pump: old"), ("22", "valve")]
    assert [by_id["custom:2"].regions[place].segmentation for place in (0, 2)] == [
        boxes[1],
        compressed(box_mask(0, 0, 1, 1)),
    ]
    assert reasons(reading) == [
        ("1#7", "unknown category", 1),
        ("1#8", "caption without text", 1),
        ("1#9", "box without area", 1),
        ("1#10", "malformed box", 1),
        ("1#11", "box lies outside the picture", 1),
        ("1#6", "annotation without segmentation, box and caption", 1),
        ("2#20", "box reaches beyond the picture and was clipped", 0),
        ("2#23", "degenerate polygon", 1),
        ("2#24", "segmentation lies outside the picture", 1),
        ("2#25", "unknown category", 1),
        ("2#26", "crowd region", 1),
        ("4", "image path leaves the image folder", 1),
    ]
    assert_all_accounted_for(reading)
    for record in reading.records:
        assert conversation_of(record, "picture")


@pytest.mark.parametrize("write", [files.write_captioned_boxes, files.write_texts])
def test_a_file_of_ones_own_needs_no_categories(tmp_path, write):
    (record,) = read(tmp_path, write, "custom").records
    assert [turn.text for turn in record.turns] == ["<region1>", "a valve"]
    assert names(record) == [("1", "")]
    assert np.array_equal(mask_utils.decode(record.regions[0].segmentation).astype(bool), box_mask(3, 5, 23, 15))


def test_captions_and_instances_and_referring_files_of_ones_own(tmp_path):
    (tmp_path / "a").mkdir()
    reading = read(tmp_path / "a", write_captions, "custom")
    assert [record.id for record in reading.records] == ["custom:1#11", "custom:1#12"]
    assert [item.reason for item in reading.rejections] == [
        "annotation without segmentation, box and caption",
        "caption holds a placeholder of the prompt",
        "picture not found",
    ]
    (tmp_path / "b").mkdir()
    assert len(read(tmp_path / "b", write_simple_instances, "custom").records) == 3


def test_a_reexport_of_refcoco_says_where_its_expressions_are_from(tmp_path):
    (record,) = read(tmp_path, write_referring, "refcoco").records
    assert record.metadata == {"original_id": 581857}


WRITERS = {
    "LVIS": files.write_lvis,
    "PACO": files.write_paco,
    "Pascal-Part": files.write_pascal_part,
    "PartImageNet": files.write_partimagenet,
    "a Visual Genome re-export": files.write_visual_genome,
    "COCO boxes with captions": files.write_captioned_boxes,
    "COCO annotations with texts": files.write_texts,
    "COCO instances": write_simple_instances,
    "COCO captions": write_captions,
    "a RefCOCO re-export": write_referring,
}
READERS = {
    "lvis": ["LVIS"],
    "paco": ["PACO"],
    "pascal-part": ["Pascal-Part"],
    "partimagenet": ["PartImageNet"],
    "visual-genome": ["a Visual Genome re-export"],
    "coco": ["COCO instances"],
    "captions": ["COCO captions"],
    "refcocog": ["a RefCOCO re-export"],
    "panoptic": [],
    "cityscapes": [],
    "custom": [
        *("Pascal-Part", "PartImageNet", "a Visual Genome re-export", "COCO boxes with captions"),
        *("COCO annotations with texts", "COCO instances", "COCO captions"),
    ],
}


@pytest.mark.parametrize("source", READERS)
def test_every_source_reads_its_own_form_and_names_every_other(tmp_path, source):
    for form, write in WRITERS.items():
        folder = tmp_path / write.__name__
        folder.mkdir()
        path = write(folder)
        path.with_suffix("").mkdir()
        if form in READERS[source]:
            assert read_source(source, path, folder / "images").counts_in["annotations"]
            continue
        with pytest.raises(ValueError, match=f"this looks like {form}, use `") as caught:
            read_source(source, path, folder / "images")
        remedy = str(caught.value).split("`")[1]
        assert form in READERS.get(remedy.replace("refcoco", "refcocog"), ())
        assert remedy in SOURCES


def options_of(path):
    return SourceOptions(path, path.parent)


@pytest.fixture
def stand_ins(monkeypatch):
    """Readers of the original forms, replaced by something that says who was chosen."""
    for module, name in (
        ("refer", "ReferReader"),
        ("pascal_part_mat", "PascalPartMatReader"),
        ("visual_genome_boxes", "RegionDescriptionReader"),
    ):
        stand_in = ModuleType(module)
        setattr(stand_in, name, lambda source, options, name=name: (name, source))
        monkeypatch.setitem(sys.modules, f"data_pipelines.sources.{module}", stand_in)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("content", [[{"ref_id": 1}], {"a": 1}])
def test_pickles_are_told_from_reexports_by_their_first_bytes(tmp_path, stand_ins, protocol, content):
    path = tmp_path / "refs(unc)"
    path.write_bytes(pickle.dumps(content, protocol))
    assert open_source("refcoco+", options_of(path)) == ("ReferReader", "refcoco+")


def test_original_forms_are_told_from_reexports(tmp_path, stand_ins):
    named = tmp_path / "refs(google).p"
    named.touch()
    assert open_source("refcocog", options_of(named)) == ("ReferReader", "refcocog")
    assert open_source("refcoco", options_of(tmp_path)) == ("ReferReader", "refcoco")
    assert open_source("pascal-part", options_of(tmp_path)) == ("PascalPartMatReader", "pascal-part")
    regions = write_json(tmp_path / "region_descriptions.json", [{"id": 1, "regions": []}])
    assert open_source("visual-genome", options_of(regions)) == ("RegionDescriptionReader", "visual-genome")
    for source in ("refcoco", "pascal-part", "visual-genome"):
        reexport = write_json(tmp_path / "file.json", {"images": [], "annotations": []})
        assert not isinstance(open_source(source, options_of(reexport)), tuple)


@pytest.mark.parametrize("source", ["refcoco", "pascal-part", "visual-genome", "cityscapes", "panoptic", "custom"])
def test_a_missing_file_is_named(tmp_path, source):
    with pytest.raises(ValueError, match=r"absent\.json does not exist|absent does not exist"):
        read_source(source, tmp_path / "absent.json", tmp_path)
