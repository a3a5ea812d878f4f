"""From annotation files to folders of records: what is kept, what is counted, and that folders are whole or absent."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines.prepare import prepare, summary_of
from data_pipelines.records import RecordFolder
from data_pipelines.validation import validate

from .annotation_files import (
    annotation_entry,
    box_mask,
    compressed,
    image_entry,
    polygon,
    write_captions,
    write_instances,
    write_picture,
    write_simple_instances,
)

ROOT = Path(__file__).resolve().parents[1]


def run(folder: Path, annotations: Path, source: str = "coco", **options) -> dict:
    return prepare(source, annotations, folder / "images", folder / "records", progress=False, **options)


def test_the_manifest_accounts_for_every_annotation(tmp_path):
    annotations = [
        annotation_entry(1, 1, [polygon(1, 1, 9, 9)]),
        annotation_entry(2, 1, compressed(box_mask(1, 1, 9, 9)), iscrowd=1),
        annotation_entry(3, 2, None),
    ]
    path = write_instances(tmp_path, [image_entry(1), image_entry(2)], annotations)
    manifest = run(tmp_path, path)
    assert manifest["counts"] == {
        "in": {"images": 2, "annotations": 3},
        "out": {"records": 1, "regions": 1, "turns": 0},
    }
    assert manifest["rejections"] == {
        "crowd region": {"count": 1, "annotations": 1, "first_ids": ["coco:1#2"]},
        "no segmentation": {"count": 1, "annotations": 1, "first_ids": ["coco:2#3"]},
        "picture without a usable region": {"count": 1, "annotations": 0, "first_ids": ["coco:2"]},
    }
    assert manifest["inputs"][0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest["image_root"] == "../images"
    assert manifest["arguments"]["include_crowd"] is False
    assert "crowd region: 1 (coco:1#2)" in summary_of(manifest)
    folder = RecordFolder.open(tmp_path / "records")
    assert folder.image_path(folder[0]).read_bytes() == (tmp_path / "images" / "000000000001.jpg").read_bytes()


def test_a_record_that_would_break_training_is_rejected_not_written(tmp_path):
    manifest = run(tmp_path, write_captions(tmp_path), "captions")
    assert manifest["counts"]["out"]["records"] == 2
    assert manifest["rejections"]["text holds a placeholder of the prompt"]["first_ids"] == ["captions:15"]


def test_a_limit_takes_the_first_records_and_a_sample_random_ones(tmp_path):
    path = write_simple_instances(tmp_path, pictures=8)
    ids = {}
    for name, choice in (
        ("first", {"limit": 3}),
        ("one", {"sample": 3, "seed": 3}),
        ("other", {"sample": 3, "seed": 4}),
    ):
        run(tmp_path, path, overwrite=True, **choice)
        ids[name] = [record.id for record in RecordFolder.open(tmp_path / "records")]
    assert ids["first"] == ["coco:1", "coco:2", "coco:3"]
    assert len(set(ids["one"])) == len(set(ids["other"])) == 3
    assert ids["one"] != ids["other"]
    run(tmp_path, path, sample=100, overwrite=True)
    assert len(RecordFolder.open(tmp_path / "records")) == 8


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"limit": 0}, "limit is 0"),
        ({"sample": -1}, "sample is -1"),
        ({"limit": 1, "sample": 1}, "give one of them"),
        ({"shard": (3, 2)}, "shard is 3/2"),
        ({"shard": (1, 2), "limit": 5}, "cannot be spread over shards"),
        ({"processes": 0}, "number of processes is 0"),
        ({"split": "val"}, "source coco has no split 'val'; it has one split a file"),
        ({"inputs": {"masks": "x"}}, "source coco takes no input named masks"),
        ({"segmenter": "grabcut"}, "source coco has masks of its own"),
    ],
)
def test_arguments_that_make_no_sense_are_named(tmp_path, choice, message):
    path = write_simple_instances(tmp_path, pictures=1)
    with pytest.raises(ValueError, match=message):
        run(tmp_path, path, **choice)
    assert not (tmp_path / "records").exists()


def test_preparing_twice_gives_equal_bytes(tmp_path):
    path = write_simple_instances(tmp_path)
    shards = []
    for _ in range(2):
        run(tmp_path, path, overwrite=True)
        shards.append((tmp_path / "records" / "records-00000.arrow").read_bytes())
    assert shards[0] == shards[1]


def test_nothing_usable_leaves_nothing_behind(tmp_path):
    path = write_instances(tmp_path, [image_entry(1)], [annotation_entry(1, 1, None)])
    with pytest.raises(ValueError, match=r"no usable record .*no segmentation \(1\)"):
        run(tmp_path, path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["images", "instances.json"]


def test_a_killed_run_leaves_the_previous_folder_usable(tmp_path):
    path = write_simple_instances(tmp_path, pictures=1)
    run(tmp_path, path)
    images = [image_entry(number, file_name="000000000001.jpg") for number in range(3000)]
    annotations = [annotation_entry(number, number, [polygon(1, 1, 9, 9)]) for number in range(3000)]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]})
    )
    command = ["prepare", "coco", "--annotations", path, "--images", tmp_path / "images", "--out", tmp_path / "records"]
    process = subprocess.Popen(
        [sys.executable, "-m", "data_pipelines", *map(str, command), "--overwrite"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    partial = tmp_path / ".records.partial"
    while not partial.exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert [record.id for record in RecordFolder.open(tmp_path / "records")] == ["coco:1"]
    run(tmp_path, path, overwrite=True)
    assert len(RecordFolder.open(tmp_path / "records")) == 3000
    assert sorted(item.name for item in tmp_path.iterdir()) == ["images", "instances.json", "records"]


def rewrite_shard(folder: Path, change) -> None:
    """Writes the folder again with other records, as somebody's own tool could have written it."""
    from datasets.arrow_writer import ArrowWriter

    from data_pipelines.records import arrow_features, record_to_row

    rows = [record_to_row(record) for record in RecordFolder.open(folder)]
    change(rows)
    shard = folder / "records-00000.arrow"
    shard.unlink()
    writer = ArrowWriter(features=arrow_features(), path=str(shard))
    for row in rows:
        writer.write(row)
    writer.finalize()


def broken_mask(rows):
    rows[0]["regions"][0]["counts"] = "~~"


def empty_mask(rows):
    rows[0]["regions"][0]["counts"] = compressed(box_mask(0, 0, 0, 0))["counts"]


def wrong_size(rows):
    rows[0]["height"], rows[0]["width"] = rows[0]["width"], rows[0]["height"]


def repeated_id(rows):
    rows[1]["id"] = rows[0]["id"]


def far_reference(rows):
    rows[0]["turns"] = [{"role": "user", "text": "Is <region9> red?"}, {"role": "assistant", "text": "Yes."}]


def no_answer(rows):
    rows[0]["turns"] = [{"role": "user", "text": "Is <region1> red?"}, {"role": "assistant", "text": ""}]


def leaving_path(rows):
    rows[0]["image"] = "../instances.json"


def not_a_picture(rows):
    rows[0]["image"] = "text.jpg"


def absent_picture(rows):
    rows[0]["image"] = "absent.jpg"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (broken_mask, "malformed mask"),
        (empty_mask, "empty region"),
        (wrong_size, "picture of another size than the record"),
        (repeated_id, "record id stands twice"),
        (far_reference, "region reference out of range"),
        (no_answer, "empty answer"),
        (leaving_path, "image path leaves the image folder"),
        (not_a_picture, "unreadable picture"),
        (absent_picture, "picture not found"),
    ],
)
def test_validation_finds_what_would_break_training(tmp_path, change, reason):
    run(tmp_path, write_simple_instances(tmp_path))
    (tmp_path / "images" / "text.jpg").write_text("no picture")
    folder = tmp_path / "records"
    assert validate(RecordFolder.open(folder), progress=False).problems == {}
    rewrite_shard(folder, change)
    problems = validate(RecordFolder.open(folder), progress=False).problems
    assert problems[reason]["first_ids"] == ["coco:1"]
    assert problems["shard differs from its checksum"]["first_ids"] == ["records-00000.arrow"]


def test_validation_opens_each_picture_once_and_counts(tmp_path):
    write_captions(tmp_path)
    run(tmp_path, tmp_path / "captions.json", "captions")
    report = validate(RecordFolder.open(tmp_path / "records"), progress=False)
    assert (report.records, report.pictures, report.regions, report.problems) == (2, 1, 0, {})
    write_picture(tmp_path / "images", "000000000001.jpg", 10, 10)
    report = validate(RecordFolder.open(tmp_path / "records"), progress=False)
    assert report.problems["picture of another size than the record"]["count"] == 2
