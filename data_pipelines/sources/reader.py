"""What every reader of a source is.

```
annotation files ─► stage, once: units on disk (data_pipelines.staging)
unit ─► read, in any worker process and any order ─► records and rejections
```
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from data_pipelines.records import RegionRecord, Rejection
from data_pipelines.staging import Key, StagingWriter, Unit
from osprey_tp.images import MAX_PIXELS, picture_size
from osprey_tp.outside import confined_path

_COCO_PREFIX = re.compile(r"COCO_(?:train|val|test)20\d\d_(?=\d{12}\.)")
_LARGEST_INTEGER_ID = 2**63 - 1
_SHOWN_NAME = 200


@dataclass(frozen=True)
class SourceOptions:
    """What a reader is told on the command line.

    Attributes:
        annotations: The annotation file, or the folder of annotation files.
        images: The folder that the paths of pictures are relative to.
        include_crowd: Keep regions that stand for a crowd of things.
        split: The part of a source that holds several parts in one file; None for all of it.
        inputs: Further files or folders by the names that the reader gives them in `extra_inputs`, where they are not
            at their usual places.
        segmenter: `NAME[:CHECKPOINT]` of a segmenter that makes masks from boxes; None keeps the boxes.
    """

    annotations: Path
    images: Path
    include_crowd: bool = False
    split: str | None = None
    inputs: Mapping[str, Path] = field(default_factory=dict)
    segmenter: str | None = None


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
    """Reads the annotation files of a source.

    Attributes:
        name: The source's name, the first part of record ids.
        options: What it was told.
        context: What `stage` kept for all units; set before `read` is called.
        splits: Names that `options.split` may have, none where a file holds one part only.
        extra_inputs: Names of `options.inputs` that the reader knows, and what each is.
        makes_masks: Whether `options.segmenter` has something to do.
    """

    splits: ClassVar[tuple[str, ...]] = ()
    extra_inputs: ClassVar[Mapping[str, str]] = {}
    makes_masks: ClassVar[bool] = False

    def __init__(self, name: str, options: SourceOptions) -> None:
        self.name = name
        self.options = options
        self.context: Mapping[str, Any] = {}
        if not options.images.is_dir():
            raise ValueError(f"image folder {options.images} does not exist")
        if options.split is not None and options.split not in self.splits:
            remedy = f"choose from {', '.join(self.splits)}" if self.splits else "it has one split a file"
            raise ValueError(f"source {name} has no split {options.split!r}; {remedy}")
        unknown = sorted(set(options.inputs) - set(self.extra_inputs))
        if unknown:
            known = ", ".join(self.extra_inputs) or "none"
            raise ValueError(f"source {name} takes no input named {', '.join(unknown)}; it takes: {known}")
        if options.segmenter is not None and not self.makes_masks:
            raise ValueError(f"source {name} has masks of its own; leave --segmenter out")

    def input_files(self) -> list[Path]:
        """The annotation files that are read, for the manifest."""
        return [self.options.annotations]

    def extra_input(self, name: str, usual: Path) -> Path:
        """Where the input of that name is: as told, else at its usual place.

        Raises:
            ValueError: saying how to name it, if there is nothing.
        """
        path = self.options.inputs.get(name, usual)
        if not path.exists():
            raise ValueError(
                f"{path} does not exist; source {self.name} needs {self.extra_inputs[name]}: "
                f"name it with --input {name}=PATH"
            )
        return path

    @abstractmethod
    def stage(self, staging: StagingWriter) -> None:
        """Stream the annotation files into units; called once.

        Raises:
            ValueError: in one line, if a file is missing or of another format.
        """

    @abstractmethod
    def read(self, unit: Unit) -> Iterator[RegionRecord | Rejection]:
        """The records of one unit, and a rejection for everything of it that is in no record.

        A function of the unit and `context` alone: it is called in any process and in any order.
        """

    def annotation_count(self, unit: Unit) -> int:
        """How many annotations of the source the unit holds."""
        return len(unit.annotations)

    def _picture(self, entry: Mapping[str, Any]) -> Picture:
        """The picture that an entry with `file_name`, `height` and `width` describes.

        Raises:
            Unusable: if it has no size or too large a one, no file name, or no file inside the image folder.
        """
        height, width = _side(entry, "height"), _side(entry, "width")
        if height * width > MAX_PIXELS:
            raise Unusable(
                "picture too large", f"{height} x {width} (height x width), the limit is {MAX_PIXELS} pixels"
            )
        names = self._picture_names(entry)
        if not names:
            raise Unusable("picture without a file name", repr(entry.get("file_name")))
        return Picture(find_picture(self.options.images, *names), height, width)

    def _picture_names(self, entry: Mapping[str, Any]) -> Sequence[str]:
        """Where the entry's picture may be below the image folder, the likeliest first; empty if it does not say."""
        name = entry.get("file_name")
        return [name] if isinstance(name, str) else []


def _side(entry: Mapping[str, Any], name: str) -> int:
    value = entry.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise Unusable("picture without a size", f"{name} {value!r}")
    return value


def find_picture(root: Path, *names: str) -> str:
    """Path relative to `root` of the first of these names that a picture has.

    Each name may be that of a file without COCO's `COCO_train2014_` in front.

    Raises:
        Unusable: if there is no such file, or the path leaves the root.
    """
    for candidate in (form for name in names for form in (name, _COCO_PREFIX.sub("", name))):
        try:
            if confined_path(root, candidate).is_file():
                return candidate
        except ValueError as error:
            raise Unusable("image path leaves the image folder", str(error)) from None
        except OSError:
            continue
    shown = (name if name.isprintable() else repr(name) for name in dict.fromkeys(names))
    raise Unusable("picture not found", " or ".join(shown)[:_SHOWN_NAME])


def measured_picture(root: Path, name: Any) -> Picture:
    """The picture of that name, where the annotation file does not say its size: its header does.

    Raises:
        Unusable: as `find_picture`, or if the file is no picture.
    """
    if not isinstance(name, str):
        raise Unusable("picture without a file name", repr(name)[:_SHOWN_NAME])
    path = find_picture(root, name)
    try:
        height, width = picture_size(confined_path(root, path))
    except ValueError as error:
        raise Unusable("picture cannot be read", str(error)) from None
    return Picture(path, height, width)


def as_key(value: Any) -> Key | None:
    """The value if it can be an id of an annotation file, a whole number or a text; None otherwise."""
    if isinstance(value, str) and value.isprintable():
        return value
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return value if is_number and abs(value) <= _LARGEST_INTEGER_ID else None
