"""Small files in the published shape of further sources of COCO's form, each with its traps."""

from pathlib import Path

import numpy as np
from PIL import Image

from .annotation_files import (
    HEIGHT,
    WIDTH,
    annotation_entry,
    box_mask,
    compressed,
    image_entry,
    polygon,
    uncompressed,
    write_json,
    write_picture,
)

LVIS_CATEGORIES = [
    {"id": 1, "name": "aerosol_can", "synset": "aerosol.n.02", "frequency": "c"},
    {"id": 2, "name": "bow_(weapon)", "synset": "bow.n.04", "frequency": "r"},
    {"id": 3, "name": "naïve_犬", "synset": "", "frequency": "f"},
]


def mask_traps(image: int, first: int, category: int = 1) -> list[dict]:
    """Annotations of which none becomes a region, in the order of `MASK_TRAP_REASONS`."""
    forms = [
        (None, {}),
        ([[1, 1, 9, 9]], {}),
        ([polygon(WIDTH + 5, 2, WIDTH + 9, 9)], {}),
        ([polygon(1, 1, 9, 9)], {"category_id": 77}),
        (uncompressed(box_mask(0, 0, 30, 30)), {"iscrowd": 1}),
    ]
    return [
        {**annotation_entry(first + place, image, form), "category_id": category, **changes}
        for place, (form, changes) in enumerate(forms)
    ]


MASK_TRAP_REASONS = [
    "no segmentation",
    "degenerate polygon",
    "segmentation lies outside the picture",
    "unknown category",
    "crowd region",
]


def lvis_image(number: int, split: str | None = "train2017", **changes) -> dict:
    entry = {"id": number, "height": HEIGHT, "width": WIDTH, "neg_category_ids": [], "not_exhaustive_category_ids": []}
    if split is not None:
        entry["coco_url"] = f"http://images.cocodataset.org/{split}/{number:012d}.jpg"
    return {**entry, **changes}


def write_lvis(folder: Path) -> Path:
    """Version 1, without `file_name`: one picture in the folder of its split, one beside it, and two that are bad."""
    write_picture(folder / "images", "train2017/000000391895.jpg")
    write_picture(folder / "images", "000000000002.jpg")
    images = [
        lvis_image(391895, neg_category_ids=[3, 1], not_exhaustive_category_ids=[2]),
        lvis_image(2, neg_category_ids=[1, 99, [1]]),
        lvis_image(3, coco_url="http://images.cocodataset.org/../../outside.jpg"),
        lvis_image(4, None),
    ]
    annotations = [
        annotation_entry(1, 391895, [polygon(2, 2, 20, 20)], category_id=2),
        annotation_entry(2, 391895, [polygon(-9, 22, 30, 90)], category_id=3),
        *mask_traps(391895, 10),
        annotation_entry(1, 2, [polygon(2, 2, 20, 20)]),
        annotation_entry(20, 2, compressed(box_mask(1, 2, 3, 4))),
        annotation_entry(30, 3, [polygon(2, 2, 20, 20)]),
        annotation_entry(40, 4, [polygon(2, 2, 20, 20)]),
    ]
    return write_json(
        folder / "lvis_v1_train.json", {"images": images, "annotations": annotations, "categories": LVIS_CATEGORIES}
    )


def write_lvis_05(folder: Path) -> Path:
    """Version 0.5: names as in COCO 2014, pictures of COCO 2017."""
    write_picture(folder / "images", "000000000042.jpg")
    images = [lvis_image(42, file_name="COCO_val2014_000000000042.jpg", neg_category_ids=[2])]
    annotations = [annotation_entry(1, 42, [polygon(2, 2, 20, 20)], category_id=3)]
    return write_json(
        folder / "lvis_v0.5_val.json", {"images": images, "annotations": annotations, "categories": LVIS_CATEGORIES}
    )


def write_paco(folder: Path) -> Path:
    """An object with two parts, and a part whose object is not said."""
    write_picture(folder / "images", "000000000005.jpg")
    images = [lvis_image(5, "val2017", file_name="val2017/000000000005.jpg", neg_category_ids=[3])]
    categories = [
        {"id": 1, "name": "mug", "supercategory": "OBJECT"},
        {"id": 2, "name": "mug:handle", "supercategory": "PART"},
        {"id": 3, "name": "laptop_computer:back", "supercategory": "PART"},
    ]
    annotations = [
        annotation_entry(10, 5, [polygon(2, 2, 30, 30)], obj_ann_id=10, attribute_ids=[4]),
        annotation_entry(11, 5, [polygon(2, 2, 8, 8)], category_id=2, obj_ann_id=10, attribute_ids=[]),
        annotation_entry(12, 5, [polygon(12, 2, 18, 8)], category_id=2, obj_ann_id=10),
        annotation_entry(13, 5, [polygon(20, 2, 25, 8)], category_id=3, obj_ann_id=None),
        *mask_traps(5, 20),
    ]
    content = {"images": images, "annotations": annotations, "categories": categories, "attributes": [{"id": 4}]}
    return write_json(folder / "paco_lvis_v1_val.json", content)


def write_pascal_part(folder: Path) -> Path:
    write_picture(folder / "images", "2008_000008.jpg")
    images = [
        image_entry(1, file_name="VOCdevkit/VOC2010/JPEGImages/2008_000008.jpg"),
        image_entry(2, file_name="../2008_000008.jpg"),
    ]
    categories = [{"id": 1, "name": "horse:head"}, {"id": 2, "name": "potted plant:pot"}]
    annotations = [
        annotation_entry(1, 1, [polygon(2, 2, 20, 20)]),
        annotation_entry(2, 1, [polygon(2, 22, 20, 30)], category_id=2),
        *mask_traps(1, 10),
        annotation_entry(30, 2, [polygon(2, 22, 20, 30)]),
    ]
    return write_json(folder / "train.json", {"images": images, "annotations": annotations, "categories": categories})


def write_partimagenet(folder: Path) -> Path:
    write_picture(folder / "images", "n02389026/n02389026_10029.jpeg")
    images = [image_entry(1, file_name="train/n02389026_10029.jpeg")]
    categories = [{"id": 0, "name": "Quadruped Head"}, {"id": 1, "name": "Car Side Mirror"}]
    annotations = [
        annotation_entry(1, 1, [polygon(2, 2, 20, 20)], category_id=0),
        annotation_entry(2, 1, [polygon(2, 22, 20, 30)], category_id=1),
        *mask_traps(1, 10, category=0),
    ]
    return write_json(
        folder / "train_format.json", {"images": images, "annotations": annotations, "categories": categories}
    )


def write_visual_genome(folder: Path) -> Path:
    """Masks with captions; pictures in both of its folders."""
    write_picture(folder / "images", "VG_100K/1.jpg")
    write_picture(folder / "images", "VG_100K_2/2.jpg")
    images = [image_entry(1, file_name="1.jpg"), image_entry(2, file_name="VG_100K_2/2.jpg")]
    annotations = [
        annotation_entry(1, 1, [polygon(2, 2, 20, 20)], caption=" ein Fahrrad, größer < 2 m 犬\n"),
        annotation_entry(2, 1, compressed(box_mask(30, 3, 50, 30)), caption="the sky", category_id=77),
        annotation_entry(3, 1, [polygon(2, 2, 20, 20)], caption="  "),
        annotation_entry(4, 1, [polygon(2, 2, 20, 20)], caption="an <image> on the wall"),
        annotation_entry(5, 1, [polygon(2, 2, 20, 20)], caption="beside <region2>"),
        annotation_entry(6, 1, [polygon(2, 2, 20, 20)]),
        {**mask_traps(1, 7)[0], "caption": "no mask"},
        annotation_entry(20, 2, [polygon(2, 2, 20, 20)], caption="a lone \ud800 surrogate"),
        annotation_entry(21, 2, [polygon(2, 2, 20, 90)], caption="the floor"),
    ]
    categories = [{"id": 1, "name": "object"}]
    return write_json(
        folder / "vg_train_with_mask.json", {"images": images, "annotations": annotations, "categories": categories}
    )


def write_custom(folder: Path) -> Path:
    """Every way in which a user may say what and where something is."""
    for number in (1, 2, 3):
        write_picture(folder / "images", f"{number:012d}.jpg")
    images = [image_entry(1), image_entry(2), image_entry(3), image_entry(4, file_name="/etc/hostname")]
    box = [3, 5, 20, 10]
    annotations = [
        annotation_entry(1, 1, [polygon(2, 2, 20, 20)], caption="a valve with a red handle", text="unused"),
        {"id": 2, "image_id": 1, "bbox": box, "category_id": 2},
        {"id": 3, "image_id": 1, "bbox": box, "segmentation": [], "caption": " ", "text": "größer < 3 犬"},
        {"id": 4, "image_id": 1, "caption": "A pump room."},
        {"id": 5, "image_id": 1, "text": "Pumps."},
        {"id": 6, "image_id": 1, "category_id": 1},
        {"id": 7, "image_id": 1, "bbox": box},
        {"id": 8, "image_id": 1, "bbox": box, "caption": 5},
        {"id": 9, "image_id": 1, "bbox": [3, 5, 0, 10], "caption": "nothing"},
        {"id": 10, "image_id": 1, "bbox": [3, 5, "x", 10], "caption": "nothing"},
        {"id": 11, "image_id": 1, "bbox": [70, 5, 9, 10], "caption": "nothing"},
        {"id": 20, "image_id": 2, "bbox": [-5, 5, 15, 10], "category_id": 1},
        annotation_entry(21, 2, [polygon(2, 2, 20, 20)], category_id=2),
        *mask_traps(2, 22),
        {"id": 30, "image_id": 3, "caption": "A view."},
        {"id": 40, "image_id": 4, "caption": "Elsewhere."},
    ]
    categories = [{"id": 1, "name": "valve"}, {"id": 2, "name": "pump: old"}]
    return write_json(folder / "mine.json", {"images": images, "annotations": annotations, "categories": categories})


def write_captioned_boxes(folder: Path) -> Path:
    write_picture(folder / "images", "000000000001.jpg")
    annotations = [{"id": 1, "image_id": 1, "bbox": [3, 5, 20, 10], "caption": "a valve"}]
    return write_json(folder / "boxes.json", {"images": [image_entry(1)], "annotations": annotations})


def write_texts(folder: Path) -> Path:
    write_picture(folder / "images", "000000000001.jpg")
    annotations = [{"id": 1, "image_id": 1, "segmentation": [polygon(3, 5, 23, 15)], "text": "a valve"}]
    return write_json(folder / "texts.json", {"images": [image_entry(1)], "annotations": annotations})


def rgb_ids(ids: np.ndarray) -> np.ndarray:
    """Ids as the published PNG files have them."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def striped_ids(*ids: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Slanted stripes of the ids, so that each is in many pieces; the first touches the top left corner."""
    rows, columns = np.mgrid[:height, :width]
    return np.array(ids)[(rows + columns) // 7 % len(ids)]
