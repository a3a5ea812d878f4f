"""Records of every kind that one batch may mix: regions, whole pictures, text alone, with answers of unequal length."""

from pathlib import Path

from data_pipelines.records import RegionRecord, Turn
from data_pipelines.writing import RecordWriter

from .test_training_run import write_records

CAPTIONS = ("red and blue", "a picture of two halves, one of them red and the other one blue", "blue", "two colours")
TEXTS = (
    ("What is two and two?", "four"),
    ("Count to five.", "one, two, three, four, five"),
    ("Is red a colour?", "yes"),
)


def write_mixed_records(folder: Path) -> list[Path]:
    """Folders of regions (12 records), captions (8) and text alone (6)."""
    regions = write_records(folder)
    with RecordWriter(folder / "captions", source="captions", image_root=folder / "images") as writer:
        for index in range(8):
            turns = (Turn("user", ""), Turn("assistant", CAPTIONS[index % len(CAPTIONS)]))
            writer.add(RegionRecord(f"captions:{index}", "captions", f"{index}.png", 48, 96, (), turns))
    with RecordWriter(folder / "texts", source="llava665k", image_root=folder / "images") as writer:
        for index in range(6):
            question, answer = TEXTS[index % len(TEXTS)]
            turns = (Turn("user", question), Turn("assistant", answer))
            writer.add(RegionRecord(f"texts:{index}", "llava665k", "", 0, 0, (), turns))
    return [regions, folder / "captions", folder / "texts"]
