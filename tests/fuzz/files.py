"""Fuzz targets of files: pictures, checkpoints, shards of records, annotations, predictions, pickles, paths."""

import io
import json
import pickle
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from datasets.arrow_writer import ArrowWriter
from PIL import ExifTags, Image
from safetensors.torch import save

from data_pipelines.checks import problems_of, read_row, regions_in_conversation
from data_pipelines.generation.replies import ReplyLog
from data_pipelines.mixtures import read_mixture
from data_pipelines.records import FOLDER_FORMAT, Problem, RecordFolder, arrow_features, read_manifest
from data_pipelines.sources.matlab_files import load_matlab
from data_pipelines.sources.plain_pickle import load_plain_pickle
from data_pipelines.sources.reader import Unusable
from eval.grounding import read_proposals
from eval.open_questions import read_contexts
from eval.predictions import read_predictions
from osprey_tp.images import load_image, picture_size
from osprey_tp.masks import to_mask
from osprey_tp.outside import confined_path
from osprey_tp.weights import WeightReader, list_weights

from .checking import Folder, outcome

MOST_PIXELS = 1_000_000


@cache
def folder() -> Folder:
    """The folder of this process."""
    return Folder()


def picture_seeds() -> list[bytes]:
    """Small pictures of every format, in the modes and with the additions that each has."""
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "maker"
    glass = colour.convert("RGBA")
    forms: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (colour, "png", {"exif": exif}),
        (glass, "png", {}),
        (colour.convert("P"), "png", {"transparency": 3}),
        (colour.convert("1"), "png", {}),
        (Image.fromarray(np.arange(20, dtype=np.uint16).reshape(4, 5) * 999), "png", {}),
        (colour, "png", {"save_all": True, "append_images": [glass.convert("RGB")]}),
        (colour, "jpeg", {"exif": exif}),
        (colour.convert("L"), "jpeg", {"progressive": True}),
        (colour.convert("CMYK"), "jpeg", {"quality": 90}),
        (colour, "mpo", {"save_all": True, "append_images": [colour]}),
        (colour, "webp", {"exif": exif}),
        (glass, "webp", {"lossless": True, "save_all": True, "append_images": [glass]}),
        (colour, "bmp", {}),
        (colour.convert("P"), "bmp", {}),
        (colour, "gif", {"save_all": True, "append_images": [colour.transpose(Image.Transpose.ROTATE_180)]}),
        (colour, "tiff", {"exif": exif}),
        (colour, "tiff", {"compression": "tiff_lzw"}),
        (colour.convert("1"), "tiff", {"compression": "group4"}),
        (colour, "tiff", {"compression": "jpeg"}),
        (Image.fromarray(np.ones((3, 4), np.float32)), "tiff", {"compression": "tiff_deflate"}),
        (colour, "ppm", {}),
        (colour.convert("1"), "ppm", {}),
    ]
    return [_saved(*form) for form in forms] + [b"P3 2 1 255 1 2 3 4 5 6\n", b"Pf 1 1 -1.0\n" + struct.pack("<f", 0.5)]


def _saved(picture: Image.Image, form: str, options: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def pictures(data: bytes) -> None:
    """A file is a picture of the size that its header tells, or refused; as a mask it has that size too."""
    path = folder().file("picture", data)
    size = outcome(lambda: picture_size(path, MOST_PIXELS))
    picture = outcome(lambda: load_image(path, MOST_PIXELS))
    if picture is not None:
        assert picture.mode == "RGB" and (picture.height, picture.width) == size
        assert picture.height * picture.width <= MOST_PIXELS
    if size is not None and size[0] * size[1] <= MOST_PIXELS:
        outcome(lambda: to_mask(path, *size, allow_empty=True))


def _tensors() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def _torch_file(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def safetensors_seeds() -> list[bytes]:
    """A header of safetensors, with what follows it."""
    return [save(_tensors()), save(_tensors(), {"format": "pt"}), save({})]


def torch_seeds() -> list[bytes]:
    """Files of torch, in its format since 1.6 and the one before."""
    return [
        _torch_file(_tensors()),
        _torch_file(_tensors(), _use_new_zipfile_serialization=False),
        _torch_file({"model": 3}),
    ]


def safetensors(data: bytes) -> None:
    """Weights in the safe format are listed and read as listed, or refused."""
    _weights(folder().file("model.safetensors", data))


def torch_files(data: bytes) -> None:
    """Weights in torch's own format, likewise; no object but tensors is made of them."""
    _weights(folder().file("pytorch_model.bin", data))


def _weights(path: Path) -> None:
    listed = outcome(lambda: list_weights(path))
    reader = WeightReader()
    for name, stored in (listed or {}).items():
        weight = outcome(lambda stored=stored: reader.read(stored))
        if weight is not None:
            assert isinstance(weight, torch.Tensor) and isinstance(name, str)
            assert tuple(weight.shape) == stored.shape and weight.dtype == stored.dtype
            weight.numel() and weight.double().sum()


def index_seeds() -> list[bytes]:
    """An index of shards."""
    places = {"weight_map": {"a.weight": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    return [json.dumps({"metadata": {"total_size": 28}} | places).encode()]


def indices(data: bytes) -> None:
    """An index names files of its folder, or is refused."""
    path = folder().path / "sharded"
    if not path.is_dir():
        path.mkdir()
        for number, (name, weight) in enumerate(_tensors().items(), start=1):
            (path / f"model-{number:05d}-of-00002.safetensors").write_bytes(save({name: weight}))
    (path / "model.safetensors.index.json").write_bytes(data)
    listed = outcome(lambda: list_weights(path))
    assert all(weight.file.parent == path for weight in (listed or {}).values())


ROW = {
    "id": "coco:1",
    "source": "coco",
    "image": "a.png",
    "height": 9,
    "width": 13,
    "regions": [
        {"counts": "T13S1", "name": "cat", "box": [1.0, 2.0, 5.0, 6.0], "id": "7"},
        {"counts": "T13S1", "name": "dog", "box": None, "id": ""},
    ],
    "turns": [
        {"role": "user", "text": "What is <region1> to <region2>?"},
        {"role": "assistant", "text": "<region1> is a cat."},
    ],
    "metadata": '{"rationale": "<region1> is small.", "category": "x"}',
}


def record_seeds() -> list[bytes]:
    """Rows of a shard: with turns, without, with text alone."""
    plain = ROW | {"turns": [], "metadata": ""}
    return [json.dumps(row).encode() for row in (ROW, plain, ROW | {"image": "", "regions": [], "height": 0})]


@cache
def _schema() -> pa.Schema:
    return arrow_features().arrow_schema


def records(data: bytes) -> None:
    """A row is a record without problems, of which a conversation can be made, or its problems are told."""
    try:
        row = json.loads(data)
        table = Dataset(pa.Table.from_pylist([{name: row[name] for name in ROW}], schema=_schema()))
    except Exception:  # what Arrow does not take cannot stand in a shard
        return
    records = RecordFolder(folder().path, {"shards": []}, folder().path)
    records.__dict__["_table"] = table
    record = read_row(records, 0)
    if isinstance(record, Problem):
        assert "\n" not in record.detail
        return
    problems = problems_of(record, "training")
    assert all(problem.reason and len(problem.detail) < 4000 for problem in problems)
    if not problems:
        regions_in_conversation(record)
        for region in record.regions:
            assert to_mask(region.segmentation, record.height, record.width).any()
    if record.has_image:
        outcome(lambda: records.image_path(record))


def shard_seeds() -> list[bytes]:
    """A shard of two records."""
    path = folder().path / "seed.arrow"
    with ArrowWriter(path=str(path), features=arrow_features()) as writer:
        writer.write(ROW)
        writer.write(ROW | {"id": "coco:2"})
        writer.finalize()
    return [path.read_bytes()]


def shards(data: bytes) -> None:
    """A shard is read, or found to be damaged."""
    path = folder().path / "shards"
    path.mkdir(exist_ok=True)
    (path / "records-00000.arrow").write_bytes(data)
    manifest = _manifest(2)
    (path / "manifest.json").write_text(json.dumps(manifest))

    def read() -> None:
        records = RecordFolder.open(path)
        for place in range(len(records)):
            record = read_row(records, place)
            if not isinstance(record, Problem):
                problems_of(record, "training")
        outcome(records.images)
        outcome(lambda: list(records))

    outcome(read)


def _manifest(count: int) -> dict[str, Any]:
    shards = [{"name": "records-00000.arrow", "records": count, "sha256": "0"}]
    out = {"records": count, "regions": 4}
    return {"format": FOLDER_FORMAT, "image_root": ".", "shards": shards, "counts": {"out": out}, "source": "coco"}


def manifest_seeds() -> list[bytes]:
    """Of a folder of records."""
    return [json.dumps(_manifest(2)).encode()]


def manifests(data: bytes) -> None:
    """A manifest describes the folder that it lies in, or is refused."""
    path = folder().path / "described"
    if not path.is_dir():
        path.mkdir()
        (path / "records-00000.arrow").write_bytes(shard_seeds()[0])
    (path / "manifest.json").write_bytes(data)
    outcome(lambda: read_manifest(path))
    opened = outcome(lambda: RecordFolder.open(path))
    if opened is not None:
        assert len(opened) == 2 and opened.purpose in ("training", "evaluation")


def line_seeds() -> list[bytes]:
    """Files of JSON Lines, or of JSON, that an evaluation reads."""
    prediction = {"id": "a#1", "prediction": "a cat", "references": ["cat"], "scores": [0.5], "area_share": 0.1}
    lines = [prediction, {"id": "b", "prediction": "", "category": "x", "region_cells": 3}]
    proposals = [{"image_id": 7, "segmentation": {"size": [4, 5], "counts": "0"}}]
    contexts = [{"image": "a/b.jpg", "text": "a cat"}, {"image": "c.jpg", "prompt": "two dogs"}]
    response = {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    reply = {"key": "k", "id": "i", "request": {"model": "m", "messages": []}, "response": response}
    whole = [json.dumps(value).encode() for value in (proposals, contexts, prediction, reply)]
    return [*whole, "\n".join(map(json.dumps, lines)).encode() + b"\n"]


def lines(data: bytes) -> None:
    """Predictions, proposals, descriptions and replies are read from a file, or it is refused."""
    path = folder().file("lines", data)
    for read in (read_predictions, read_proposals, read_contexts):
        outcome(lambda read=read: read(path))
    replies = folder().file("replies.jsonl", data if data.endswith(b"\n") else data + b"\n")

    def open_replies() -> None:
        with ReplyLog(replies):
            pass

    outcome(open_replies)


def mixture_seeds() -> list[bytes]:
    """A mixture of folders."""
    return [
        b"seed: 3\nfolders:\n  - path: a\n    weight: 0.5\n  - path: b\n    share: 1\n",
        b"a: &a [x,x]\nb: &b [*a,*a]\n",
    ]


def mixtures(data: bytes) -> None:
    """YAML is a mixture, or refused."""
    path = folder().file("mixture.yaml", data)
    outcome(lambda: read_mixture(path))


def pickle_seeds() -> list[bytes]:
    """REFER's form in every protocol, and what a pickle must not do."""
    value = [{"ref_id": 1, "sentences": [{"raw": "the cat", "sent_id": 2}], "file_name": "a.jpg", "split": "train"}]
    return [pickle.dumps(value, protocol) for protocol in range(6)] + [pickle.dumps(print), pickle.dumps(2**70)]


def pickles(data: bytes) -> None:
    """A pickle holds plain values, or is refused."""
    path = folder().file("refs.p", data)
    outcome(lambda: load_plain_pickle(path))


def matlab_seeds() -> list[bytes]:
    """Pascal-Part's form, plain and packed."""
    from scipy.io import savemat

    mask = np.eye(4, dtype=np.uint8)
    parts = np.array([("lear", mask)], dtype=[("part_name", "O"), ("mask", "O")])
    objects = np.array(
        [("horse", 13, mask, parts)], dtype=[("class", "O"), ("class_ind", "O"), ("mask", "O"), ("parts", "O")]
    )
    found = []
    for packed in (False, True):
        stream = io.BytesIO()
        savemat(stream, {"anno": {"imname": "2008_000008", "objects": objects}}, do_compression=packed)
        found.append(stream.getvalue())
    return found


def matlab(data: bytes) -> None:
    """A MATLAB file is read, or refused."""
    path = folder().file("a.mat", data)
    try:
        load_matlab(path)
    except Unusable as unusable:
        assert "\n" not in unusable.detail


def path_seeds() -> list[bytes]:
    """Paths inside a folder, and those that lead out of it."""
    return [
        b"a.png",
        b"in/a.png",
        b"out/a.png",
        b"../a",
        b"/etc/passwd",
        b"a\\..\\b",
        b"loop/a",
        b"in/../../x",
        b"C:\\x",
    ]


def paths(data: bytes) -> None:
    """A path lies in its root, or is refused."""
    root = folder().path / "root"
    if not root.is_dir():
        (root / "in").mkdir(parents=True)
        (root / "out").symlink_to("/")
        (root / "loop").symlink_to("loop")
    for text in (data.decode("utf-8", "surrogateescape"), data.decode("latin-1")):
        found = outcome(lambda text=text: confined_path(root, text))
        if found is not None:
            assert found.resolve().is_relative_to(root.resolve())


def annotation_seeds() -> list[bytes]:
    """Published annotation files, each with the name of its source."""
    from ..annotation_files import write_captions, write_referring, write_simple_instances
    from ..published_files import (
        write_custom,
        write_lvis,
        write_paco,
        write_partimagenet,
        write_pascal_part,
        write_visual_genome,
    )

    writers = {
        "coco": write_simple_instances,
        "captions": write_captions,
        "refcoco": write_referring,
        "lvis": write_lvis,
        "paco": write_paco,
        "pascal-part": write_pascal_part,
        "partimagenet": write_partimagenet,
        "visual-genome": write_visual_genome,
        "custom": write_custom,
    }
    place = folder().path / "annotations"
    place.mkdir(exist_ok=True)
    (place / "images").mkdir(exist_ok=True)
    found = []
    for source, write in writers.items():
        content = json.loads(write(place).read_text("utf-8"))
        found.append(json.dumps({"source": source, "content": content}).encode())
    return found


def annotations(data: bytes) -> None:
    """Annotations become records that can be used, or are rejected and counted, or the file is refused."""
    from data_pipelines.prepare import prepare
    from data_pipelines.sources import SOURCES

    try:
        document = json.loads(data)
        source, content = document["source"], json.dumps(document["content"])
    except (ValueError, RecursionError, TypeError, KeyError, IndexError):
        return
    if not isinstance(source, str) or source not in SOURCES:
        return
    place = folder().path / "annotations"
    if not place.is_dir():
        annotation_seeds()
    file, out = folder().file("annotations.json", content.encode()), folder().path / "prepared"
    manifest = outcome(lambda: prepare(source, file, place / "images", out, overwrite=True, progress=False))
    if manifest is not None:
        records = RecordFolder.open(out)
        purpose = records.purpose
        assert all(not problems_of(record, purpose) for record in records)
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(folder().path / ".prepared.partial", ignore_errors=True)


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "pictures": (pictures, picture_seeds),
    "safetensors": (safetensors, safetensors_seeds),
    "torch": (torch_files, torch_seeds),
    "indices": (indices, index_seeds),
    "records": (records, record_seeds),
    "shards": (shards, shard_seeds),
    "manifests": (manifests, manifest_seeds),
    "lines": (lines, line_seeds),
    "annotations": (annotations, annotation_seeds),
    "mixtures": (mixtures, mixture_seeds),
    "pickles": (pickles, pickle_seeds),
    "matlab": (matlab, matlab_seeds),
    "paths": (paths, path_seeds),
}
