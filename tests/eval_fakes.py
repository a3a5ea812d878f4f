"""Stand-ins for tests of the evaluation: a small data folder, and a describer that answers by looking at the masks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from eval.metrics import Answers
from eval.predictions import Prediction
from eval.questions import Question

HEIGHT, WIDTH = 48, 64
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 230), "yellow": (240, 220, 60)}


@dataclass(frozen=True)
class Region:
    segmentation: dict[str, Any]
    name: str = ""


@dataclass(frozen=True)
class Turn:
    role: str
    text: str


@dataclass(frozen=True)
class Record:
    id: str
    image: str
    height: int
    width: int
    regions: tuple[Region, ...]
    turns: tuple[Turn, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Records:
    root: Path
    records: list[Record]

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def image_path(self, record: Record) -> Path:
        return self.root / record.image


def square(y: int, x: int, side: int = 12) -> dict[str, Any]:
    """Compressed RLE of a square."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + side, x : x + side] = 1
    rle = mask_utils.encode(mask)
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def make_data(folder: Path, names: Sequence[Sequence[str]], answers: Sequence[Sequence[str]] | None = None) -> Records:
    """A data folder with one picture for each list of region names; `answers` become descriptions of the regions."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"source": "fake"}))
    records = []
    for number, picture_names in enumerate(names):
        pixels = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
        regions = []
        for place, name in enumerate(picture_names):
            rle = square(4 + 14 * (place // 4), 2 + 15 * (place % 4))
            colour = next((COLOURS[word] for word in name.split() if word in COLOURS), (255, 255, 255))
            pixels[mask_utils.decode(rle).astype(bool)] = colour
            regions.append(Region(rle, name))
        Image.fromarray(pixels).save(folder / f"{number}.png")
        turns: tuple[Turn, ...] = ()
        for place, text in enumerate(answers[number] if answers else ()):
            turns += (Turn("user", f"<region{place + 1}>"), Turn("assistant", text))
        records.append(Record(f"fake:{number}", f"{number}.png", HEIGHT, WIDTH, tuple(regions), turns))
    return Records(folder, records)


def answers_to(
    texts: Sequence[str], references: Sequence[Sequence[str]], images: Sequence[str] | None = None
) -> Answers:
    """Answers about one region each, in pictures of their own by default."""
    pictures = images or [f"{number}.png" for number in range(len(texts))]
    questions = [
        Question(
            f"fake:{number}#1", image, Path(image), 8, 8, "<mask>?", ({"size": [8, 8], "counts": ""},), tuple(group)
        )
        for number, (image, group) in enumerate(zip(pictures, references, strict=True))
    ]
    given = [Prediction(question.id, text) for question, text in zip(questions, texts, strict=True)]
    return Answers(questions, given, [float("nan")] * len(texts))


@dataclass
class OpensMany:
    """What a describer with `open` needs besides, for sessions with `ask_groups`; remembers the calls.

    Attributes:
        size: bytes of a picture.
        together: how many pictures each call opened.
        calls: how many questions each call asked.
    """

    size: int = field(default=0, kw_only=True)
    together: list[int] = field(default_factory=list, kw_only=True)
    calls: list[int] = field(default_factory=list, kw_only=True)

    def open_many(self, images: Sequence[Any], overview: str = "") -> list[Any]:
        self.together.append(len(images))
        return [self.open(image, overview) for image in images]

    def ask_many(self, questions: Sequence[Any], **options: Any) -> list[str]:
        self.calls.append(len(questions))
        answers = []
        for _, group in groupby(questions, key=lambda question: id(question.session)):
            own = list(group)
            regions, texts = [question.regions for question in own], [question.text for question in own]
            answers += own[0].session.ask_groups(regions, texts, **options)
        return answers

    def bytes_of(self, height: int, width: int) -> int:
        return self.size


@dataclass
class FakeSession:
    describer: FakeDescriber
    path: Path
    height: int
    width: int

    def ask_groups(
        self, groups: Sequence[Sequence[Any]], questions: Sequence[str], *, batch_size: int, **options: Any
    ) -> list[str]:
        self.describer.asked.append((self.path.name, len(groups), questions[0], options))
        return [self.describer.answer(self.path.name, regions[0]["counts"]) for regions in groups]

    def score(self, texts: Sequence[str], regions: Sequence[Any], question: str, **options: Any) -> np.ndarray:
        """0 for the text that it would answer, -1 for others; a region that it does not know has no such text."""
        answers = [
            self.describer.answer(self.path.name, region["counts"]) if "counts" in region else "" for region in regions
        ]
        return np.array([[0.0 if text == answer else -1.0 for text in texts] for answer in answers])


@dataclass
class FakeDescriber(OpensMany):
    """Answers by `answer(picture's name, RLE counts)`; remembers what was opened and asked."""

    answer: Callable[[str, str], str]
    opened: list[str] = field(default_factory=list)
    asked: list[tuple[str, int, str, dict[str, Any]]] = field(default_factory=list)

    def open(self, image: Path, overview: str = "") -> FakeSession:
        self.opened.append(image.name)
        width, height = Image.open(image).size
        return FakeSession(self, image, height, width)


def knowing(records: Records) -> FakeDescriber:
    """A describer that names every region right, whichever question it was shown for."""
    names = {
        (record.image, region.segmentation["counts"]): region.name for record in records for region in record.regions
    }
    return FakeDescriber(lambda image, counts: names[image, counts])


def prepare_synthetic(root: Path) -> Path:
    """`synthetic` and `refcoco`, records of two synthetic scenes, and `model`, a tiny random one, below `root`."""
    from data_pipelines.prepare import prepare
    from data_pipelines.synthetic.writer import write_scenes

    from .tiny_models import save_tiny_model

    write_scenes(root / "scenes", {"test": 2}, progress=False)
    for source, file in (("synthetic", "instances_test.json"), ("refcoco", "refs_test.json")):
        annotations = root / "scenes" / "annotations" / file
        prepare(source, annotations, root / "scenes" / "images" / "test", root / source, progress=False)
    save_tiny_model(root / "model")
    return root
