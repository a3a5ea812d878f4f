"""Closed vocabularies: the classes that an answer is one of, each with its synonyms.

A file has one class a line, synonyms separated by commas; a number with a colon before them, as published files have
it (`0:road,railroad`), is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from eval.intervals import Array
from eval.profiles import PROFILES

_MERGED = ("-merged", "-other", "-stuff")
"""Ends of COCO's names of stuff, such as `building-other-merged`, which nobody says."""


@dataclass(frozen=True)
class Vocabulary:
    """Classes, and what else is known of them.

    Attributes:
        classes: the synonyms of each class, its name first.
        source: where they come from, for the report.
        things: for each class whether it is of things that can be counted; None where that is not known.
        raw_names: for each class the name that data give it, "" if none is known.
    """

    classes: tuple[tuple[str, ...], ...]
    source: str
    things: tuple[bool | None, ...] = ()
    raw_names: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.classes)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Every synonym of every class, class by class."""
        return tuple(text for synonyms in self.classes for text in synonyms)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(len(synonyms) for synonyms in self.classes[:-1])])

    def best_synonyms(self, scores: Array) -> Array:
        """(..., texts) scores of `texts` -> (..., classes), each class by its best synonym."""
        return np.asarray(np.maximum.reduceat(scores, self._starts, axis=-1), dtype=np.float64)

    @cached_property
    def _places(self) -> dict[str, int]:
        """Class of every name, normalised; a class's own name goes before another one's synonym."""
        places: dict[str, int] = {}
        for names in (self.raw_names, [synonyms[0] for synonyms in self.classes]):
            for place, name in enumerate(names):
                places.setdefault(_normal(name), place)
        for place, synonyms in enumerate(self.classes):
            for text in synonyms:
                places.setdefault(_normal(text), place)
        places.pop("", None)
        return places

    def place_of(self, name: str) -> int | None:
        """The class that a name of the data means, whatever its case and punctuation; None for none."""
        found = self._places.get(_normal(name))
        return self._places.get(_normal(spoken(name)[0])) if found is None else found

    def is_thing(self, place: int) -> bool | None:
        """Whether a class is of things; None where that is not known."""
        return self.things[place] if self.things else None

    @property
    def checksum(self) -> str:
        """Of all synonyms in their order."""
        return hashlib.sha256(json.dumps(self.classes).encode("utf-8")).hexdigest()


def _normal(name: str) -> str:
    return PROFILES["clean"].category_reference(name)


def spoken(name: str) -> tuple[str, ...]:
    """How the name of a category is said: `_` and `:` become spaces, as evaluation reads them, a comma separates
    synonyms, and COCO's names of stuff lose their ends; their published form stays as a synonym.

    Example:
        >>> spoken("building-other-merged"), spoken("bow_(weapon)"), spoken("car:wheel")
        (('building', 'building-other-merged'), ('bow (weapon)',), ('car wheel',))
    """
    synonyms = []
    for part in name.split(","):
        text = " ".join(part.replace("_", " ").replace(":", " ").split())
        plain = text
        while plain.endswith(_MERGED):
            plain = plain.rsplit("-", 1)[0]
        synonyms += [plain.replace("-", " "), text] if plain != text else [text]
    return tuple(dict.fromkeys(text for text in synonyms if text))


def read_vocabulary(path: Path) -> Vocabulary:
    """The classes of a file.

    Raises:
        ValueError: it holds no class, a line has no name, or two classes have the same name.
    """
    classes = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        before, colon, after = line.partition(":")
        listed = after if colon and before.strip().isdigit() else line
        synonyms = tuple(dict.fromkeys(text.strip() for text in listed.split(",") if text.strip()))
        if not synonyms:
            raise ValueError(f"{path}, line {number} names no class: {line!r:.60}")
        classes.append(synonyms)
    return _checked(Vocabulary(tuple(classes), path.name), str(path))


def vocabulary_of_names(names: Iterable[str], source: str) -> Vocabulary:
    """The classes that regions are named after, in the order of the alphabet."""
    raw = tuple(sorted({name.strip() for name in names if name.strip()}))
    merged: dict[str, str] = {}
    for name in raw:
        merged.setdefault(_normal(spoken(name)[0]), name)
    kept = tuple(merged.values())
    return _checked(Vocabulary(tuple(spoken(name) for name in kept), source, raw_names=kept), source)


def vocabulary_of_categories(categories: Sequence[Any], source: str) -> Vocabulary:
    """The classes of a data folder's manifest, `{"id", "name", "isthing"}` each, in their order."""
    named = [entry for entry in categories if isinstance(entry, dict) and str(entry.get("name", "")).strip()]
    raw = tuple(str(entry["name"]).strip() for entry in named)
    things = tuple(None if entry.get("isthing") is None else bool(entry["isthing"]) for entry in named)
    return _checked(Vocabulary(tuple(spoken(name) for name in raw), source, things, raw), source)


def _checked(vocabulary: Vocabulary, place: str) -> Vocabulary:
    if len(vocabulary) < 2:
        raise ValueError(f"{place} names {len(vocabulary)} classes; at least 2 are needed to choose from")
    seen: dict[str, int] = {}
    for number, synonyms in enumerate(vocabulary.classes):
        first = seen.setdefault(_normal(synonyms[0]), number)
        if first != number:
            raise ValueError(f"{place} names the class {synonyms[0]!r} twice; keep one")
    return vocabulary
