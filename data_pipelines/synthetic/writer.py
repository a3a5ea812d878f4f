"""Scenes written as published annotation files: COCO instances, COCO captions, re-exported RefCOCO."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_utils
from tqdm.auto import tqdm

from data_pipelines.synthetic.expressions import captions, referring_expression
from data_pipelines.synthetic.scenes import DEFAULT_SIZE, Scene, SceneObject, draw_scene
from data_pipelines.synthetic.vocabulary import HELD_OUT_TRIPLES, TRIPLES, category_id, region_name
from osprey_tp.files import folder_aside

SPLITS: tuple[str, ...] = ("train", "val", "test")
JPEG_QUALITY = 95


@dataclass(frozen=True)
class _SceneRecord:
    """What the annotation files say of one picture, without the ids that depend on other pictures."""

    file_name: str
    instances: list[dict[str, Any]]
    expressions: list[tuple[int, str]]
    captions: list[str]


def scene_of(
    split: str, index: int, seed: int, size: tuple[int, int] = DEFAULT_SIZE
) -> tuple[Scene, np.random.Generator]:
    """Scene ``index`` of a split, and its random generator for what is yet to be chosen about it.

    It depends on nothing but the arguments. Held-out combinations appear in the split "test" only.

    Raises:
        ValueError: the split is none of ``SPLITS``.

    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    scene = draw_scene(rng, size, novel_triples=HELD_OUT_TRIPLES if split == "test" else ())
    return scene, rng


def write_scenes(
    out: str | Path,
    splits: Mapping[str, int],
    seed: int = 0,
    size: tuple[int, int] = DEFAULT_SIZE,
    workers: int = 1,
    progress: bool = True,
) -> dict[str, dict[str, int]]:
    """Draw scenes and write them as a data set of published form.

    ``out/images/<split>/`` holds the pictures (JPEG), ``out/annotations/`` for each split ``instances_<split>.json``
    (COCO), ``captions_<split>.json`` (COCO) and ``refs_<split>.json`` (RefCOCO as re-exported: one image record per
    expression). Files are equal for equal arguments, whatever ``workers`` is. Nothing is left behind on failure.

    Args:
        out: folder to make; it must not exist, or be empty.
        splits: number of scenes of each split, of "train", "val", "test".
        seed: of everything random.
        size: (height, width) of the pictures in pixels.
        workers: processes that draw.
        progress: show a progress bar on stderr.

    Returns:
        For each split the number of "images", "annotations" and "expressions".

    Raises:
        FileExistsError: ``out`` holds something already.
        ValueError: an unknown split, a negative number of scenes, or a size too small.

    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists already: name another folder, or remove it first")
    for split, count in splits.items():
        if split not in SPLITS or count < 0:
            raise ValueError(f"cannot write {count} scenes of split {split!r}: splits are {', '.join(SPLITS)}")
    with folder_aside(out) as aside:
        (aside / "annotations").mkdir()
        summary = {}
        files = _AnnotationFiles(seed, size)
        for split, count in splits.items():
            folder = aside / "images" / split
            folder.mkdir(parents=True)
            records = _draw_all(partial(_draw_record, folder, split, seed, size), count, workers)
            shown = tqdm(records, total=count, desc=f"drawing {split} scenes", unit="scene", disable=not progress)
            contents = files.collect(shown)
            for kind, content in contents.items():
                path = aside / "annotations" / f"{kind}_{split}.json"
                path.write_text(json.dumps(content), encoding="utf-8")
            summary[split] = {
                "images": count,
                "annotations": len(contents["instances"]["annotations"]),
                "expressions": len(contents["refs"]["images"]),
            }
    return summary


def _draw_all(draw: partial[_SceneRecord], count: int, workers: int) -> Iterator[_SceneRecord]:
    if workers <= 1:
        yield from map(draw, range(count))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(draw, range(count), chunksize=16)


def _draw_record(folder: Path, split: str, seed: int, size: tuple[int, int], index: int) -> _SceneRecord:
    """Draw a scene, write its picture, and describe it."""
    scene, rng = scene_of(split, index, seed, size)
    file_name = f"{split}_{index:012d}.jpg"
    Image.fromarray(scene.picture).save(folder / file_name, quality=JPEG_QUALITY, subsampling=0)
    instances = [_instance(item, compressed=bool(rng.random() < 0.5)) for item in (*scene.objects, *scene.tiny)]
    if scene.crowd:
        instances.append(_crowd_instance(scene.crowd))
    found = [(number, referring_expression(scene, number, rng)) for number in range(len(scene.objects))]
    expressions = [(number, text) for number, text in found if text is not None]
    return _SceneRecord(file_name, instances, expressions, captions(scene, rng))


def _instance(item: SceneObject, compressed: bool) -> dict[str, Any]:
    """A COCO annotation: a polygon where it is the exact mask, else run lengths, compressed or not."""
    runs = _encode(item.mask)
    segmentation: Any
    if item.is_whole and len(item.polygons) == 1:
        segmentation = [[round(float(value), 2) for value in item.polygons[0].ravel()]]
    else:
        segmentation = runs if compressed else uncompressed_runs(item.mask)
    return _annotation(category_id(*item.triple), segmentation, runs, crowd=False)


def _crowd_instance(members: tuple[SceneObject, ...]) -> dict[str, Any]:
    """One annotation of all members, as COCO has them for groups."""
    mask = np.any([item.mask for item in members], axis=0)
    return _annotation(category_id(*members[0].triple), uncompressed_runs(mask), _encode(mask), crowd=True)


def _annotation(category: int, segmentation: Any, runs: dict[str, Any], crowd: bool) -> dict[str, Any]:
    return {
        "category_id": category,
        "iscrowd": int(crowd),
        "segmentation": segmentation,
        "area": float(mask_utils.area(runs)),
        "bbox": [float(value) for value in mask_utils.toBbox(runs)],
    }


def _encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's compressed RLE with ``counts`` as text."""
    runs = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": runs["counts"].decode("ascii")}


def uncompressed_runs(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's uncompressed RLE of a mask (height, width): run lengths column by column, of background first."""
    runs = [(value, len(list(group))) for value, group in groupby(mask.ravel(order="F").tolist())]
    lengths = [length for _, length in runs]
    return {"size": list(mask.shape), "counts": [0, *lengths] if runs[0][0] else lengths}


class _AnnotationFiles:
    """Gives ids, unique over all splits, and lays the records out as annotation files."""

    def __init__(self, seed: int, size: tuple[int, int]) -> None:
        self.info = {"description": "osprey_tp synthetic scenes", "version": "1.0", "seed": seed}
        self.height, self.width = size
        self.last_id = dict.fromkeys(("image", "annotation", "expression", "caption"), 0)
        self.categories = [
            {"id": category_id(*triple), "name": region_name(*triple), "supercategory": triple[2]} for triple in TRIPLES
        ]

    def _next(self, kind: str) -> int:
        self.last_id[kind] += 1
        return self.last_id[kind]

    def collect(self, records: Iterable[_SceneRecord]) -> dict[str, dict[str, Any]]:
        """The contents of the files "instances", "captions" and "refs" for the scenes of one split."""
        images, instances, caption_list, ref_images, refs = [], [], [], [], []
        for record in records:
            size = {"height": self.height, "width": self.width}
            image = {"id": self._next("image"), "file_name": record.file_name, **size}
            images.append(image)
            own = [{"id": self._next("annotation"), "image_id": image["id"], **fields} for fields in record.instances]
            instances.extend(own)
            for text in record.captions:
                caption_list.append({"id": self._next("caption"), "image_id": image["id"], "caption": text})
            for number, text in record.expressions:
                expression_id = self._next("expression")
                origin = {"original_id": image["id"], "dataset_name": "synthetic"}
                ref_images.append({**image, "id": expression_id, "caption": text, **origin})
                annotation = {"image_id": expression_id, "original_id": own[number]["id"]}
                refs.append({**own[number], "id": expression_id, **annotation})
        head = {"info": self.info, "licenses": []}
        return {
            "instances": {**head, "images": images, "annotations": instances, "categories": self.categories},
            "captions": {**head, "images": images, "annotations": caption_list},
            "refs": {**head, "images": ref_images, "annotations": refs, "categories": self.categories},
        }
