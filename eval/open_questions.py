"""Questions that records bring with them, and answers and descriptions that stand in files of their own.

```
--references FILE   {"id": "ferret-bench:0#1", "text": "The sign ..."}, or the published {"question_id": 0, "text": ...}
--contexts FILE     {"image": "000000069138.jpg", "text": "person: [0.1, ...]"}, or the published "prompt" for "text"
```

Both are JSON Lines or a JSON list, as Ferret and Osprey publish them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from eval.questions import Question
from osprey_tp.outside import one_line, parse_json
from osprey_tp.prompts import REGION_TOKEN

if TYPE_CHECKING:
    from data_pipelines.records import RegionRecord


def open_questions(record: RegionRecord, image_path: Path, text: str) -> Iterator[Question]:
    """The question about regions that the record asks and nobody has answered; `text` is not used.

    Its id is `<record id>#<region number>` where it is about one region, else `<record id>`. The category is that of
    the record's metadata.
    """
    from data_pipelines.records import REGION_REFERENCE

    if len(record.turns) != 1 or not REGION_REFERENCE.sub("", record.turns[0].text).strip():
        return
    asked = record.turns[0].text
    numbers = [int(number) for number in REGION_REFERENCE.findall(asked)]
    if not numbers:
        return
    yield Question(
        id=f"{record.id}#{numbers[0]}" if len(set(numbers)) == 1 else record.id,
        image=record.image,
        image_path=image_path,
        height=record.height,
        width=record.width,
        text=REGION_REFERENCE.sub(REGION_TOKEN, asked),
        regions=tuple(record.regions[number - 1].segmentation for number in numbers),
        references=(),
        category=str(record.metadata.get("category", "")),
        facts={"question_id": record.metadata.get("question_id")},
    )


def with_references(questions: Sequence[Question], path: Path) -> list[Question]:
    """The questions with the reference answers of a file; where the file has one, it replaces those of the data.

    Raises:
        ValueError: the file is malformed, names a question twice, or a question is left without a reference.
    """
    by_id: dict[Any, str] = {}
    for number, entry in enumerate(_entries(path), start=1):
        key = entry.get("id", entry.get("question_id"))
        answer = entry.get("text")
        if not isinstance(key, str | int) or not isinstance(answer, str) or not answer.strip():
            raise ValueError(
                f'{path}, entry {number}: needed are "id" (or "question_id") and a "text" that is not empty'
            )
        if key in by_id:
            raise ValueError(f"{path} has two answers for {key}; keep one")
        by_id[key] = answer.strip()
    found = [_with_reference(question, by_id) for question in questions]
    missing = [question.id for question in found if not question.references]
    if missing:
        raise ValueError(
            f"{path} has no reference answer for {len(missing)} of {len(found)} questions, the first {missing[0]}; "
            "is it the file of other questions?"
        )
    return found


def _with_reference(question: Question, by_id: Mapping[Any, str]) -> Question:
    answer = by_id.get(question.id, by_id.get(question.facts.get("question_id")))
    return question if answer is None else replace(question, references=(answer,))


def read_contexts(path: Path) -> dict[str, str]:
    """What pictures show, in words, by the pictures' file names.

    Raises:
        ValueError: the file is malformed, or tells two things of one picture.
    """
    contexts: dict[str, str] = {}
    for number, entry in enumerate(_entries(path), start=1):
        image, text = entry.get("image"), entry.get("text", entry.get("prompt"))
        if not isinstance(image, str) or not isinstance(text, str):
            raise ValueError(f'{path}, entry {number}: needed are "image" and "text" (or "prompt")')
        name = PurePosixPath(image).name
        if contexts.setdefault(name, text.strip()) != text.strip():
            raise ValueError(f"{path} tells two different things of {name}; keep one")
    return contexts


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        content = path.read_text("utf-8")
        whole = content.lstrip().startswith("[")
        texts = [content] if whole else [line for line in content.split("\n") if line.strip()]
        values = [parse_json(text, "it") for text in texts]
    except ValueError as error:
        raise ValueError(f"{path} is neither JSON Lines nor a JSON list: {one_line(error)}") from error
    listed = values[0] if whole else values
    if not listed or not all(isinstance(entry, dict) for entry in listed):
        raise ValueError(f"{path} does not hold objects, one a line or in a list")
    return list(listed)
