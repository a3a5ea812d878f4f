"""DLC-Bench: a judge answers multiple-choice questions about a region from the model's description of it alone.

Rules: `evaluation/eval_model_outputs.py` of NVlabs/describe-anything (paper: arXiv 2504.16072, section 5).

```
description ─► recognition question: is it the right kind of thing?   no: every later score is min(0, score)
            ─► positive questions: is what is there told?          object's mean ─┐
            ─► negative questions: is what is not there left out?  object's mean ─┴► means over objects, (pos + neg) / 2
```

An object without negative questions is left out of the negative mean. The published judge is Llama-3.1-8B-Instruct,
without the picture. `qa.json` holds no recognition question as published: it is made from the class name. Where the
published script takes any reply, one that is no choice gives no score here: its question is left out, and after an
unparsable recognition the whole object.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.intervals import Array, Measure, mean_measure
from eval.judge import Inquiry, Verdicts, ask_judge, note_judge, required, unusable
from eval.questions import Question, region_question

if TYPE_CHECKING:
    from data_pipelines.records import RegionRecord
    from eval.metrics import Material, Scoring

AVERAGE, POSITIVE, NEGATIVE, RECOGNITION = "dlc_average", "dlc_positive", "dlc_negative", "dlc_recognition"
LONGEST_REPLY = 300
MOST_CHOICES = len(ascii_uppercase)

PROMPT = """Answer the multiple-choice question based on the text description of an object in an image. You need to \
follow these rules:
1. Do not output any reasoning. Do not perform correction. Please output exactly one answer from the choices for each \
question. Do not repeat the question.
2. There is no need for exact matching. Please choose the closest option based on the description.

The description is:
{description}

From the description above, please answer the following question with one of the choices:
{question}
"""
"""To the letter as published, since the scores depend on it; so are the two questions below."""
OF_ONE = (
    "Is it likely that the object in the description is {name} or an object of a similar type? "
    "Again, It does not have to be an exact match."
)
OF_SEVERAL = (
    "Is it likely that the objects in the description are {name} or objects of a similar type? "
    "Again, It does not have to be an exact match."
)

_LETTERED = re.compile(r"\(?([a-z])(?:\)|\.|:|\Z)[.:]?\s*(.*)", re.DOTALL)


def dlc_questions(record: RegionRecord, image_path: Path, text: str) -> Iterator[Question]:
    """The region of a record that has questions for a judge; its class name is the reference.

    Raises:
        ValueError: the questions are malformed, or nothing tells what the region is.
    """
    listed = record.metadata.get("questions")
    if not isinstance(listed, list) or not record.regions:
        return
    name = record.regions[0].name
    recognition = [entry for entry in listed if entry["type"] == "recognition"]
    if not recognition:
        recognition = [recognition_question(name, record.id)]
    others = [entry for entry in listed if entry["type"] != "recognition"]
    asked = [*recognition, *others]
    _check(asked, record.id)
    yield region_question(record, 0, image_path, text, (name,), questions=asked)


def recognition_question(name: str, record_id: str) -> dict[str, Any]:
    """Whether a description is of a thing of that name.

    Raises:
        ValueError: there is no name.
        ImportError: inflect, which knows plurals and articles, is not installed.
    """
    name = name.strip()
    if not name:
        raise ValueError(f"{record_id} has no class name to be recognised; prepare it with class_names.json")
    grammar = _grammar()
    plural = name != "bus" and grammar.singular_noun(name) is not False
    question = OF_SEVERAL.format(name=name) if plural else OF_ONE.format(name=grammar.a(name))
    return {"question": question, "choices": [["Yes", "correct"], ["No", "incorrect"]], "type": "recognition"}


@cache
def _grammar() -> Any:
    try:
        import inflect
    except ImportError:
        raise ImportError("to ask what DLC-Bench asks, install inflect: pip install osprey_tp[eval]") from None
    return inflect.engine()


def _check(asked: Sequence[Mapping[str, Any]], record_id: str) -> None:
    kinds = [str(entry["type"]) for entry in asked]
    if (
        kinds.count("recognition") != 1
        or "positive" not in kinds
        or set(kinds) - {"recognition", "positive", "negative"}
    ):
        raise ValueError(
            f"{record_id} has questions of the types {', '.join(kinds)}; needed are one recognition, "
            "at least one positive, and any number of negative ones"
        )
    for entry in asked:
        choices = entry["choices"]
        usable = isinstance(entry["question"], str) and isinstance(choices, list) and 1 < len(choices) <= MOST_CHOICES
        if not usable or not all(_is_choice(choice, entry["type"]) for choice in choices):
            raise ValueError(f"{record_id}: malformed choices of {entry['question']!r:.80}: {choices!r:.120}")


def _is_choice(choice: Any, kind: str) -> bool:
    if not isinstance(choice, list | tuple) or len(choice) != 2 or not isinstance(choice[0], str):
        return False
    if kind == "recognition":
        return choice[1] in ("correct", "incorrect")
    return isinstance(choice[1], int | float) and not isinstance(choice[1], bool)


def judge_prompt(entry: Mapping[str, Any], description: str) -> str:
    """What the judge reads about one question."""
    choices = [f"{letter}. {text}" for letter, (text, _) in zip(ascii_uppercase, entry["choices"], strict=False)]
    return PROMPT.format(description=description, question="\n".join([entry["question"], *choices]).strip())


def parse_choice(reply: str, choices: Sequence[str]) -> int | None:
    """Which choice the reply is, counted from 0; None if it is not exactly one of them.

    It is the letter ("B", "B.", "(b)"), the letter with that choice's text ("B. a zebra"), or the text of one choice.
    """
    texts = [_plain(choice) for choice in choices]
    said = _plain(reply)
    if texts.count(said) == 1:
        return texts.index(said)
    match = _LETTERED.fullmatch(said)
    index = -1 if match is None else ascii_uppercase.lower().index(match[1])
    if match is None or not 0 <= index < len(choices) or match[2] not in ("", texts[index]):
        return None
    return index


def _plain(text: str) -> str:
    return " ".join(text.strip().strip("*\"'").split()).rstrip(".").casefold()


def score_dlc_bench(material: Material, scoring: Scoring) -> None:
    """Means of positive and of negative questions, their average, and how often the object is recognised.

    Raises:
        EndpointError: the judge did not answer everything; its replies so far are kept.
        ValueError: there is no judge.
    """
    given, judge = material.given, required(material.options.judge)
    inquiries = [
        Inquiry(
            f"{question.id} question {number}",
            judge_prompt(entry, answer),
            partial(parse_choice, choices=[text for text, _ in entry["choices"]]),
        )
        for question, answer in zip(given.questions, given.texts, strict=True)
        for number, entry in enumerate(question.facts["questions"])
    ]
    verdicts = ask_judge(judge, inquiries, LONGEST_REPLY)
    note_judge(scoring, judge, verdicts, (PROMPT, OF_ONE, OF_SEVERAL), LONGEST_REPLY)
    rows = np.array([object_scores(question, verdicts) for question in given.questions])
    recognised, positive, negative = rows.T
    if not np.isfinite(positive).any():
        scoring.not_measured[AVERAGE] = unusable(verdicts)
        return
    if np.isfinite(negative).any():
        scoring.measures.append(average_of_means(positive, negative))
    else:
        scoring.not_measured[AVERAGE] = "no object has a negative score"
    for name, values in ((POSITIVE, positive), (NEGATIVE, negative), (RECOGNITION, recognised)):
        scoring.measures.append(mean_measure(name, values))


def object_scores(question: Question, verdicts: Verdicts[int]) -> tuple[float, float, float]:
    """Whether an object is recognised, the mean of its positive and of its negative questions; NaN for none."""
    scores: dict[str, list[float]] = {"positive": [], "negative": []}
    recognised = np.nan
    for number, entry in enumerate(question.facts["questions"]):
        chosen = verdicts.given.get(f"{question.id} question {number}")
        found = None if chosen is None else entry["choices"][chosen][1]
        if entry["type"] == "recognition":
            if found is None:
                return np.nan, np.nan, np.nan
            recognised = float(found == "correct")
        elif found is not None:
            scores[entry["type"]].append(float(found) if recognised else min(0.0, float(found)))
    positive, negative = (float(np.mean(values)) if values else np.nan for values in scores.values())
    return recognised, positive, negative


def average_of_means(positive: Array, negative: Array) -> Measure:
    """(mean of the positive + mean of the negative scores) / 2, each over the objects that have one.

    Args:
        positive: (objects,), NaN for none.
        negative: (objects,), NaN for none.
    """
    columns = [
        column
        for values in (positive, negative)
        for column in (np.nan_to_num(values), np.isfinite(values).astype(np.float64))
    ]

    def formula(sums: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((sums[..., 0] / sums[..., 1] + sums[..., 2] / sums[..., 3]) / 2)

    halves = np.stack([positive, negative])
    present = np.isfinite(halves)
    with np.errstate(invalid="ignore"):
        values = np.where(present, halves, 0).sum(axis=0) / present.sum(axis=0)
    return Measure(AVERAGE, np.stack(columns, axis=1), formula, values)
