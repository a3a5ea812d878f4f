"""Folders of records to generate from, made on the spot."""

from pathlib import Path

from data_pipelines.records import Region, RegionRecord, Turn
from data_pipelines.writing import RecordWriter

from .annotation_files import HEIGHT, WIDTH, box_mask, compressed


def region(name: str = "dog", place: int = 0, **more) -> Region:
    x0 = 2 * place
    box = (float(x0), 5.0, float(x0 + 10), 15.0)
    return Region(compressed(box_mask(x0, 5, x0 + 10, 15)), name, **{"box": box, "id": f"a{place}", **more})


def record(number: int, *names: str, source: str = "coco", image: str = "", turns=(), **metadata) -> RegionRecord:
    regions = tuple(region(name, place) for place, name in enumerate(names))
    image = image or f"{number:012d}.jpg"
    said = tuple(Turn("user" if place % 2 == 0 else "assistant", text) for place, text in enumerate(turns))
    return RegionRecord(f"{source}:{number}", source, image, HEIGHT, WIDTH, regions, said, metadata)


def write_folder(path: Path, *records: RegionRecord, purpose: str = "training") -> Path:
    with RecordWriter(path, source=records[0].source, image_root=path.parent / "images", purpose=purpose) as writer:
        for one in records:
            writer.add(one)
    return path
