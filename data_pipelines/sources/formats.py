"""Which published format an annotation file is of, told from its content."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines.sources.json_stream import Item

COCO_INSTANCES = "COCO instances"
COCO_CAPTIONS = "COCO captions"
REFCOCO_REEXPORT = "a RefCOCO re-export"
LVIS = "LVIS"
PACO = "PACO"
PASCAL_PART = "Pascal-Part"
PARTIMAGENET = "PartImageNet"
VISUAL_GENOME_REEXPORT = "a Visual Genome re-export"
CAPTIONED_BOXES = "COCO boxes with captions"
COCO_TEXTS = "COCO annotations with texts"
COCO_PANOPTIC = "COCO panoptic"
CITYSCAPES_PANOPTIC = "Cityscapes panoptic"

SOURCE_OF_FORMAT = {
    COCO_INSTANCES: "coco",
    COCO_CAPTIONS: "captions",
    REFCOCO_REEXPORT: "refcoco",
    LVIS: "lvis",
    PACO: "paco",
    PASCAL_PART: "pascal-part",
    PARTIMAGENET: "partimagenet",
    VISUAL_GENOME_REEXPORT: "visual-genome",
    CAPTIONED_BOXES: "custom",
    COCO_TEXTS: "custom",
    COCO_PANOPTIC: "panoptic",
    CITYSCAPES_PANOPTIC: "cityscapes",
}
"""Which source reads a format that was recognised; the others are recognised only to be named."""

_SAMPLED = 1000
_PART_OF_PARTIMAGENET = re.compile(
    "(Quadruped|Biped|Fish|Bird|Snake|Reptile|Car|Bicycle|Boat|Aeroplane|Bottle) "
    "(Head|Body|Foot|Tail|Hand|Fin|Wing|Tier|Side Mirror|Seat|Sail|Engine|Mouth)"
)


@dataclass
class Outline:
    """What can be told of a JSON file without keeping it.

    Attributes:
        members: Members of the top-level object and the JSON type of each; only "" where there is no object at the top.
        keys: For each list, the keys that its first elements have.
        lengths: For each list, how many elements it has.
        names: For each list, the texts that its first elements have as `name`.
        file_names: The same of `file_name`.
    """

    members: dict[str, str] = field(default_factory=dict)
    keys: dict[str, set[str]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    file_names: dict[str, list[str]] = field(default_factory=dict)

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
            for seen_texts, key in ((self.names, "name"), (self.file_names, "file_name")):
                if isinstance(item.value.get(key), str):
                    seen_texts.setdefault(item.key, []).append(item.value[key])

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

    def __init__(self, path: Path, *expected: str) -> None:
        """Of several formats that are expected, the first is named in messages."""
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
        if found in self._expected:
            return
        if found is None:
            raise ValueError(f"{self._path} is not {self._expected[0]}: {self._outline}")
        source = SOURCE_OF_FORMAT.get(found)
        remedy = f"use `{source}`" if source else "which no source reads"
        raise ValueError(f"{self._path} is not {self._expected[0]}: this looks like {found}, {remedy}")


def recognise(outline: Outline) -> str | None:
    """The name of the format of a file with that outline, None if it is none that is known."""
    if outline.members.get("") == "list":
        return _recognise_list(outline.keys_of(""))
    if not outline.has_list("images") or not outline.has_list("annotations"):
        return None
    annotations, images = outline.keys_of("annotations"), outline.keys_of("images")
    if "segments_info" in annotations:
        return CITYSCAPES_PANOPTIC if _are(outline.file_names, "annotations", _is_of_cityscapes) else COCO_PANOPTIC
    if "caption" in images:
        return REFCOCO_REEXPORT
    if "obj_ann_id" in annotations:
        return PACO
    if "neg_category_ids" in images or ("coco_url" in images and "file_name" not in images):
        return LVIS
    if "caption" in annotations and "segmentation" in annotations:
        return VISUAL_GENOME_REEXPORT
    if "caption" in annotations:
        return CAPTIONED_BOXES if "bbox" in annotations else COCO_CAPTIONS
    if "question" in annotations:
        return "visual questions"
    if "text" in annotations:
        return COCO_TEXTS
    if not outline.has_list("categories"):
        return None
    if _are(outline.names, "categories", _PART_OF_PARTIMAGENET.fullmatch):
        return PARTIMAGENET
    return PASCAL_PART if _are(outline.names, "categories", _names_a_part) else COCO_INSTANCES


def _are(texts: Mapping[str, Sequence[str]], of: str, kind: Callable[[str], object]) -> bool:
    """Whether most of the texts of that list are of a kind."""
    found = texts.get(of, ())
    return sum(1 for text in found if kind(text)) * 2 > len(found)


def _is_of_cityscapes(file_name: str) -> bool:
    return file_name.endswith("_gtFine_panoptic.png")


def _names_a_part(category: str) -> bool:
    return ":" in category


def _recognise_list(keys: set[str]) -> str | None:
    if "conversations" in keys or "description" in keys:
        return "Osprey-724K" if "annotation" in keys else "LLaVA conversations"
    return "COCO results" if {"image_id", "category_id"} <= keys else None
