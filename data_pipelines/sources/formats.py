"""Which published format an annotation file is of, told from its content."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipelines.prompts.published import PARTIMAGENET_OBJECTS, PARTIMAGENET_PARTS

if TYPE_CHECKING:
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
OSPREY_CONVERSATIONS = "Osprey-724K conversations"
OSPREY_DESCRIPTIONS = "Osprey-724K detailed descriptions"
LLAVA = "LLaVA conversations"
FERRET_BENCH = "Ferret-Bench questions"
POPE = "POPE questions"
VCR = "VCR questions"
REGION_DESCRIPTIONS = "Visual Genome's region_descriptions.json"
IMAGE_DATA = "Visual Genome's image_data.json"

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
    OSPREY_CONVERSATIONS: "osprey-short-form, osprey-part-level, osprey-conversation, osprey-lvis-positive-negative",
    OSPREY_DESCRIPTIONS: "osprey-detailed-description",
    LLAVA: "llava",
    FERRET_BENCH: "ferret-bench",
    POPE: "pope",
    VCR: "vcr",
    REGION_DESCRIPTIONS: "visual-genome",
}
"""Which sources read a format that was recognised; the others are recognised only to be named."""

LISTS = frozenset(
    (OSPREY_CONVERSATIONS, OSPREY_DESCRIPTIONS, LLAVA, FERRET_BENCH, POPE, VCR, REGION_DESCRIPTIONS, IMAGE_DATA)
)
"""Formats that are a list of objects, or have one object a line."""

_SAMPLED = 1000


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
            keys = ", ".join(sorted(self.keys_of(""))[:8])
            return f"it holds a JSON {self.members.get('', 'dict')}" + (f" of objects with {keys}" if keys else "")
        return f"it holds an object with {', '.join(sorted(self.members)[:8])}"


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
            shape = "a list of objects" if self._expected[0] in LISTS else "an object with images and annotations"
            raise ValueError(f"{self._path} is not {self._expected[0]}: {self._outline}, where {shape} is expected")
        raise ValueError(f"{self._path} is not {self._expected[0]}: this looks like {named_with_source(found)}")


def named_with_source(found: str) -> str:
    """The format and what to do with a file of it, for the end of an error."""
    sources = SOURCE_OF_FORMAT.get(found)
    if sources is None:
        return f"{found}, which no source reads"
    return f"{found}, use " + " or ".join(f"`{source}`" for source in sources.split(", "))


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
    if _are(outline.names, "categories", _is_part_of_imagenet):
        return PARTIMAGENET
    return PASCAL_PART if _are(outline.names, "categories", _names_a_part) else COCO_INSTANCES


def _are(texts: Mapping[str, Sequence[str]], of: str, kind: Callable[[str], object]) -> bool:
    """Whether most of the texts of that list are of a kind."""
    found = texts.get(of, ())
    return sum(1 for text in found if kind(text)) * 2 > len(found)


def _is_of_cityscapes(file_name: str) -> bool:
    return file_name.endswith("_gtFine_panoptic.png")


def _is_part_of_imagenet(category: str) -> bool:
    words = category.split()
    return len(words) > 1 and words[0] in PARTIMAGENET_OBJECTS and words[1] in PARTIMAGENET_PARTS


def _names_a_part(category: str) -> bool:
    return ":" in category


_LIST_FORMATS: tuple[tuple[set[str], str], ...] = (
    ({"annotation", "conversations"}, OSPREY_CONVERSATIONS),
    ({"annotation", "description"}, OSPREY_DESCRIPTIONS),
    ({"annotation", "question_id", "text"}, FERRET_BENCH),
    ({"conversations"}, LLAVA),
    ({"question_id", "text", "label"}, POPE),
    ({"question_orig", "objects", "metadata_fn"}, VCR),
    ({"id", "regions"}, REGION_DESCRIPTIONS),
    ({"image_id", "url", "width", "height"}, IMAGE_DATA),
    ({"image_id", "category_id"}, "COCO results"),
)
"""Keys that the elements of a list have, and the format; the first that fits."""


def _recognise_list(keys: set[str]) -> str | None:
    return next((name for needed, name in _LIST_FORMATS if needed <= keys), None)
