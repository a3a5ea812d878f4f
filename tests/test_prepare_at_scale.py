"""Many chunks, processes, machines, and interruptions: the records are the same byte for byte."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines import chunks
from data_pipelines.chunks import chunk_bounds
from data_pipelines.merging import merge_shards
from data_pipelines.prepare import prepare
from data_pipelines.records import RecordFolder

from .annotation_files import annotation_entry, image_entry, polygon, write_json, write_picture
from .waiting import wait_until

ROOT = Path(__file__).resolve().parents[1]
PICTURES = 1500


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A file of many pictures, its annotations in no order, with something to reject in each chunk."""
    folder = tmp_path_factory.mktemp("source")
    write_picture(folder / "images", "000000000001.jpg")
    images = [image_entry(number, file_name="000000000001.jpg") for number in range(PICTURES)]
    annotations = [
        annotation_entry(
            number, number * 7 % PICTURES, [polygon(1 + number % 9, 1, 20, 9)], iscrowd=int(number % 49 == 0)
        )
        for number in range(2 * PICTURES)
    ]
    annotations.append(annotation_entry(10**6, PICTURES + 1, [polygon(1, 1, 9, 9)]))
    content = {"annotations": annotations, "images": images, "categories": [{"id": 1, "name": "cat"}]}
    write_json(folder / "instances.json", content)
    return folder


@pytest.fixture(scope="module")
def whole(source) -> Path:
    run(source, "whole")
    return source / "whole"


def run(source: Path, out: str, **options) -> dict:
    return prepare("coco", source / "instances.json", source / "images", source / out, progress=False, **options)


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything in a folder that does not name the arguments of the run."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def manifest_of(folder: Path) -> dict:
    manifest = json.loads((folder / "manifest.json").read_text())
    return {name: value for name, value in manifest.items() if name != "arguments"}


def assert_same(folder: Path, whole: Path) -> None:
    assert files_of(folder) == files_of(whole)
    assert manifest_of(folder) == manifest_of(whole)


def command(source: Path, out: str, *more: str) -> list[str]:
    files = ["--annotations", str(source / "instances.json"), "--images", str(source / "images")]
    return [sys.executable, "-m", "data_pipelines", "prepare", "coco", *files, "--out", str(source / out), *more]


def started(source: Path, out: str, *more: str) -> subprocess.Popen:
    """The command, once it has finished its first chunk."""
    process = subprocess.Popen(
        command(source, out, *more), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    work = source / f".{out}.partial" / "work"
    while not list(work.glob("chunk-*.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    return process


def children_of(process: int) -> list[int]:
    """The processes that this one has started."""
    listed = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in listed.split()]


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_whole_is_several_shards_and_accounts_for_everything(whole):
    manifest = manifest_of(whole)
    assert len(manifest["shards"]) == len(chunk_bounds(PICTURES)) > 3
    assert manifest["counts"]["in"] == {"images": PICTURES, "annotations": 2 * PICTURES + 1}
    lost = sum(entry["annotations"] for entry in manifest["rejections"].values())
    assert manifest["counts"]["out"]["regions"] + lost == 2 * PICTURES + 1
    lines = [json.loads(line) for line in (whole / "rejections.jsonl").read_text().splitlines()]
    assert len(lines) == sum(entry["count"] for entry in manifest["rejections"].values())
    folder = RecordFolder.open(whole)
    assert [record.id for record in folder] == [f"coco:{number}" for number in range(PICTURES)]
    assert [region.id for region in folder[7].regions] == ["1", str(PICTURES + 1)]


def test_two_processes_write_what_one_writes(source, whole):
    run(source, "two", processes=2)
    assert_same(source / "two", whole)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_killed_run_goes_on_without_a_lost_or_doubled_record(source, whole, processes):
    out = f"killed-{processes}"
    process = started(source, out, "--processes", processes)
    workers = children_of(process.pid)
    process.kill()
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in (source / f".{out}.partial" / "work").glob("chunk-*.json")}
    assert kept
    assert not (source / out).exists()
    wait_until(lambda: not any(is_running(worker) for worker in workers), "a reading process outlives the command", 30)
    going_on = started(source, out, "--processes", processes)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert going_on.wait() == 0
    assert_same(source / out, whole)
    assert not (source / f".{out}.partial").exists()


def test_a_shard_that_was_damaged_while_the_run_lay_still_is_read_again(source, whole):
    process = started(source, "damaged")
    process.kill()
    process.wait()
    shard = source / ".damaged.partial" / "records" / "records-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-100])
    run(source, "damaged")
    assert_same(source / "damaged", whole)


def test_another_command_does_not_take_over_what_an_interrupted_one_left(source, whole):
    process = started(source, "changed", "--include-crowd")
    process.kill()
    process.wait()
    run(source, "changed")
    assert_same(source / "changed", whole)


def test_a_reading_process_that_dies_is_named_and_nothing_is_lost(source, whole):
    process = started(source, "died", "--processes", "2")
    for child in children_of(process.pid):
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
            os.kill(child, signal.SIGKILL)
    said = process.communicate()[1].splitlines()[-1]
    assert process.returncode == 1
    assert "a reading process ended before its time" in said
    run(source, "died")
    assert_same(source / "died", whole)


@pytest.mark.parametrize("when", ["while staging", "while reading"])
def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_when_there_is_room(source, whole, when):
    out = when.replace(" ", "-")
    run(source, out, limit=1)
    if when == "while reading":
        process = started(source, out, "--overwrite")
        process.kill()
        process.wait()
    room = min(path.stat().st_size for path in whole.glob("*.arrow")) // 2
    full = subprocess.run(
        command(source, out, "--overwrite"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )
    assert full.returncode == 1
    assert full.stderr.splitlines()[-1].startswith("python -m data_pipelines prepare: error:"), full.stderr
    assert len(RecordFolder.open(source / out)) == 1
    run(source, out, overwrite=True)
    assert_same(source / out, whole)


@pytest.mark.parametrize("parts", [1, 2, 5, 9])
def test_shards_joined_are_the_whole(source, whole, tmp_path, parts):
    names = [f"part-{part}-of-{parts}" for part in range(1, parts + 1)]
    for part, name in enumerate(names, start=1):
        run(source, name, shard=(part, parts))
    merge_shards([source / name for name in reversed(names)], tmp_path / "merged")
    assert files_of(tmp_path / "merged") == files_of(whole)
    merged, expected = manifest_of(tmp_path / "merged"), manifest_of(whole)
    assert RecordFolder.open(tmp_path / "merged").image_root == RecordFolder.open(whole).image_root
    assert merged | {"image_root": ""} == expected | {"image_root": ""}


def test_what_is_no_complete_set_of_shards_is_named(source, tmp_path):
    for part in (1, 2):
        run(source, f"half-{part}", shard=(part, 2))
    run(source, "third", shard=(3, 3))
    run(source, "crowded", shard=(2, 2), include_crowd=True)
    run(source, "not-a-part", limit=1)
    half = source / "half-1"
    for others, message in (
        ([], "parts are missing: 2/2"),
        ([half], "both the part 1/2"),
        ([source / "third"], "differ in the number of parts"),
        ([source / "crowded"], "differ in the argument include_crowd"),
        ([source / "not-a-part"], "prepared without --shard"),
        ([source / "images"], "not a folder of records"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_shards([half, *others], tmp_path / "merged")
    shard = next((source / "half-2").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="differs from its checksum"):
        merge_shards([half, source / "half-2"], tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [1, 255, 256, 257, 1000])
def test_a_limit_is_kept_to_the_record_across_chunks(source, whole, limit):
    manifest = run(source, "limited", limit=limit, overwrite=True, processes=1 + limit % 2)
    records = list(RecordFolder.open(source / "limited"))
    assert records == list(RecordFolder.open(whole))[:limit]
    assert manifest["counts"]["in"]["images"] == limit
    lines = (source / "limited" / "rejections.jsonl").read_text().splitlines()
    assert len(lines) == sum(entry["count"] for entry in manifest["rejections"].values())


def test_a_sample_is_drawn_from_the_whole_and_by_any_number_of_processes(source):
    drawn = []
    for processes in (1, 2):
        run(source, "sample", sample=600, seed=5, processes=processes, overwrite=True)
        drawn.append([record.id for record in RecordFolder.open(source / "sample")])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 600
    numbers = [int(name.split(":")[1]) for name in drawn[0]]
    assert abs(sum(numbers) / 600 - PICTURES / 2) < PICTURES / 20


def test_chunks_cover_every_unit_once(monkeypatch):
    for units in (0, 1, 255, 256, 257, 16_384, 16_385, 10**6, 5 * 10**6):
        bounds = chunk_bounds(units)
        assert [place for first, last in bounds for place in (first, last)] == sorted(
            place for first, last in bounds for place in (first, last)
        )
        assert sum(last - first for first, last in bounds) == units
        assert all(last - first <= chunks.LARGEST_CHUNK for first, last in bounds)
        assert bounds == [] or (bounds[0][0], bounds[-1][1]) == (0, units)
