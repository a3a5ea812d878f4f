"""POPE: does the model say yes to objects that are not in the picture?

One yes-or-no question about a whole picture; random, popular and adversarial objects are three data folders.
Rule: `evaluate.py` of POPE (github.com/AoiDragon/POPE), which Osprey uses. Only the first sentence counts, up to the
first full stop; a word "no" or "not" in it means no, everything else yes. Here words end at anything but letters, and
case does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eval.intervals import Array, Measure, mean_measure
from eval.questions import Question

if TYPE_CHECKING:
    from data_pipelines.records import RegionRecord
    from eval.metrics import Material, Scoring

_WORD = re.compile(r"[^\W\d_]+")


def pope_questions(record: RegionRecord, image_path: Path, text: str) -> Iterator[Question]:
    """The question of a record that has a label "yes" or "no"; `text` is not used."""
    label = record.metadata.get("label")
    if label not in ("yes", "no") or not record.turns:
        return
    yield Question(
        id=record.id,
        image=record.image,
        image_path=image_path,
        height=record.height,
        width=record.width,
        text=record.turns[0].text,
        regions=(),
        references=(label,),
    )


def says_yes(answer: str) -> bool:
    """Whether an answer counts as yes, by the rule above."""
    first_sentence = answer.split(".")[0].casefold()
    return not {"no", "not"} & set(_WORD.findall(first_sentence))


def score_pope(material: Material, scoring: Scoring) -> None:
    """Accuracy, precision, recall and F1 of yes, and the share of answers that are yes."""
    given = material.given
    said = np.array([says_yes(text) for text in given.texts])
    right = np.array([references[0] == "yes" for references in given.references])
    hits = (said & right).astype(np.float64)
    scoring.measures += [
        mean_measure("accuracy", (said == right).astype(np.float64)),
        mean_measure("precision", np.where(said, hits, np.nan)),
        mean_measure("recall", np.where(right, hits, np.nan)),
        _f1(said, right, hits),
        mean_measure("yes_ratio", said.astype(np.float64)),
    ]
    scoring.chance["accuracy"] = 0.5
    if not said.any():
        scoring.not_measured["precision"] = "no answer is yes"
    if not right.any():
        scoring.not_measured["recall"] = "the right answer is never yes"
    empty = sum(not text.strip() for text in given.texts)
    if empty:
        scoring.notes["empty answers"] = f"{empty}, which count as yes by the rule of POPE"


def _f1(said: Array, right: Array, hits: Array) -> Measure:
    """F1 = 2 hits / (answers that are yes + questions whose right answer is yes)."""
    both = said.astype(np.float64) + right
    return Measure(
        "F1",
        np.stack([2 * hits, both], axis=1),
        lambda sums: np.divide(
            sums[..., 0], sums[..., 1], out=np.full(sums.shape[:-1], np.nan), where=sums[..., 1] > 0
        ),
        np.where(both > 0, hits, np.nan),
    )
