"""What every reader of a source is, and what the readers of COCO-like files share."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from data_pipelines.records import RegionRecord, Rejection, confined_path

T = TypeVar("T")

_COCO_PREFIX = re.compile(r"COCO_(?:train|val|test)20\d\d_(?=\d{12}\.)")


@dataclass(frozen=True)
class SourceOptions:
    """What a reader is told on the command line.

    Attributes:
        annotations: The annotation file.
        images: The folder that the paths of pictures are relative to.
        include_crowd: Keep regions that stand for a crowd of things.
        seed: Read the pictures in an order drawn with this seed; None for the file's order.
    """

    annotations: Path
    images: Path
    include_crowd: bool = False
    seed: int | None = None


class Unusable(Exception):
    """Something of a source cannot be used; `reason` and `detail` are those of a `Rejection`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Picture:
    """A picture that exists: its path relative to the image folder, and its size in pixels as the file states it."""

    path: str
    height: int
    width: int


class SourceReader(ABC):
    """Reads one annotation file of a source.

    Attributes:
        name: The source's name, the first part of record ids.
        counts_in: How many `images` and `annotations` have been read so far.
        total: How many pictures there are to read.
    """

    def __init__(self, name: str, options: SourceOptions) -> None:
        if not options.images.is_dir():
            raise ValueError(f"image folder {options.images} does not exist")
        self.name = name
        self.options = options
        self.counts_in: Counter[str] = Counter(images=0, annotations=0)
        self.total = 0

    @abstractmethod
    def read(self) -> Iterator[RegionRecord | Rejection]:
        """Every record, and a rejection for everything that is in no record.

        Each annotation read is either in a record or counted by one rejection.
        """

    def _ordered(self, entries: list[T]) -> list[T]:
        if self.options.seed is None:
            return entries
        return random.Random(self.options.seed).sample(entries, len(entries))

    def _picture(self, entry: Mapping[str, Any]) -> Picture:
        """The picture that an entry of `images` describes.

        Raises:
            Unusable: if it has no size, no file name, or no file inside the image folder.
        """
        height, width = _side(entry, "height"), _side(entry, "width")
        name = entry.get("file_name")
        if not isinstance(name, str):
            raise Unusable("picture without a file name", repr(name))
        return Picture(find_picture(self.options.images, name), height, width)


def _side(entry: Mapping[str, Any], name: str) -> int:
    value = entry.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise Unusable("picture without a size", f"{name} {value!r}")
    return value


def find_picture(root: Path, name: str) -> str:
    """Path relative to `root` of the picture of that name, with or without COCO's `COCO_train2014_` in front.

    Raises:
        Unusable: if there is no such file, or the path leaves the root.
    """
    for candidate in (name, _COCO_PREFIX.sub("", name)):
        try:
            path = confined_path(root, candidate)
        except ValueError as error:
            raise Unusable("image path leaves the image folder", str(error)) from None
        if path.is_file():
            return candidate
    raise Unusable("picture not found", name)


class CocoLikeReader(SourceReader):
    """Reads a file with `images` and `annotations` that point to them.

    Attributes:
        format: The format that the file must have (`data_pipelines.sources.formats`).
    """

    format: str

    def __init__(self, name: str, options: SourceOptions) -> None:
        from data_pipelines.sources.formats import load_annotations

        super().__init__(name, options)
        self._content = load_annotations(options.annotations, self.format)
        self.total = len(self._content["images"])

    def read(self) -> Iterator[RegionRecord | Rejection]:
        images: dict[Any, Mapping[str, Any]] = {}
        for entry in self._content["images"]:
            if not isinstance(entry, dict) or not is_id(entry.get("id")):
                yield Rejection(f"{self.name}:?", "image entry without an id", str(entry)[:80], annotations=0)
            elif entry["id"] in images:
                yield Rejection(f"{self.name}:{entry['id']}", "image id stands twice", annotations=0)
            else:
                images[entry["id"]] = entry
        annotations: dict[Any, list[Mapping[str, Any]]] = {image_id: [] for image_id in images}
        yield from self._sort_by_picture(annotations)
        for image_id in self._ordered(list(images)):
            self.counts_in["images"] += 1
            self.counts_in["annotations"] += len(annotations[image_id])
            record_id, entry = f"{self.name}:{image_id}", images[image_id]
            try:
                picture = self._picture(entry)
            except Unusable as problem:
                lost = len(annotations[image_id])
                yield Rejection(record_id, problem.reason, problem.detail, annotations=lost)
                continue
            yield from self._read_picture(record_id, picture, entry, annotations[image_id])

    @abstractmethod
    def _read_picture(
        self, record_id: str, picture: Picture, entry: Mapping[str, Any], annotations: list[Mapping[str, Any]]
    ) -> Iterator[RegionRecord | Rejection]:
        """The records of one picture, and a rejection for each of its annotations that is in none."""

    def _sort_by_picture(self, annotations: dict[Any, list[Mapping[str, Any]]]) -> Iterator[Rejection]:
        """Puts each annotation to its picture's; rejects those that cannot be told apart or have no picture."""
        seen = set()
        for annotation in self._content["annotations"]:
            own = annotation.get("id") if isinstance(annotation, dict) else None
            image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
            if not is_id(own):
                problem = Rejection(f"{self.name}:?", "annotation without an id", str(annotation)[:80])
            elif own in seen:
                problem = Rejection(f"{self.name}:{image_id}#{own}", "annotation id stands twice")
            elif not is_id(image_id) or image_id not in annotations:
                problem = Rejection(f"{self.name}:{image_id}#{own}", "annotation of an unknown picture")
            else:
                seen.add(own)
                annotations[image_id].append(annotation)
                continue
            self.counts_in["annotations"] += 1
            yield problem


def is_id(value: Any) -> bool:
    """Whether a value can be an id of an annotation file: a whole number or a text."""
    return isinstance(value, (int, str)) and not isinstance(value, bool)
