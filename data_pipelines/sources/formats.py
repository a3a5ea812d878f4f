"""Which published format an annotation file is of, told from its content."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines.sources.json_stream import Item

COCO_INSTANCES = "COCO instances"
COCO_CAPTIONS = "COCO captions"
REFCOCO_REEXPORT = "a RefCOCO re-export"

SOURCE_OF_FORMAT = {COCO_INSTANCES: "coco", COCO_CAPTIONS: "captions", REFCOCO_REEXPORT: "refcoco"}
"""Which source reads a format that was recognised; the others are recognised only to be named."""

_SAMPLED = 1000


@dataclass
class Outline:
    """What can be told of a JSON file without keeping it.

    Attributes:
        members: Members of the top-level object and the JSON type of each; only "" where there is no object at the top.
        keys: For each list, the keys that its first elements have.
        lengths: For each list, how many elements it has.
    """

    members: dict[str, str] = field(default_factory=dict)
    keys: dict[str, set[str]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)

    def see(self, item: Item) -> None:
        """Take in the next part of the file."""
        if not item.listed:
            self.members[item.key] = "list" if item.value == [] else type(item.value).__name__
            return
        self.members[item.key] = "list"
        seen = self.lengths.get(item.key, 0)
        self.lengths[item.key] = seen + 1
        if seen < _SAMPLED and isinstance(item.value, dict):
            self.keys.setdefault(item.key, set()).update(item.value)

    def has_list(self, name: str) -> bool:
        """Whether there is a list of that name."""
        return self.members.get(name) == "list"

    def keys_of(self, name: str) -> set[str]:
        """Every key that one of the first elements of that list has."""
        return self.keys.get(name, set())

    def __str__(self) -> str:
        if list(self.members) == [""] or not self.members:
            kind = self.members.get("", "dict")
            return f"it holds a JSON {kind}, where an object with images and annotations is expected"
        listed = ", ".join(sorted(self.members)[:8])
        return f"it holds an object with {listed}, where images, annotations and categories are expected"


class FormatCheck:
    """Watches a file go by and says at its end whether it was of the expected format."""

    def __init__(self, path: Path, expected: str) -> None:
        self._path = path
        self._expected = expected
        self._outline = Outline()

    def see(self, item: Item) -> None:
        """Take in the next part of the file."""
        self._outline.see(item)

    def finish(self) -> None:
        """Judge the whole file.

        Raises:
            ValueError: if it looks like another format, with the source that reads that.
        """
        found = recognise(self._outline)
        if found == self._expected:
            return
        if found is None:
            raise ValueError(f"{self._path} is not {self._expected}: {self._outline}")
        source = SOURCE_OF_FORMAT.get(found)
        remedy = f"use `{source}`" if source else "which no source reads"
        raise ValueError(f"{self._path} is not {self._expected}: this looks like {found}, {remedy}")


def recognise(outline: Outline) -> str | None:
    """The name of the format of a file with that outline, None if it is none that is known."""
    if outline.members.get("") == "list":
        return _recognise_list(outline.keys_of(""))
    if not outline.has_list("images") or not outline.has_list("annotations"):
        return None
    annotations, images = outline.keys_of("annotations"), outline.keys_of("images")
    if "segments_info" in annotations:
        return "COCO panoptic"
    if "caption" in images:
        return REFCOCO_REEXPORT
    if "caption" in annotations:
        return "a Visual Genome re-export" if "segmentation" in annotations else COCO_CAPTIONS
    if "question" in annotations:
        return "visual questions"
    if "neg_category_ids" in images or ("coco_url" in images and "file_name" not in images):
        return "LVIS"
    return COCO_INSTANCES if outline.has_list("categories") else None


def _recognise_list(keys: set[str]) -> str | None:
    if "conversations" in keys or "description" in keys:
        return "Osprey-724K" if "annotation" in keys else "LLaVA conversations"
    return "COCO results" if {"image_id", "category_id"} <= keys else None
