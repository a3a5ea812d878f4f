"""Records survive the way to disk and back, and a folder is whole or not there."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from data_pipelines.records import RecordFolder, Region, RegionRecord, Rejection, Turn, record_problems
from data_pipelines.writing import RecordWriter

HEIGHT, WIDTH = 20, 30


def rle(x0: int, y0: int, x1: int, y1: int, height: int = HEIGHT, width: int = WIDTH) -> dict:
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    encoded = mask_utils.encode(mask)
    return {"size": [height, width], "counts": encoded["counts"].decode()}


def record(number: int, **changes) -> RegionRecord:
    fields = {
        "id": f"made:{number}",
        "source": "made",
        "image": f"pictures/{number}.png",
        "height": HEIGHT,
        "width": WIDTH,
        "regions": (Region(rle(1, 2, 5, 9), "naïve café 犬", (1.0, 2.0, 5.0, 9.0)), Region(rle(0, 0, 1, 1), "b")),
        "turns": (Turn("user", "What is <region1>?"), Turn("assistant", "a dog < cat")),
    }
    return RegionRecord(**{**fields, **changes})


def write(folder: Path, records, **options) -> None:
    with RecordWriter(folder, source="made", image_root=folder.parent / "images", **options) as writer:
        for item in records:
            writer.add(item)


def test_records_come_back_as_they_were_written(tmp_path):
    records = [
        record(0),
        record(1, regions=(), turns=(Turn("user", ""), Turn("assistant", "a caption"))),
        record(2, turns=()),
        record(3, regions=(Region(rle(3, 3, 4, 4), "no box"),), turns=()),
    ]
    write(tmp_path / "folder", records)
    folder = RecordFolder.open(tmp_path / "folder")
    assert len(folder) == 4
    assert [folder[index] for index in range(4)] == records
    assert list(folder) == records
    assert folder[-1] == records[3]
    with pytest.raises(IndexError):
        folder[4]


def test_shards_are_read_as_one_sequence_and_checksums_hold(tmp_path):
    records = [record(number) for number in range(7)]
    write(tmp_path / "folder", records, records_per_shard=3)
    folder = RecordFolder.open(tmp_path / "folder")
    assert [item.id for item in folder] == [item.id for item in records]
    assert [shard["records"] for shard in folder.manifest["shards"]] == [3, 3, 1]
    for shard in folder.manifest["shards"]:
        assert hashlib.sha256((tmp_path / "folder" / shard["name"]).read_bytes()).hexdigest() == shard["sha256"]


def test_equal_records_give_equal_bytes(tmp_path):
    for name in ("first", "second"):
        write(tmp_path / name, [record(number) for number in range(5)])
    files = [(tmp_path / name / "records-00000.arrow").read_bytes() for name in ("first", "second")]
    assert files[0] == files[1]


def test_folder_can_be_sent_to_a_worker_process(tmp_path):
    write(tmp_path / "folder", [record(0), record(1)])
    folder = RecordFolder.open(tmp_path / "folder")
    assert folder[1].id == "made:1"
    sent = pickle.dumps(folder)
    assert pickle.loads(sent)[1] == folder[1]
    assert len(sent) < 5000


def test_rejections_are_counted_and_listed(tmp_path):
    with RecordWriter(tmp_path / "folder", source="made", image_root=tmp_path) as writer:
        writer.add(record(0))
        for number in range(12):
            writer.reject(Rejection(f"made:0#{number}", "crowd region", f"annotation {number}"))
        writer.reject(Rejection("made:9", "missing image", annotations=4))
    manifest = RecordFolder.open(tmp_path / "folder").manifest
    assert manifest["rejections"]["crowd region"]["count"] == 12
    assert manifest["rejections"]["crowd region"]["first_ids"] == [f"made:0#{number}" for number in range(10)]
    assert manifest["rejections"]["missing image"] == {"count": 1, "annotations": 4, "first_ids": ["made:9"]}
    lines = (tmp_path / "folder" / "rejections.jsonl").read_text().splitlines()
    assert len(lines) == 13
    assert json.loads(lines[3]) == {"id": "made:0#3", "reason": "crowd region", "detail": "annotation 3"}


def test_nothing_is_left_behind_when_writing_fails(tmp_path):
    with (
        pytest.raises(RuntimeError, match="disk full"),
        RecordWriter(tmp_path / "folder", source="made", image_root=tmp_path) as writer,
    ):
        writer.add(record(0))
        raise RuntimeError("disk full")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_record_is_not_written(tmp_path):
    with (
        pytest.raises(ValueError, match=r"no usable record .* made: missing image \(1\)"),
        RecordWriter(tmp_path / "folder", source="made", image_root=tmp_path) as writer,
    ):
        writer.reject(Rejection("made:9", "missing image"))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_replaced_only_on_request_and_only_at_the_end(tmp_path):
    folder = tmp_path / "folder"
    write(folder, [record(0)])
    with pytest.raises(ValueError, match=r"exists already.*--overwrite"):
        write(folder, [record(1)])
    with (
        pytest.raises(RuntimeError),
        RecordWriter(folder, source="made", image_root=tmp_path, overwrite=True) as writer,
    ):
        writer.add(record(1))
        raise RuntimeError
    assert [item.id for item in RecordFolder.open(folder)] == ["made:0"]
    write(folder, [record(1)], overwrite=True)
    assert [item.id for item in RecordFolder.open(folder)] == ["made:1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


def test_a_folder_of_other_things_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("text")
    with pytest.raises(ValueError, match="not a folder of records"):
        write(tmp_path / "thesis", [record(0)], overwrite=True)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "text"


def test_a_folder_moves_together_with_its_pictures(tmp_path):
    (tmp_path / "here" / "images" / "pictures").mkdir(parents=True)
    (tmp_path / "here" / "images" / "pictures" / "0.png").write_bytes(b"picture")
    write(tmp_path / "here" / "folder", [record(0)])
    (tmp_path / "here").rename(tmp_path / "there")
    folder = RecordFolder.open(tmp_path / "there" / "folder")
    assert folder.image_path(folder[0]).read_bytes() == b"picture"


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../secret.png", "..\\secret.png", "", "a\0b"])
def test_image_paths_that_leave_their_root_are_refused(tmp_path, path):
    write(tmp_path / "folder", [record(0)])
    folder = RecordFolder.open(tmp_path / "folder")
    with pytest.raises(ValueError, match=r"not a relative path inside.*record made:5"):
        folder.image_path(record(5, image=path))


def test_an_id_of_several_lines_is_told_on_one(tmp_path):
    write(tmp_path / "folder", [record(0)])
    folder = RecordFolder.open(tmp_path / "folder")
    hostile = record(5, image="../a.png", id="first\x1esecond\n" + "9" * 999)
    with pytest.raises(ValueError, match=r"\(record first second 9{287} …\)$"):
        folder.image_path(hostile)


def test_symbolic_links_that_leave_the_root_are_refused(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "images" / "inside.png").symlink_to("real.png")
    write(tmp_path / "folder", [record(0)])
    folder = RecordFolder.open(tmp_path / "folder")
    with pytest.raises(ValueError, match=r"symbolic link.*record made:5"):
        folder.image_path(record(5, image="link.png"))
    assert folder.image_path(record(5, image="inside.png")) == tmp_path / "images" / "real.png"


def test_damaged_folders_are_named_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"not a folder of records.*prepare"):
        RecordFolder.open(tmp_path / "nothing")
    write(tmp_path / "folder", [record(0)])
    shard = tmp_path / "folder" / "records-00000.arrow"
    content = shard.read_bytes()
    shard.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="shard cannot be read"):
        RecordFolder.open(tmp_path / "folder")
    shard.write_bytes(content)
    manifest = json.loads((tmp_path / "folder" / "manifest.json").read_text())
    manifest["counts"]["out"]["records"] = 2
    (tmp_path / "folder" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="1 records, the manifest says 2"):
        RecordFolder.open(tmp_path / "folder")
    twice = json.dumps(manifest | {"shards": manifest["shards"] * 2})
    (tmp_path / "folder" / "manifest.json").write_text(twice)
    with pytest.raises(ValueError, match="names a shard twice"):
        RecordFolder.open(tmp_path / "folder")
    manifest["shards"][0]["name"] = "../elsewhere.arrow"
    (tmp_path / "folder" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="outside the folder"):
        RecordFolder.open(tmp_path / "folder")
    shard.unlink()
    manifest["shards"][0]["name"] = "records-00000.arrow"
    (tmp_path / "folder" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="is missing"):
        RecordFolder.open(tmp_path / "folder")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"turns": (Turn("user", "Is <region3> red?"), Turn("assistant", "yes"))}, "region reference out of range"),
        ({"turns": (Turn("user", "Is <region0> red?"), Turn("assistant", "yes"))}, "region reference out of range"),
        ({"turns": (Turn("user", "Is it red?"), Turn("assistant", " "))}, "empty answer"),
        ({"turns": (Turn("user", "<image> Is it?"), Turn("assistant", "yes"))}, "text holds a placeholder"),
        ({"turns": (Turn("user", "Is it red?"),)}, "turns do not alternate"),
        ({"turns": (Turn("assistant", "one"), Turn("user", "two"))}, "turns do not alternate"),
        ({"turns": (), "regions": ()}, "nothing to learn"),
        ({"turns": (), "regions": (Region(rle(0, 0, 2, 2), " "),)}, "region without a name"),
        ({"turns": (), "regions": (Region(rle(0, 0, 2, 2), "a <mask>"),)}, "text holds a placeholder"),
        ({"regions": (Region(rle(0, 0, 2, 2, 20, 31), "a"),) * 2}, "mask of another size"),
        ({"height": 0}, "picture without area"),
    ],
)
def test_records_that_would_break_training_are_recognised(tmp_path, changes, reason):
    broken = record(0, **changes)
    assert any(problem.reason.startswith(reason) for problem in record_problems(broken))
    with pytest.raises(ValueError, match="record made:0"):
        write(tmp_path / "folder", [record(1), broken])
    assert record_problems(record(0)) == []
