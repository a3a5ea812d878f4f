"""Texts and dialogues of annotation files, checked.

```
[{"from": "human", "value": "<image> What is <region1>?"}, {"from": "gpt", "value": "A dog."}]
   ─► Turn("user", "What is <region1>?"), Turn("assistant", "A dog.")
```
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from data_pipelines.records import Problem, Turn, references_beyond
from data_pipelines.sources.reader import Unusable
from osprey_tp.outside import is_unicode
from osprey_tp.prompts import IMAGE_TOKEN, OVERVIEW

_ROLES = {"human": "user", "gpt": "assistant"}
_IMAGE_MARK = re.compile(rf"[ \t]*{IMAGE_TOKEN}")
_SHOWN = 80

TRIMMED = "turn without its question or answer left out"


def text_of(value: Any, reason: str) -> str:
    """The value, a text that says something, without white space at its ends.

    Raises:
        Unusable: for that reason, if it is no text or says nothing; if it is not Unicode.
    """
    if not isinstance(value, str) or not value.strip():
        raise Unusable(reason, shown(value))
    if not is_unicode(value):
        raise Unusable("text that is not Unicode", shown(value))
    return value.strip()


def shown(value: Any) -> str:
    """The value for a rejection's detail: in one line, and not long. Containers are named by their type."""
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value[:_SHOWN] if isinstance(value, str) else value)[: 2 * _SHOWN]


def check_references(texts: Iterable[str], regions: int) -> None:
    """Refuse texts that refer to a region that the record does not have.

    Raises:
        Unusable: naming the reference and the number of regions.
    """
    for text in texts:
        for reference in references_beyond(text, regions):
            raise Unusable("region reference out of range", f"{reference}, {regions} regions")


def read_dialogue(conversations: Any, *, trim: bool = False) -> tuple[tuple[Turn, ...], list[Problem]]:
    """The turns of a conversation, each question without `<image>` and the published overview sentence.

    Args:
        conversations: List of `{"from": "human" | "gpt", "value": text}`.
        trim: Leave out a first answer without its question and a last question without its answer.

    Returns:
        Turns that alternate between user and assistant and end with an answer, and a note for each that was left out.
        A question may be empty: then it asked nothing but to look at the picture.

    Raises:
        Unusable: with the reason.
    """
    if not isinstance(conversations, list):
        raise Unusable("no conversation", shown(conversations))
    turns = [_turn(entry) for entry in conversations]
    notes = []
    if trim and turns and turns[0].role == "assistant":
        notes.append(Problem(TRIMMED, f"first turn {shown(turns.pop(0).text)}"))
    if trim and turns and turns[-1].role == "user":
        notes.append(Problem(TRIMMED, f"last turn {shown(turns.pop().text)}"))
    if len(turns) < 2:
        raise Unusable("fewer than two turns", f"{len(turns)} turns")
    roles = [turn.role for turn in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2):
        raise Unusable("turns do not alternate between user and assistant", " ".join(roles)[:_SHOWN])
    return tuple(turns), notes


def _turn(entry: Any) -> Turn:
    speaker = entry.get("from") if isinstance(entry, dict) else None
    role = _ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise Unusable("turn of an unknown role", shown(speaker))
    if role == "assistant":
        return Turn("assistant", text_of(entry.get("value"), "answer without text"))
    question = text_of(entry.get("value"), "question without text")
    return Turn("user", _IMAGE_MARK.sub("", question).strip().removeprefix(OVERVIEW).strip())
