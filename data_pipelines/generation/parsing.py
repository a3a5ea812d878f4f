"""Strict reading of what the language model wrote.

A reply is one JSON object of exactly the agreed shape. What is wrong with a single item costs that item where items
stand alone, and the whole reply where they build on each other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines.records import REGION_REFERENCE, Turn, references_beyond
from osprey_tp.outside import is_unicode
from osprey_tp.prompts import IMAGE_TOKEN, REGION_TOKEN

_NUMBER = r"-?\d+(?:\.\d+)?"
_COORDINATES = re.compile(
    rf"[\[(]\s*{_NUMBER}\s*,\s*{_NUMBER}"  # [12, 30
    rf"|\b{_NUMBER}\s*,\s+{_NUMBER}\s*,\s+{_NUMBER}\s*,\s+{_NUMBER}\b"  # 12, 30, 200, 400
    r"|\bbounding box(?:es)?\b|\bcoordinates?\b|\bpixels?\b",
    re.IGNORECASE,
)
_OTHER_REFERENCE = re.compile(r"\bregions?\s*#?\d|<\s*/?\s*region|region\s*>", re.IGNORECASE)
_MATERIAL = re.compile(
    r"\b(?:according to|based on|mentioned in|described in|as per) (?:the |its )?"
    r"(?:captions?|annotations?|labels?|list)\b",
    re.IGNORECASE,
)
_FENCE = re.compile(r"\s*```(?:json)?\s*\n(?P<inside>.*)\n\s*```\s*", re.DOTALL)


class Unfit(ValueError):
    """Why a reply, or an item of it, is not used; `reason` is one of few constant phrases."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Reading:
    """What a reply gave: question and answer in turn, and what is wrong with each item that was left out."""

    turns: tuple[Turn, ...]
    unfit: tuple[Unfit, ...] = ()


def read_descriptions(text: str, regions: int) -> Reading:
    """`{"descriptions": [{"region": "<region1>", "description": "..."}, ...]}`: one for every region.

    Raises:
        Unfit: if the reply does not have that shape.
    """
    described: dict[int, str] = {}
    unfit = []
    for item in _items(text, "descriptions", ("region", "description"), most=None):
        try:
            number = _described_region(item["region"], regions)
            if number in described:
                raise Unfit("region described twice", f"<region{number}>")
            description = _checked(item["description"], 0)
        except Unfit as error:
            unfit.append(error)
        else:
            described[number] = description
    missing = regions - len(described) - len(unfit)
    unfit += [Unfit("region not described", f"{missing} of {regions} regions")] * (missing > 0)
    return Reading(_turns([(f"<region{number}>", described[number]) for number in sorted(described)]), tuple(unfit))


def read_conversation(text: str, regions: int, least: int, most: int) -> Reading:
    """`{"turns": [{"question": "...", "answer": "..."}, ...]}` of which at least one speaks of a region.

    Raises:
        Unfit: if the reply does not have that shape, or any of its texts is unfit.
    """
    items = _items(text, "turns", ("question", "answer"), most=most)
    if len(items) < least:
        raise Unfit("wrong number of turns", f"{len(items)}, expected {least} to {most}")
    pairs = [(_checked(item["question"], regions), _checked(item["answer"], regions)) for item in items]
    if not any(REGION_REFERENCE.search(question + answer) for question, answer in pairs):
        raise Unfit("no region is spoken of")
    return Reading(_turns(pairs))


def read_short_answers(text: str, regions: int, most: int, most_words: int) -> Reading:
    """`{"questions": [{"question": "... <region1> ...", "answer": "a word or a phrase"}, ...]}`.

    Raises:
        Unfit: if the reply does not have that shape.
    """
    pairs: dict[str, str] = {}
    unfit = []
    for item in _items(text, "questions", ("question", "answer"), most=most):
        try:
            question, answer = _checked(item["question"], regions), _checked(item["answer"], regions)
            if not REGION_REFERENCE.search(question):
                raise Unfit("question about no region", question[:80])
            if len(answer.split()) > most_words:
                raise Unfit("answer longer than a phrase", answer[:80])
            if question in pairs:
                raise Unfit("question asked twice", question[:80])
        except Unfit as error:
            unfit.append(error)
        else:
            pairs[question] = answer
    return Reading(_turns(list(pairs.items())), tuple(unfit))


def _items(text: str, name: str, keys: Sequence[str], most: int | None) -> list[dict[str, Any]]:
    """The list `name`, which is all that the reply holds, of objects with exactly these keys."""
    reply = _decoded(text)
    if not isinstance(reply, dict) or set(reply) != {name}:
        found = sorted(reply) if isinstance(reply, dict) else type(reply).__name__
        raise Unfit("reply of another shape", f"{found}, expected {name} alone")
    items = reply[name]
    if not isinstance(items, list) or not items:
        raise Unfit("reply of another shape", f"{name} is not a list of items")
    if most is not None and len(items) > most:
        raise Unfit(f"wrong number of {name}", f"{len(items)}, at most {most}")
    for item in items:
        if not isinstance(item, dict) or set(item) != set(keys):
            found = sorted(item) if isinstance(item, dict) else type(item).__name__
            raise Unfit("item of another shape", f"{found}, expected {', '.join(keys)}")
        if not all(isinstance(value, str) for value in item.values()):
            raise Unfit("item of another shape", "a value is not a text")
    return items


def _decoded(text: str) -> Any:
    """The JSON value that the reply is; models that do not know better may put a code fence around it."""
    if not text.strip():
        raise Unfit("empty reply")
    fenced = _FENCE.fullmatch(text)
    try:
        return json.loads(fenced["inside"] if fenced else text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise Unfit("reply is not JSON", f"{error}: {text[:80]!r}") from None


def _without_repetition(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _described_region(reference: str, regions: int) -> int:
    match = REGION_REFERENCE.fullmatch(reference.strip())
    if match is None:
        raise Unfit("region not written as <regionN>", reference[:80])
    _require_range(reference, regions)
    return int(match[1])


def _require_range(text: str, regions: int) -> None:
    for reference in references_beyond(text, regions):
        raise Unfit("region reference out of range", f"{reference}, {regions} regions")


def _checked(text: str, regions: int) -> str:
    """A text without needless space that refers to the regions 1 to `regions` in the right way, to none if 0."""
    text = " ".join(text.split())
    plain = REGION_REFERENCE.sub("", text)
    if not plain.strip(" .,;:!?"):
        raise Unfit("empty text", repr(text))
    if not is_unicode(text):
        raise Unfit("text is not Unicode", repr(text[:80]))
    if IMAGE_TOKEN in text or REGION_TOKEN in text:
        raise Unfit("text holds a placeholder of the prompt", text[:80])
    if regions == 0 and REGION_REFERENCE.search(text):
        raise Unfit("description refers to a region by number", text[:80])
    _require_range(text, regions)
    for pattern, reason in (
        (_OTHER_REFERENCE, "region not written as <regionN>"),
        (_COORDINATES, "text gives coordinates"),
        (_MATERIAL, "text speaks of what the model was given"),
    ):
        if match := pattern.search(plain):
            raise Unfit(reason, text[max(0, match.start() - 20) : match.end() + 40])
    return text


def _turns(pairs: Sequence[tuple[str, str]]) -> tuple[Turn, ...]:
    return tuple(turn for question, answer in pairs for turn in (Turn("user", question), Turn("assistant", answer)))
