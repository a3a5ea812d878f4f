"""Small annotation files of published form, with pictures, made on the spot."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

HEIGHT, WIDTH = 40, 60
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "naïve dog 犬"}, {"id": 3, "name": " "}]


def box_mask(x0: int, y0: int, x1: int, y1: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def compressed(mask: np.ndarray) -> dict:
    encoded = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict:
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def polygon(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def write_picture(folder: Path, name: str, height: int = HEIGHT, width: int = WIDTH) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def image_entry(number: int, **changes) -> dict:
    return {"id": number, "file_name": f"{number:012d}.jpg", "height": HEIGHT, "width": WIDTH, **changes}


def annotation_entry(number: int, image: int, segmentation, **changes) -> dict:
    entry = {"id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "segmentation": segmentation}
    return {**entry, "bbox": [0, 0, 1, 1], "area": 1, **changes}


def write_json(path: Path, content) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_instances(folder: Path, images: list[dict], annotations: list[dict], pictures: bool = True) -> Path:
    """`instances.json`, and every picture under `images/`."""
    (folder / "images").mkdir(exist_ok=True)
    for entry in images if pictures else ():
        write_picture(folder / "images", entry["file_name"])
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    return write_json(folder / "instances.json", content)


def write_simple_instances(folder: Path, pictures: int = 3, regions: int = 2) -> Path:
    """`pictures` pictures of `regions` rectangles each."""
    images = [image_entry(number) for number in range(1, pictures + 1)]
    annotations = [
        annotation_entry(
            number * 100 + place, number, [polygon(place * 5, 4, place * 5 + 4, 20)], category_id=1 + place % 2
        )
        for number in range(1, pictures + 1)
        for place in range(regions)
    ]
    return write_instances(folder, images, annotations)


def write_captions(folder: Path) -> Path:
    annotations = [
        {"id": 11, "image_id": 1, "caption": " A cat.\n"},
        {"id": 12, "image_id": 1, "caption": "The same cat, again."},
        {"id": 13, "image_id": 2, "caption": "  "},
        {"id": 14, "image_id": 9, "caption": "A picture that is not there."},
        {"id": 15, "image_id": 2, "caption": "An <image> of a dog."},
    ]
    write_picture(folder / "images", "000000000001.jpg")
    write_picture(folder / "images", "000000000002.jpg")
    content = {"images": [image_entry(1), image_entry(2), image_entry(9)], "annotations": annotations}
    return write_json(folder / "captions.json", content)


def write_referring(folder: Path) -> Path:
    """As `finetune_refcoco_train_with_mask.json`: one image entry an expression, file names with a prefix."""
    name = "COCO_train2014_000000581857.jpg"
    write_picture(folder / "images", "000000581857.jpg")
    images = [
        image_entry(0, file_name=name, caption="the cat < the dog", original_id=581857),
        image_entry(1, file_name=name, caption="", original_id=581857),
        image_entry(2, file_name=name, caption="both", original_id=581857),
        image_entry(3, file_name="COCO_train2014_000000000404.jpg", caption="nothing"),
    ]
    annotations = [
        annotation_entry(0, 0, [polygon(2, 2, 20, 20)]),
        annotation_entry(1, 1, [polygon(2, 2, 20, 20)]),
        annotation_entry(2, 2, [polygon(2, 2, 20, 20)]),
        annotation_entry(3, 2, [polygon(22, 2, 30, 20)]),
        annotation_entry(4, 3, [polygon(22, 2, 30, 20)]),
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    return write_json(folder / "refs.json", content)


def rewrite_shard(folder: Path, change: Callable[[list[dict]], object]) -> None:
    """Writes a folder of records again with other rows, as somebody's own tool could have written it."""
    from datasets.arrow_writer import ArrowWriter

    from data_pipelines.records import RecordFolder, arrow_features, record_to_row

    rows = [record_to_row(record) for record in RecordFolder.open(folder)]
    change(rows)
    shard = folder / "records-00000.arrow"
    shard.unlink()
    writer = ArrowWriter(features=arrow_features(), path=str(shard))
    for row in rows:
        writer.write(row)
    writer.finalize()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0] |= {"records": len(rows), "sha256": hashlib.sha256(shard.read_bytes()).hexdigest()}
    manifest["counts"]["out"]["records"] = len(rows)
    write_json(folder / "manifest.json", manifest)
