"""What comes out of Pascal-Part's MATLAB files, and why the rest does not."""

import struct
import zlib

import numpy as np
import pytest
import scipy.io
from pycocotools import mask as mask_utils

from data_pipelines.sources import matlab_files
from data_pipelines.sources.matlab_files import load_matlab
from data_pipelines.sources.pascal_part_mat import spelled_out

from .annotation_files import box_mask, write_picture
from .source_reading import read_source

HORSE, HEAD, EAR, LEG = box_mask(5, 5, 50, 38), box_mask(5, 5, 20, 20), box_mask(6, 5, 9, 9), box_mask(30, 25, 35, 38)
PERSON = box_mask(20, 0, 40, 20)


def structures(entries: list[dict]) -> np.ndarray:
    """A 1 x n array of MATLAB structures, as savemat writes one."""
    array = np.empty((1, len(entries)), [(name, object) for name in entries[0]])
    for place, entry in enumerate(entries):
        for name, value in entry.items():
            array[name][0, place] = value
    return array


def part(name, mask) -> dict:
    return {"part_name": name, "mask": mask.astype(np.uint8)}


def thing(name, mask, parts=(), number=13) -> dict:
    listed = structures(list(parts)) if parts else np.empty((0, 0))
    box = np.array([[6, 6, 50, 38]], float)
    return {"class": name, "class_ind": float(number), "bbox": box, "mask": mask.astype(np.uint8), "parts": listed}


def write_mat(path, name, objects, **options) -> None:
    path.parent.mkdir(exist_ok=True)
    scipy.io.savemat(path, {"anno": structures([{"imname": name, "objects": objects}])}, **options)


def write_pascal(folder, **options):
    """`Annotations_Part`, with what is wrong with each file in its name."""
    files = folder / "Annotations_Part"
    horse = thing(
        "horse",
        HORSE,
        [
            part("head", HEAD),
            part("lear", EAR),
            part("rfuleg", LEG),
            part("tail", np.zeros_like(EAR)),
            part("neck", box_mask(0, 0, 3, 3, 50, 50)),
            part("", EAR),
        ],
    )
    objects = structures([horse, thing("pottedplant", PERSON), thing("", PERSON)])
    write_mat(files / "2008_000008.mat", "2008_000008", objects, **options)
    write_mat(files / "absent.mat", "absent", structures([thing("cat", HORSE)]), **options)
    write_mat(files / "outside.mat", "../outside", structures([thing("cat", HORSE)]), **options)
    write_mat(files / "empty.mat", "empty", np.empty((0, 0)), **options)
    write_mat(files / "zero.mat", "zero", structures([thing("cat", np.zeros_like(HORSE))]), **options)
    scipy.io.savemat(files / "other.mat", {"x": np.arange(3)}, **options)
    (files / "cut.mat").write_bytes((files / "zero.mat").read_bytes()[:200])
    (files / "text.mat").write_text("no MATLAB file")
    write_picture(folder / "images", "JPEGImages/2008_000008.jpg")
    write_picture(folder / "images", "zero.jpg")
    write_picture(folder, "outside.jpg")
    return files


@pytest.mark.parametrize("options", [{}, {"do_compression": True}], ids=["plain", "packed"])
def test_objects_and_their_parts_are_regions(tmp_path, options):
    reading = read_source("pascal-part", write_pascal(tmp_path, **options), tmp_path / "images")
    (record,) = reading.records
    assert (record.id, record.image) == ("pascal-part:2008_000008", "JPEGImages/2008_000008.jpg")
    assert (record.height, record.width) == (40, 60)
    assert [(region.id, region.name) for region in record.regions] == [
        ("1", "horse"),
        ("1:head", "horse:head"),
        ("1:lear", "horse:ear"),
        ("1:rfuleg", "horse:leg"),
        ("2", "potted plant"),
    ]
    for region, mask in zip(record.regions, (HORSE, HEAD, EAR, LEG, PERSON), strict=True):
        assert np.array_equal(mask_utils.decode(region.segmentation).astype(bool), mask)
        rows, columns = np.nonzero(mask)
        assert region.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert record.metadata == {"object_ids": ["", "1", "1", "1", ""]}
    assert [(item.id.removeprefix("pascal-part:"), item.reason) for item in reading.rejections] == [
        ("2008_000008#1:tail", "segmentation covers no pixel"),
        ("2008_000008#1:neck", "mask of another size than the picture"),
        ("2008_000008#1", "part without a name"),
        ("2008_000008#3", "object without a class"),
        ("absent", "picture not found"),
        ("cut", "MATLAB file cannot be read"),
        ("empty", "file without objects"),
        ("other", "MATLAB file without a structure anno"),
        ("outside", "image path leaves the image folder"),
        ("text", "MATLAB file cannot be read"),
        ("zero#1", "segmentation covers no pixel"),
        ("zero", "picture without a usable region"),
    ]
    lost = sum(item.annotations for item in reading.rejections)
    assert reading.counts_in["annotations"] == len(reading.records) + lost == 8
    assert all("\n" not in item.detail for item in reading.rejections)


@pytest.mark.parametrize(
    ("short", "words"),
    [
        *(("leye", "eye"), ("rear", "ear"), ("lebrow", "eyebrow"), ("rhorn", "horn"), ("lwing", "wing")),
        *(("luarm", "arm"), ("rlarm", "arm"), ("lhand", "hand"), ("rfoot", "foot")),
        *(("lleg", "leg"), ("luleg", "leg"), ("llleg", "leg"), ("lfuleg", "leg"), ("rblleg", "leg"), ("rfleg", "leg")),
        *(("lfpa", "paw"), ("rbpa", "paw"), ("lfho", "hoof"), ("fwheel", "wheel"), ("wheel_2", "wheel")),
        *(("chainwheel", "chain wheel"), ("bliplate", "license plate"), ("leftmirror", "mirror")),
        *(("frontside", "front side"), ("hleftside", "left side"), ("croofside_12", "roof side")),
        *(("headlight_1", "headlight"), ("coach_3", "coach"), ("muzzle", "muzzle"), ("stern", "stern")),
    ],
)
def test_parts_are_spelled_out(short, words):
    assert spelled_out(short) == words


def element(kind: int, body: bytes) -> bytes:
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)


def packed(body: bytes) -> bytes:
    content = zlib.compress(body)
    return struct.pack("<II", 15, len(content)) + content


def matrix(content: int, shape: tuple[int, ...], *rest: bytes) -> bytes:
    dimensions = struct.pack(f"<{len(shape)}i", *shape)
    head = element(6, struct.pack("<II", content, 0)) + element(5, dimensions) + element(1, b"anno")
    return element(14, head + b"".join(rest))


def hostile(body: bytes) -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + body


FIELDS = struct.pack("<HHi", 5, 4, 8) + element(1, b"mask\0\0\0\0")
HOSTILE = {
    "text that is not there": matrix(4, (1, 2**31 - 1), element(16, b"")),
    "structures that are not there": matrix(2, (2**15, 2**15), FIELDS),
    "negative shape": matrix(2, (-1, -5), FIELDS),
    "function": matrix(16, (1, 1), element(14, b"")),
    "opaque": matrix(17, (1, 1)),
    "object": matrix(3, (1, 1), element(1, b"inline\0\0"), FIELDS),
    "cell": matrix(1, (1, 1), element(14, b"")),
    "sparse": matrix(5, (1, 1)),
    "no matrix": element(5, b"1234"),
    "cut": matrix(6, (1, 1), element(9, b"\0" * 8))[:-4],
    "broken zip": element(15, b"not zlib"),
    "deep": b"",
}
for _ in range(30):
    HOSTILE["deep"] = matrix(2, (1, 1), FIELDS, HOSTILE["deep"] or matrix(6, (1, 1), element(9, b"\0" * 8)))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_rejected_before_anything_is_allocated(tmp_path, name):
    (tmp_path / "images").mkdir()
    files = tmp_path / "Annotations_Part"
    files.mkdir()
    (files / "plain.mat").write_bytes(hostile(HOSTILE[name]))
    (files / "packed.mat").write_bytes(hostile(packed(HOSTILE[name])))
    reading = read_source("pascal-part", files, tmp_path / "images")
    assert reading.records == []
    assert [item.reason for item in reading.rejections] == ["MATLAB file cannot be read"] * 2


def test_a_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(matlab_files, "LARGEST_CONTENT", 1 << 20)
    (tmp_path / "images").mkdir()
    (tmp_path / "bomb.mat").write_bytes(hostile(packed(bytes(1 << 24))))
    (rejection,) = read_source("pascal-part", tmp_path, tmp_path / "images").rejections
    assert rejection.detail == "it unpacks to more than 1048576 bytes"


def test_folders_without_such_files_are_named(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.mat file"):
        read_source("pascal-part", tmp_path, tmp_path / "images")


def plain(value):
    """What scipy read, in the form in which `load_matlab` gives it."""
    if value.dtype.names:
        return [{name: plain(entry[name]) for name in value.dtype.names} for entry in value.reshape(-1)]
    return (str(value[0]) if value.size else "") if value.dtype.kind == "U" else value


@pytest.mark.parametrize("packed", [False, True])
def test_values_are_those_that_scipy_reads(tmp_path, packed):
    rng = np.random.default_rng(0)
    kinds = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
    numbers = {name: (rng.random((3, 4)) * 100).astype(name) for name in kinds}
    content = {
        **numbers,
        "logical": rng.random((2, 5)) > 0.5,
        "cube": rng.random((2, 3, 4)),
        "small": np.uint8(7),
        "empty": np.empty((0, 0)),
        "text": "naïve 犬",
        "nothing": "",
        "nested": structures([{"a": structures([{"b": "x", "c": np.eye(2)}] * 3), "d": "y"}]),
    }
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, content, do_compression=packed)
    expected = {name: plain(value) for name, value in scipy.io.loadmat(path).items() if not name.startswith("__")}
    found = load_matlab(path)
    np.testing.assert_equal(found, expected)
    assert set(found) == set(content)
