"""What comes out of pictures whose pixels are ids: COCO's panoptic form, and Cityscapes in both of its forms."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_utils

from data_pipelines.records import record_problems
from data_pipelines.sources import open_source
from data_pipelines.sources.id_maps import masks_of
from data_pipelines.sources.reader import SourceOptions

from .annotation_files import HEIGHT, WIDTH, image_entry, write_json, write_picture, write_simple_instances
from .published_files import rgb_ids, striped_ids, write_png
from .source_reading import read_source

PERSON, TREE = 3937500, 2330219
CATEGORIES = [
    {"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60]},
    {"id": 184, "name": "tree-merged", "isthing": 0, "color": [1, 2, 3]},
]


def segment(number, category=1, **changes):
    return {"id": number, "category_id": category, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1], **changes}


def entry(image, *segments, **changes):
    return {"image_id": image, "file_name": f"{image:012d}.png", "segments_info": list(segments), **changes}


def write_panoptic(folder, images, annotations, maps, categories=CATEGORIES):
    """`panoptic_val2017.json`, with the PNG files in the folder of that name beside it."""
    for image in images:
        write_picture(folder / "images", image["file_name"])
    for name, ids in maps.items():
        write_png(folder / "panoptic_val2017" / name, rgb_ids(ids))
    (folder / "panoptic_val2017").mkdir(exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    return write_json(folder / "panoptic_val2017.json", content)


def read(folder, path, source="panoptic", **options):
    return read_source(source, path, folder / "images", **options)


def reasons(reading):
    return [(item.id.partition(":")[2], item.reason, item.annotations) for item in reading.rejections]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_the_masks_of_all_ids_are_those_that_pycocotools_encodes_one_by_one(height, width, seed, kinds):
    chooser = np.random.default_rng(seed)
    ids = chooser.choice(chooser.integers(0, 2**24, kinds), (height, width))
    masks = masks_of(ids)
    assert list(masks) == np.unique(ids).tolist()
    for number, rle in masks.items():
        expected = mask_utils.encode(np.asfortranarray(ids == number, dtype=np.uint8))
        assert rle == {"size": [height, width], "counts": expected["counts"].decode()}


def test_segments_of_a_picture_are_its_regions(tmp_path):
    ids = striped_ids(PERSON, 0, TREE)
    path = write_panoptic(
        tmp_path, [image_entry(1)], [entry(1, segment(TREE, 184), segment(PERSON))], {f"{1:012d}.png": ids}
    )
    reading = read(tmp_path, path)
    (record,) = reading.records
    assert (record.id, record.image, record.height, record.width) == ("panoptic:1", f"{1:012d}.jpg", HEIGHT, WIDTH)
    assert [(region.id, region.name) for region in record.regions] == [
        (str(TREE), "tree-merged"),
        (str(PERSON), "person"),
    ]
    assert record.metadata == {"category_ids": [184, 1], "is_thing": [False, True]}
    for region, number in zip(record.regions, (TREE, PERSON), strict=True):
        assert np.array_equal(mask_utils.decode(region.segmentation).astype(bool), ids == number)
        rows, columns = np.nonzero(ids == number)
        assert region.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert reading.rejections == []
    assert reading.counts_in == {"images": 1, "annotations": 2}
    assert record_problems(record) == []


def test_what_of_a_picture_of_ids_cannot_be_used_is_named(tmp_path):
    segments = [
        segment(PERSON),
        segment(7, iscrowd=1),
        segment(8),
        segment(0),
        segment(9, 77),
        segment("10"),
        segment(None),
        segment(PERSON, 184),
        segment(10**30),
    ]
    maps = {f"{1:012d}.png": striped_ids(PERSON, 7, 9, 10, 2**24 - 1, 0)}
    orphan = entry(5, segment(1), segment(2))
    path = write_panoptic(
        tmp_path,
        [image_entry(1)],
        [entry(1, *segments), orphan, {"image_id": 1}, entry(1, segment(3), image_id=None), [1]],
        maps,
    )
    reading = read(tmp_path, path)
    assert [[region.id for region in record.regions] for record in reading.records] == [[str(PERSON)]]
    assert reasons(reading) == [
        ("1", "annotation without an id", 1),
        (f"1#{PERSON}", "annotation id stands twice", 1),
        ("1", "annotation without an id", 1),
        ("1", "annotation without segments", 1),
        ("?", "annotation of an unknown picture", 1),
        ("None", "annotation without segments", 1),
        ("5#1 of 5", "annotation of an unknown picture", 1),
        ("5#2 of 5", "annotation of an unknown picture", 1),
        ("1", "ids of the segment picture without a segment", 0),
        ("1#7", "crowd region", 1),
        ("1#8", "segment covers no pixel", 1),
        ("1#0", "segment covers no pixel", 1),
        ("1#9", "unknown category", 1),
        ("1#10", "segment covers no pixel", 1),
    ]
    assert reading.counts_in["annotations"] == 1 + sum(item.annotations for item in reading.rejections)
    assert reading.rejections[8].detail == f"2, such as 10, {2**24 - 1}"
    kept = read(tmp_path, path, include_crowd=True).records[0]
    assert [region.id for region in kept.regions] == [str(PERSON), "7"]


def spoil(folder, kind):
    """Spoil the PNG file of picture 1, or what the annotation says of it; returns changes of the annotation."""
    png = folder / "panoptic_val2017" / f"{1:012d}.png"
    ids = striped_ids(PERSON)
    if kind == "absent":
        png.unlink()
    elif kind == "cut":
        png.write_bytes(png.read_bytes()[:-40])
    elif kind == "text":
        png.write_text("no picture")
    elif kind == "turned":
        write_png(png, rgb_ids(ids.T))
    elif kind == "grey":
        write_png(png, rgb_ids(ids)[..., 0])
    elif kind == "palette":
        Image.fromarray(rgb_ids(ids)[..., 0]).convert("P").save(png)
    elif kind == "linked":
        png.rename(folder / "outside.png")
        png.symlink_to(folder / "outside.png")
    return {"outside": {"file_name": "../x.png"}, "unnamed": {"file_name": None}, "listed": {"file_name": [1]}}.get(
        kind, {}
    )


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("absent", "segment picture not found"),
        ("cut", "segment picture cannot be read"),
        ("text", "segment picture cannot be read"),
        ("turned", "segment picture of another size than the picture"),
        ("grey", "segment picture of another kind"),
        ("palette", "segment picture of another kind"),
        ("linked", "path of the segment picture leaves its folder"),
        ("outside", "path of the segment picture leaves its folder"),
        ("unnamed", "segment picture without a file name"),
        ("listed", "segment picture without a file name"),
    ],
)
def test_a_picture_of_ids_that_cannot_be_used_takes_its_segments_with_it(tmp_path, kind, reason):
    segments = [segment(PERSON), segment(TREE, 184)]
    images, maps = [image_entry(1), image_entry(2)], {f"{n:012d}.png": striped_ids(PERSON, TREE) for n in (1, 2)}
    write_panoptic(tmp_path, images, [], maps)
    changes = spoil(tmp_path, kind)
    annotations = [entry(1, *segments, **changes), entry(2, *segments)]
    path = write_panoptic(tmp_path, images, annotations, {})
    reading = read(tmp_path, path)
    assert [record.id for record in reading.records] == ["panoptic:2"]
    assert reasons(reading) == [("1", reason, 2)]
    assert "\n" not in reading.rejections[0].detail


def test_a_picture_may_be_annotated_once(tmp_path):
    maps = {f"{1:012d}.png": striped_ids(PERSON, TREE)}
    annotations = [entry(1, segment(PERSON)), entry(1, segment(TREE), file_name="other.png")]
    reading = read(tmp_path, write_panoptic(tmp_path, [image_entry(1), image_entry(2)], annotations, maps))
    assert reading.records == []
    assert reasons(reading) == [
        ("1", "picture with several segment pictures", 2),
        ("2", "picture without a usable region", 0),
    ]


def test_the_folder_of_the_png_files_can_be_named(tmp_path):
    path = write_panoptic(
        tmp_path, [image_entry(1)], [entry(1, segment(PERSON))], {f"{1:012d}.png": striped_ids(PERSON)}
    )
    moved = (tmp_path / "panoptic_val2017").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"panoptic_val2017 does not exist; .* --input panoptic=PATH"):
        read(tmp_path, path)
    assert len(read(tmp_path, path, inputs={"panoptic": moved}).records) == 1


def test_things_are_told_from_stuff_only_where_the_file_does(tmp_path):
    categories = [{"id": 1, "name": "person"}, CATEGORIES[1]]
    maps = {f"{1:012d}.png": striped_ids(PERSON, TREE)}
    annotations = [entry(1, segment(PERSON), segment(TREE, 184))]
    (record,) = read(tmp_path, write_panoptic(tmp_path, [image_entry(1)], annotations, maps, categories)).records
    assert record.metadata == {"category_ids": [1, 184]}


# Of Cityscapes: road, a group of cars, two cars, a bridge (not evaluated), void, an id that no class has, a bicycle.
INSTANCE_IDS = (7, 26, 26000, 26001, 15, 1, 99, 33000)
PICTURES = {"val": "frankfurt_000000_000294", "train": "aachen_000000_000019"}


def write_instance_ids(folder):
    """`gtFine` and `leftImg8bit`, one picture a split."""
    ids = striped_ids(*INSTANCE_IDS)
    for split, name in PICTURES.items():
        city = name.partition("_")[0]
        write_picture(folder, f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png")
        write_png(folder / f"gtFine/{split}/{city}/{name}_gtFine_instanceIds.png", ids.astype(np.uint16))
    return ids


def write_cityscapes_panoptic(folder, split="val"):
    """As Cityscapes' own script makes it from the ids of instances: evaluated classes alone, groups as crowds."""
    name = PICTURES[split]
    ids = striped_ids(*INSTANCE_IDS)
    ids[np.isin(ids, (15, 1, 99))] = 0
    write_png(folder / f"gtFine/cityscapes_panoptic_{split}/{name}_gtFine_panoptic.png", rgb_ids(ids))
    segments = [segment(7, 7), segment(26, 26, iscrowd=1), *(segment(n, n // 1000) for n in (26000, 26001, 33000))]
    content = {
        "images": [{"id": name, "height": HEIGHT, "width": WIDTH, "file_name": f"{name}_gtFine_leftImg8bit.png"}],
        "annotations": [{"image_id": name, "file_name": f"{name}_gtFine_panoptic.png", "segments_info": segments}],
        "categories": [
            {"id": 7, "name": "road", "isthing": 0},
            {"id": 26, "name": "car", "isthing": 1},
            {"id": 33, "name": "bicycle", "isthing": 1},
        ],
    }
    return write_json(folder / f"gtFine/cityscapes_panoptic_{split}.json", content)


def test_ids_of_instances_become_regions_of_the_evaluated_classes(tmp_path):
    ids = write_instance_ids(tmp_path)
    reading = read_source("cityscapes", tmp_path, tmp_path, split="val")
    (record,) = reading.records
    assert record.id == "cityscapes:frankfurt_000000_000294"
    assert record.image == "leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png"
    assert [(region.id, region.name) for region in record.regions] == [
        ("7", "road"),
        ("26000", "car"),
        ("26001", "car"),
        ("33000", "bicycle"),
    ]
    for region in record.regions:
        assert np.array_equal(mask_utils.decode(region.segmentation).astype(bool), ids == int(region.id))
    assert record.metadata == {
        "split": "val",
        "category_ids": [7, 26, 26, 33],
        "is_thing": [False, True, True, True],
    }
    assert reasons(reading) == [
        ("frankfurt_000000_000294#15", "class that Cityscapes does not evaluate", 1),
        ("frankfurt_000000_000294#26", "crowd region", 1),
        ("frankfurt_000000_000294#99", "unknown category", 1),
    ]
    assert reading.counts_in == {"images": 1, "annotations": 7}
    assert record_problems(record) == []


@pytest.mark.parametrize("include_crowd", [False, True])
def test_both_forms_of_cityscapes_give_the_same_records(tmp_path, include_crowd):
    write_instance_ids(tmp_path)
    path = write_cityscapes_panoptic(tmp_path)
    options = {"split": "val", "include_crowd": include_crowd}
    from_ids = read_source("cityscapes", tmp_path / "gtFine", tmp_path, **options).records
    from_json = read_source("cityscapes", path, tmp_path, **options).records
    assert len(from_ids[0].regions) == 4 + include_crowd
    assert from_json == from_ids


def test_all_splits_of_cityscapes_are_read_unless_one_is_named(tmp_path):
    write_instance_ids(tmp_path)
    everything = read_source("cityscapes", tmp_path, tmp_path / "leftImg8bit").records
    assert [(record.metadata["split"], record.image.partition("/")[0]) for record in everything] == [
        ("train", "train"),
        ("val", "val"),
    ]
    with pytest.raises(ValueError, match=r"no \*_gtFine_instanceIds.png in .*gtFine/\{test\}/CITY"):
        read_source("cityscapes", tmp_path, tmp_path, split="test")
    with pytest.raises(ValueError, match=r"cityscapes_panoptic_val.json is of split val, not train"):
        read_source("cityscapes", write_cityscapes_panoptic(tmp_path), tmp_path, split="train")
    with pytest.raises(ValueError, match="has no split 'testA'; choose from train, val, test"):
        read_source("cityscapes", tmp_path, tmp_path, split="testA")


def test_a_panoptic_file_without_a_split_in_its_name_finds_its_pictures(tmp_path):
    write_instance_ids(tmp_path)
    path = write_cityscapes_panoptic(tmp_path).rename(tmp_path / "mine.json")
    (record,) = read_source(
        "cityscapes", path, tmp_path, inputs={"panoptic": tmp_path / "gtFine/cityscapes_panoptic_val"}
    ).records
    assert record.image.startswith("leftImg8bit/val/")
    assert "split" not in record.metadata


@pytest.mark.parametrize(
    ("spoiled", "reason", "lost"),
    [
        ("leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png", "picture not found", 7),
        ("gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_instanceIds.png", "segment picture cannot be read", 0),
    ],
)
def test_a_picture_of_cityscapes_that_cannot_be_used_is_named(tmp_path, spoiled, reason, lost):
    write_instance_ids(tmp_path)
    (tmp_path / spoiled).unlink()
    if spoiled.startswith("gtFine"):
        (tmp_path / spoiled).write_text("no picture")
    reading = read_source("cityscapes", tmp_path, tmp_path)
    assert [record.metadata["split"] for record in reading.records] == ["train"]
    assert reasons(reading)[-1] == ("frankfurt_000000_000294", reason, lost)
    assert reading.counts_in["annotations"] == 4 + sum(item.annotations for item in reading.rejections)


def test_ids_of_a_hostile_panoptic_file_do_not_lead_out_of_the_folder_of_pictures(tmp_path):
    write_instance_ids(tmp_path)
    path = write_cityscapes_panoptic(tmp_path)
    content = path.read_text(encoding="utf-8").replace('"frankfurt_000000_000294"', '"../../x_0"')
    path.write_text(content, encoding="utf-8")
    reading = read_source("cityscapes", path, tmp_path / "leftImg8bit")
    assert [item.reason for item in reading.rejections] == ["image path leaves the image folder"]


def test_panoptic_files_are_named_for_what_they_are(tmp_path):
    write_instance_ids(tmp_path)
    city = write_cityscapes_panoptic(tmp_path)
    (tmp_path / "coco").mkdir()
    plain = write_panoptic(tmp_path / "coco", [image_entry(1)], [entry(1, segment(PERSON))], {})
    (tmp_path / "instances").mkdir()
    instances = write_simple_instances(tmp_path / "instances")
    instances.with_suffix("").mkdir()
    for source, path, form, remedy in (
        ("panoptic", city, "Cityscapes panoptic", "cityscapes"),
        ("cityscapes", plain, "COCO panoptic", "panoptic"),
        ("coco", plain, "COCO panoptic", "panoptic"),
        ("custom", city, "Cityscapes panoptic", "cityscapes"),
        ("panoptic", instances, "COCO instances", "coco"),
        ("cityscapes", instances, "COCO instances", "coco"),
    ):
        with pytest.raises(ValueError, match=f"this looks like {form}, use `{remedy}`"):
            read_source(source, path, tmp_path)
        assert open_source(remedy, SourceOptions(path, tmp_path))
    assert json.loads(plain.read_text(encoding="utf-8"))["annotations"]
