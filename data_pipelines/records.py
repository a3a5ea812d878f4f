"""Region records: what every training and evaluation source becomes, and the folders that keep them.

```
folder/
  manifest.json            where the records come from, what was left out and why, checksums
  records-00000.arrow      memory-mapped shards; masks as COCO's compressed RLE at source resolution
  rejections.jsonl         one line for everything that was left out: {"id", "reason", "detail"}
```

`data_pipelines.writing` writes such folders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from osprey_tp.outside import confined_path, first_line, is_unicode, of_record, one_line, parse_json, read_json
from osprey_tp.prompts import IMAGE_TOKEN, REGION_TOKEN

if TYPE_CHECKING:
    from datasets import Dataset, Features

MANIFEST_NAME = "manifest.json"
REJECTIONS_NAME = "rejections.jsonl"
FOLDER_FORMAT = "osprey_tp region records 2"

Purpose = Literal["training", "evaluation"]
"""What a folder of records is for: one for evaluation may hold questions without answers, and nobody trains on it."""

_ROWS_AT_A_TIME = 2048

REGION_REFERENCE = re.compile(r"<region(\d+)>")
"""How the texts of turns refer to regions: `<region1>` is the first region of the record."""
_MOST_DIGITS = 9


def references_beyond(text: str, regions: int) -> list[str]:
    """The references of a text to regions that a record of so many does not have, long ones shortened."""
    numbers = REGION_REFERENCE.findall(text)
    beyond = [number for number in numbers if len(number) > _MOST_DIGITS or not 1 <= int(number) <= regions]
    return [f"<region{number[:_MOST_DIGITS]}>" for number in beyond]


@dataclass(frozen=True)
class Region:
    """Part of a picture: its mask, the name of what it shows ("" if unknown), and its box.

    `segmentation` is COCO's compressed RLE `{"size": [height, width], "counts": str}` in source pixels; `box` is
    (x0, y0, x1, y1) in source pixels, the far ends exclusive, or None. `id` is that of the annotation in the source,
    "" where it has none.
    """

    segmentation: dict[str, Any]
    name: str = ""
    box: tuple[float, float, float, float] | None = None
    id: str = ""


@dataclass(frozen=True)
class Turn:
    """One utterance; the text refers to regions as `<region1>`, `<region2>`, ...

    A user's turn that says nothing of its own asks *the source's own question*, whose words the prompt style chooses:
    about a region if the text is its reference alone (`<region2>`), about the whole picture if the text is empty.
    """

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True)
class RegionRecord:
    """A picture, regions in it, and what was said about them.

    `image` is a path relative to the folder of pictures; `height` and `width` are the picture's size in pixels. A
    record of text alone has the image "" and no size. Turns alternate between user and assistant. Without turns, the
    source's own question is asked about every region, and the region's name is the answer. A record that only
    evaluation can use may end with a question. `metadata` is whatever else the source says that somebody needs later,
    in values that JSON can hold.
    """

    id: str
    source: str
    image: str
    height: int
    width: int
    regions: tuple[Region, ...] = ()
    turns: tuple[Turn, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_image(self) -> bool:
        """Whether there is a picture; a record without one is text alone."""
        return self.image != ""


@dataclass(frozen=True)
class Rejection:
    """Something of a source that did not become part of a record.

    `reason` is one of few constant phrases, so that equal ones can be counted; `detail` says what was found.
    `annotations` is the number of annotations that were lost by it.
    """

    id: str
    reason: str
    detail: str = ""
    annotations: int = 1


@dataclass(frozen=True)
class Problem:
    """What is wrong with a record, as a constant phrase and what was found, on one line and not long."""

    reason: str
    detail: str = ""

    def __post_init__(self) -> None:
        if self.detail:
            object.__setattr__(self, "detail", one_line(self.detail))


def record_problems(record: RegionRecord, purpose: Purpose = "training") -> list[Problem]:
    """Everything that would break `purpose` on this record and can be told without its picture or its masks."""
    problems = []
    if record.has_image and (record.height < 1 or record.width < 1):
        problems.append(Problem("picture without area", f"height {record.height}, width {record.width}"))
    if not record.has_image and record.regions:
        problems.append(Problem("regions without a picture", f"{len(record.regions)} regions"))
    for number, region in enumerate(record.regions, start=1):
        if list(region.segmentation["size"]) != [record.height, record.width]:
            found = f"region{number} is {region.segmentation['size']}, the record [{record.height}, {record.width}]"
            problems.append(Problem("mask of another size than the record", found))
        if not record.turns and not region.name.strip():
            problems.append(Problem("region without a name or an answer", f"region{number}"))
    if not record.regions and not record.turns:
        problems.append(Problem("nothing to learn: neither regions nor turns"))
    return problems + _text_problems(record) + _order_problems(record, purpose)


def _text_problems(record: RegionRecord) -> list[Problem]:
    problems = []
    spoken = (*(turn.text for turn in record.turns), *(region.name for region in record.regions))
    for text in (record.id, record.image, *spoken):
        if not is_unicode(text):
            problems.append(Problem("text that is not Unicode", repr(text[:80])))
    for text in spoken:
        found = [mark for mark in (IMAGE_TOKEN, REGION_TOKEN) if mark in text]
        if found:
            problems.append(Problem("text holds a placeholder of the prompt", f"{found[0]} in {text[:80]!r}"))
        beyond = references_beyond(text, len(record.regions))
        if beyond:
            problems.append(Problem("region reference out of range", f"{beyond[0]}, {len(record.regions)} regions"))
    for number, turn in enumerate(record.turns, start=1):
        if turn.role == "assistant" and not turn.text.strip():
            problems.append(Problem("empty answer", f"turn {number}"))
    return problems


def _order_problems(record: RegionRecord, purpose: Purpose) -> list[Problem]:
    roles = [turn.role for turn in record.turns]
    if purpose == "evaluation" and roles[-1:] == ["user"]:
        roles = roles[:-1]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        return [Problem("turns do not alternate between user and assistant", " ".join(roles))]
    return []


def arrow_features() -> Features:
    """The columns of a shard. The mask's size is that of the record and is not repeated."""
    from datasets import Features, List, Value

    text = Value("string")
    return Features(
        {
            "id": text,
            "source": text,
            "image": text,
            "height": Value("int32"),
            "width": Value("int32"),
            "regions": List({"counts": text, "name": text, "box": List(Value("float64")), "id": text}),
            "turns": List({"role": text, "text": text}),
            "metadata": text,
        }
    )


def record_to_row(record: RegionRecord) -> dict[str, Any]:
    """The record as a row of `arrow_features`."""
    return {
        "id": record.id,
        "source": record.source,
        "image": record.image,
        "height": record.height,
        "width": record.width,
        "regions": [
            {
                "counts": region.segmentation["counts"],
                "name": region.name,
                "box": None if region.box is None else list(region.box),
                "id": region.id,
            }
            for region in record.regions
        ],
        "turns": [{"role": turn.role, "text": turn.text} for turn in record.turns],
        "metadata": json.dumps(record.metadata, ensure_ascii=False) if record.metadata else "",
    }


def record_from_row(row: dict[str, Any]) -> RegionRecord:
    """The record that `record_to_row` wrote."""
    size = [row["height"], row["width"]]
    regions = tuple(
        Region(
            {"size": size, "counts": region["counts"]},
            region["name"],
            None if region["box"] is None else tuple(region["box"]),
            region["id"],
        )
        for region in row["regions"]
    )
    turns = tuple(Turn(turn["role"], turn["text"]) for turn in row["turns"])
    metadata = parse_json(row["metadata"], f"the metadata of record {row['id']}") if row["metadata"] else {}
    if not isinstance(metadata, dict):
        raise ValueError(f"the metadata of record {row['id']} is no JSON object")
    return RegionRecord(row["id"], row["source"], row["image"], row["height"], row["width"], regions, turns, metadata)


class RecordFolder:
    """A prepared folder as a sequence of `RegionRecord`, memory-mapped: opening it costs no memory per record.

    It can be pickled into worker processes, which map the same pages.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], image_root: Path) -> None:
        self.path = path
        self.manifest = manifest
        self.image_root = image_root

    @classmethod
    def open(cls, path: str | Path, image_root: str | Path | None = None) -> RecordFolder:
        """Open the folder at `path`; `image_root` replaces the folder of pictures that its manifest names.

        Raises:
            ValueError: if it is not a folder of records, or a shard is missing or holds another number of records
                than the manifest says.
        """
        path = Path(path)
        manifest = read_manifest(path)
        root = Path(image_root) if image_root is not None else path / manifest["image_root"]
        folder = cls(path, manifest, root.resolve())
        for shard in manifest["shards"]:
            if not (path / shard["name"]).is_file():
                raise ValueError(f"{path}: shard {one_line(shard['name'])} is missing; prepare the folder again")
        promised = manifest["counts"]["out"]["records"]
        if len(folder) != promised:
            raise ValueError(f"{path}: {len(folder)} records, the manifest says {promised}; prepare the folder again")
        return folder

    @cached_property
    def _table(self) -> Dataset:
        from datasets import concatenate_datasets

        try:
            return concatenate_datasets([_open_shard(self.path / shard["name"]) for shard in self.manifest["shards"]])
        except Exception as error:
            raise ValueError(f"{self.path}: a shard cannot be read ({first_line(error)}); prepare it again") from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_table"}

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> RegionRecord:
        """The record at this place.

        Raises:
            IndexError: if there are fewer.
            ValueError: if the shard is damaged there.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of a folder of {len(self)} records")
        try:
            self._table.data.fast_slice(index % len(self), 1).validate(full=True)
            return record_from_row(self._table[index % len(self)])
        except Exception as error:
            raise ValueError(
                f"{self.path}: record {index % len(self)} cannot be read ({first_line(error)}); a shard is damaged: "
                "copy the folder again, or prepare it again"
            ) from error

    def __iter__(self) -> Iterator[RegionRecord]:
        for first in range(0, len(self), _ROWS_AT_A_TIME):
            rows = self._table.select(range(first, min(first + _ROWS_AT_A_TIME, len(self))))
            try:
                rows.data.validate(full=True)
                records = [record_from_row(row) for row in rows]
            except Exception:
                records = [self[place] for place in range(first, first + len(rows))]  # names the one that is damaged
            yield from records

    @property
    def purpose(self) -> Purpose:
        """What the folder is for."""
        return "evaluation" if self.manifest.get("purpose") == "evaluation" else "training"

    def images(self) -> list[str]:
        """The pictures that records name, relative to `image_root`, each once."""
        import pyarrow.compute

        column = self._table.data.column("image")
        try:
            column.validate(full=True)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{self.path}: a shard is damaged ({first_line(error)}); prepare it again") from error
        return [name for name in pyarrow.compute.unique(column).to_pylist() if name]

    def image_path(self, record: RegionRecord) -> Path:
        """Where the record's picture is.

        Raises:
            ValueError: naming the record, if the path leaves `image_root`.
        """
        try:
            return confined_path(self.image_root, record.image)
        except ValueError as error:
            raise ValueError(f"{error} {of_record(record.id)}") from None


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the folder at `path`.

    Raises:
        ValueError: if there is none, or it is not one of this format.
    """
    try:
        manifest = read_json(path / MANIFEST_NAME)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{path} is not a folder of records: it has no {MANIFEST_NAME}; make one with "
            "`python -m data_pipelines prepare`"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path / MANIFEST_NAME} cannot be read: {first_line(error)}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FOLDER_FORMAT:
        raise ValueError(f"{path / MANIFEST_NAME} is not a manifest of the format {FOLDER_FORMAT!r}")
    try:
        names = [shard["name"] for shard in manifest["shards"]]
        outside = [name for name in names if Path(name).name != name or "\0" in name]
        _ = manifest["image_root"] + "", manifest["counts"]["out"]["records"] + 0
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path / MANIFEST_NAME} does not say which shards, pictures and records there are ({error!r}); prepare "
            "the folder again"
        ) from None
    if outside:
        raise ValueError(f"{path / MANIFEST_NAME} names a shard outside the folder: {one_line(repr(outside[0]))}")
    if len(set(names)) < len(names):
        raise ValueError(f"{path / MANIFEST_NAME} names a shard twice; prepare the folder again")
    return manifest


def _open_shard(path: Path) -> Dataset:
    """A shard, memory-mapped. Arrow trusts what its file says of itself: rows are checked when they are read."""
    from datasets import Dataset

    shard = Dataset.from_file(str(path))
    if shard.features != arrow_features():
        raise ValueError(f"the columns of {path.name} are not those of records")
    shard.data.validate()
    return shard
