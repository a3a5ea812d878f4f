"""Which published format an annotation file is of, told from its content."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_pipelines.sources.json_stream import Item

COCO_INSTANCES = "COCO instances"
COCO_CAPTIONS = "COCO captions"
REFCOCO_REEXPORT = "a RefCOCO re-export"
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
            keys = ", ".join(sorted(self.keys_of(""))[:8])
            return f"it holds a JSON {self.members.get('', 'dict')}" + (f" of objects with {keys}" if keys else "")
        return f"it holds an object with {', '.join(sorted(self.members)[:8])}"


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
            shape = "a list of objects" if self._expected in LISTS else "an object with images and annotations"
            raise ValueError(f"{self._path} is not {self._expected}: {self._outline}, where {shape} is expected")
        raise ValueError(f"{self._path} is not {self._expected}: this looks like {named_with_source(found)}")


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
