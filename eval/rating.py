"""Relative score: a judge rates the reference answer and the model's answer from 1 to 10 each.

score = mean rating of the model's answers / mean rating of the references, as in Osprey's `eval_gpt.py` and Ferret's
`eval_gpt_review_3newclass.py`: the reference comes first, the first line of the reply holds both numbers, the picture
is told by a context in words where there is one. The wording is our own, and the judge's name belongs beside the
number. Answers are rated as the model gave them, whatever the profile.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from eval.intervals import Array, Measure
from eval.judge import Inquiry, ask_judge, note_judge, required, unusable
from eval.open_questions import read_contexts
from eval.questions import Question
from osprey_tp.files import sha256_of
from osprey_tp.prompts import REGION_TOKEN
from osprey_tp.run_lengths import Runs

if TYPE_CHECKING:
    from eval.metrics import Material, Scoring

MEASURE = "relative_score"
LONGEST_REPLY = 1024
LOWEST, HIGHEST = 1.0, 10.0

SYSTEM = "You are a fair and precise judge of answers about pictures."
PROMPT = """[Question]
{question}

[Assistant 1]
{reference}
[End of Assistant 1]

[Assistant 2]
{answer}
[End of Assistant 2]

[Task]
Two assistants looked at a picture and answered the question above, which is about a part of it. Four numbers in \
brackets are a box, [left, top, right, bottom], as shares of the width and of the height of the picture, from 0 to 1.
Judge how helpful, relevant, accurate and detailed each answer is, and whether it speaks of the part that was asked \
about. Give each assistant one score from 1 to 10, where 10 is best. Which answer comes first must not matter.
Write the two scores alone on the first line, first that of Assistant 1, then that of Assistant 2, with a space \
between them. Explain them from the second line on."""
CONTEXT = """[Context]
This is in the picture:
{context}

"""

_NUMBER = r"(\d{1,2}(?:\.\d+)?)"
_RATINGS = re.compile(rf"{_NUMBER}(?:\s*,\s*|[ \t]+){_NUMBER}")


def parse_ratings(reply: str) -> tuple[float, float] | None:
    """The two numbers on the first line, each from 1 to 10; None if the line holds anything else."""
    match = _RATINGS.fullmatch(reply.strip().split("\n")[0].strip())
    if match is None:
        return None
    first, second = float(match[1]), float(match[2])
    in_range = all(LOWEST <= rating <= HIGHEST for rating in (first, second))
    return (first, second) if in_range else None


def score_ratings(material: Material, scoring: Scoring) -> None:
    """The relative score.

    Raises:
        EndpointError: the judge did not answer everything; its replies so far are kept.
        ValueError: there is no judge, or the file of contexts is malformed or lacks a picture.
    """
    given, judge = material.given, required(material.options.judge)
    contexts = None if material.options.contexts is None else read_contexts(material.options.contexts)
    inquiries = [
        Inquiry(question.id, rating_prompt(question, answer, contexts), parse_ratings, SYSTEM)
        for question, answer in zip(given.questions, given.texts, strict=True)
    ]
    verdicts = ask_judge(judge, inquiries, LONGEST_REPLY)
    note_judge(scoring, judge, verdicts, (SYSTEM, CONTEXT, PROMPT), LONGEST_REPLY)
    if material.options.contexts is not None:
        scoring.notes["contexts"] = sha256_of(material.options.contexts)
    if not verdicts.given:
        scoring.not_measured[MEASURE] = unusable(verdicts)
        return
    ratings = np.array([verdicts.given.get(question_id, (np.nan, np.nan)) for question_id in given.ids])
    reference, model = np.nanmean(ratings, axis=0)
    scoring.details["mean_ratings"] = {"reference": float(reference), "model": float(model)}
    scoring.measures.append(relative_score(MEASURE, ratings))


def rating_prompt(question: Question, answer: str, contexts: Mapping[str, str] | None) -> str:
    """What the judge reads: each region as its box, the first reference, the answer.

    Raises:
        ValueError: there are contexts, and none of this picture.
    """
    text = question.text
    for region in question.regions:
        text = text.replace(REGION_TOKEN, _box(region, question), 1)
    told = ""
    if contexts is not None:
        name = PurePosixPath(question.image).name
        if name not in contexts:
            raise ValueError(f"the contexts tell nothing of {name} (question {question.id})")
        told = CONTEXT.format(context=contexts[name])
    reference = question.references[0].strip()
    return told + PROMPT.format(question=text, reference=reference, answer=answer.strip())


def relative_score(name: str, ratings: Array) -> Measure:
    """Sum of the model's ratings / sum of the references'.

    Args:
        name: of the measure.
        ratings: (answers, 2) of the reference and of the model; NaN leaves an answer out.
    """
    present = np.isfinite(ratings).all(axis=1, keepdims=True)
    statistics = np.where(present, ratings, 0.0)

    def formula(sums: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(sums[..., 1] / sums[..., 0])

    return Measure(name, statistics, formula, ratings[:, 1] / ratings[:, 0])


def _box(region: Mapping[str, object], question: Question) -> str:
    x0, y0, x1, y1 = Runs.of_rle(region, question.height, question.width).box
    corners = (x0 / question.width, y0 / question.height, x1 / question.width, y1 / question.height)
    return "[" + ", ".join(f"{corner:.3f}" for corner in corners) + "]"
