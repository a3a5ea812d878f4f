"""What it takes to prepare a COCO file of a million annotations, and to open the result in training processes.

The file is drawn on the spot with polygons of 20 to 30 points; all its pictures are links to one. The floor is the
standard library's parser, which reads the same file in one piece and makes nothing of it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 480, 640
WORKERS = 4
"""Processes that open the prepared folder."""

MOST_LINKS = 10_000
"""To one file; file systems bound their number."""

_PARSE = "import json, sys; json.load(open(sys.argv[1], encoding='utf-8'))"
_OPEN = """
import sys, time
import pycocotools.mask, datasets, numpy
from data_pipelines.records import RecordFolder
def private():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024
before, start = private(), time.perf_counter()
folder = RecordFolder.open(sys.argv[1])
opened = time.perf_counter() - start
picks = numpy.random.default_rng(0).integers(0, len(folder), 2000)
start = time.perf_counter()
for index in picks:
    folder[int(index)]
# pages of mapped files are clean and shared; what is dirty is the process's own
print(opened, (time.perf_counter() - start) / len(picks), private() - before)
"""


@dataclass(frozen=True)
class Run:
    """A command that ended well: how long it took and what memory it needed.

    Attributes:
        seconds: Wall-clock time.
        peaks: Largest resident memory of the command and of each process that it started, in MiB, the largest first.
        output: What it printed.
    """

    seconds: float
    peaks: list[float]
    output: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--annotations", type=int, default=1_000_000, metavar="N", help="of the file (%(default)s)")
    parser.add_argument("--images", type=int, default=100_000, metavar="N", help="of the file (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="beside one (%(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times in seconds, memory in MiB, by name."""
    annotations, images = options.annotations, options.images
    with tempfile.TemporaryDirectory(prefix="benchmark-prepare-") as name:
        folder = Path(name)
        path = draw_source(folder, annotations, images)
        parse = watch([sys.executable, "-c", _PARSE, str(path)])
        arguments = ["coco", "--annotations", str(path), "--images", str(folder / "images")]
        prepare = [sys.executable, "-m", "data_pipelines", "prepare", *arguments]
        runs = {
            count: watch([*prepare, "--out", str(folder / f"records-{count}"), "--processes", str(count)])
            for count in sorted({1, options.processes})
        }
        opened = [
            [float(value) for value in watch([sys.executable, "-c", _OPEN, str(folder / "records-1")]).output.split()]
            for _ in range(WORKERS)
        ]
        return {
            "annotations": annotations,
            "images": images,
            "file_mib": path.stat().st_size / 2**20,
            "records_mib": sum(file.stat().st_size for file in (folder / "records-1").iterdir()) / 2**20,
            "parse": vars(parse) | {"output": None},
            "prepare": {str(count): vars(result) | {"output": None} for count, result in runs.items()},
            "open_seconds": max(values[0] for values in opened),
            "record_microseconds": 1e6 * max(values[1] for values in opened),
            "open_mib_a_worker": max(values[2] for values in opened),
        }


def table(result: Mapping[str, Any]) -> str:
    """The figures, for people."""
    floor = result["parse"]
    rows = [
        ("annotations, images", f"{result['annotations']:,}, {result['images']:,}"),
        ("annotation file, records", f"{result['file_mib']:.0f} MiB, {result['records_mib']:.0f} MiB"),
        ("floor: json.load alone", f"{floor['seconds']:.0f} s, peak {floor['peaks'][0]:.0f} MiB"),
    ]
    for count, run in result["prepare"].items():
        peaks = ", ".join(f"{peak:.0f}" for peak in run["peaks"])
        ratio = run["seconds"] / floor["seconds"]
        rows.append(
            (f"prepare, processes: {count}", f"{run['seconds']:.0f} s ({ratio:.1f} x floor), peaks {peaks} MiB")
        )
    rows += [
        ("opening the records", f"{result['open_seconds']:.2f} s, {result['open_mib_a_worker']:.0f} MiB a process"),
        ("one record, at random", f"{result['record_microseconds']:.0f} microseconds"),
    ]
    return "\n".join(f"{name:<26}{value}" for name, value in rows)


def draw_source(folder: Path, annotations: int, images: int) -> Path:
    """Write `instances.json` and its pictures below `folder`; annotations come in no order."""
    from PIL import Image

    rng = random.Random(0)
    pictures = folder / "images"
    pictures.mkdir()
    for number in range(images):
        first = pictures / _picture(number - number % MOST_LINKS)
        if number % MOST_LINKS == 0:
            Image.new("RGB", (WIDTH, HEIGHT)).save(first)
        else:
            os.link(first, pictures / _picture(number))
    path = folder / "instances.json"
    entries = (
        {"id": number, "file_name": _picture(number), "height": HEIGHT, "width": WIDTH} for number in range(images)
    )
    with path.open("w", encoding="utf-8") as file:
        file.write('{"info": {}, "images": [')
        file.writelines(_joined(entries))
        file.write('], "annotations": [')
        file.writelines(_joined(_annotation(number, images, rng) for number in range(annotations)))
        categories = [{"id": number, "name": f"category {number}"} for number in range(80)]
        file.write(f'], "categories": {json.dumps(categories)}}}')
    return path


def _picture(number: int) -> str:
    return f"{number:012d}.jpg"


def _joined(entries: Iterator[dict[str, Any]]) -> Iterator[str]:
    for index, entry in enumerate(entries):
        yield (", " if index else "") + json.dumps(entry)


def _annotation(number: int, images: int, rng: random.Random) -> dict[str, Any]:
    x, y = rng.uniform(0, WIDTH - 120), rng.uniform(0, HEIGHT - 120)
    polygon = [round(start + rng.uniform(0, 120), 2) for _ in range(rng.randint(20, 30)) for start in (x, y)]
    return {
        "id": number,
        "image_id": rng.randrange(images),
        "category_id": rng.randrange(80),
        "iscrowd": 0,
        "area": 1000.0,
        "bbox": [x, y, 120, 120],
        "segmentation": [polygon],
    }


def watch(command: list[str]) -> Run:
    """Run a command below the project's root, watching the memory of its processes.

    Raises:
        RuntimeError: with what it said, if it fails.
    """
    peaks: dict[int, float] = {}
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.005):
            for number in _family(process.pid):
                peak = _peak(number)
                if peak:
                    peaks[number] = max(peaks.get(number, 0.0), peak)

    watcher = threading.Thread(target=look)
    watcher.start()
    output, errors = process.communicate()
    seconds = time.perf_counter() - start
    ended.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[:5])} ... ended with {process.returncode}: {errors[-500:]}")
    return Run(seconds, sorted(peaks.values(), reverse=True), output)


def _family(number: int) -> list[int]:
    """A process and all that it has started."""
    try:
        children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
    except OSError:
        return [number]
    return [number, *(member for child in children for member in _family(int(child)))]


def _peak(number: int) -> float:
    """Largest resident memory of a process so far, in MiB; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{number}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return max((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), default=0.0)
