"""Scores of predictions: any predictions with known references, whoever made them.

A *scorer* turns normalised answers and references into measures. `SCORERS` holds them by name; tasks list the names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.intervals import Estimate, Measure, estimate, mean_measure
from eval.predictions import Prediction
from eval.profiles import DEFAULT_PROFILE, PROFILES, Profile
from eval.questions import Question
from eval.tasks import VERBATIM, Task

if TYPE_CHECKING:
    from eval.judge import Judge

CELL_EDGES: tuple[float, ...] = (0, 1, 4, 16, 64, 256, 1024, float("inf"))
MOST_NAMES_FOR_CHANCE = 2000


@dataclass(frozen=True)
class Answers:
    """Answers to score, in columns.

    Attributes:
        questions: (answers,) what was asked.
        predictions: (answers,) what was answered, before normalisation.
        region_cells: (answers,) size of each question's regions in cells, NaN where it is not known.
    """

    questions: Sequence[Question]
    predictions: Sequence[Prediction]
    region_cells: Sequence[float]

    @property
    def ids(self) -> list[str]:
        """(answers,)."""
        return [question.id for question in self.questions]

    @property
    def texts(self) -> list[str]:
        """(answers,) the answers."""
        return [prediction.prediction for prediction in self.predictions]

    @property
    def images(self) -> list[str]:
        """(answers,) what intervals are drawn over."""
        return [question.image for question in self.questions]

    @property
    def references(self) -> list[tuple[str, ...]]:
        """(answers,) right answers of each, before normalisation."""
        return [question.references for question in self.questions]


@dataclass(frozen=True)
class ScoringOptions:
    """How answers are scored.

    Attributes:
        profile: key of `eval.profiles.PROFILES`.
        sentence_bert: folder of a SentenceBERT model.
        judge: who judges, for tasks that need one.
        contexts: file that tells a judge in words what pictures show.
    """

    profile: str = DEFAULT_PROFILE
    sentence_bert: Path | None = None
    judge: Judge | None = None
    contexts: Path | None = None


@dataclass
class Scoring:
    """What scorers found: measures, chance levels by measure, what could not be measured and why, notes, and details.

    `details` are further entries of `metrics.json` by name, such as the judge or the bins of a reliability diagram.
    """

    measures: list[Measure] = field(default_factory=list)
    chance: dict[str, float] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Material:
    """What a scorer works on: normalised answers and references, what they come from, and the options."""

    answers: Sequence[str]
    references: Sequence[Sequence[str]]
    given: Answers
    options: ScoringOptions


Scorer = Callable[[Material, Scoring], None]


def score(task: Task, answers: Answers, options: ScoringOptions) -> Scoring:
    """Score answers by the task's scorers, normalised by the options' profile.

    Raises:
        ValueError: there are no answers, or the SentenceBERT folder is none.
    """
    if not answers.ids:
        raise ValueError("there are no answers to score")
    rules = PROFILES[options.profile]
    material = Material(
        answers=[_normalise_answer(rules, task, text) for text in answers.texts],
        references=[[_normalise_reference(rules, task, text) for text in group] for group in answers.references],
        given=answers,
        options=options,
    )
    scoring = Scoring()
    for name in task.scorers:
        SCORERS[name](material, scoring)
    return scoring


def _normalise_answer(rules: Profile, task: Task, text: str) -> str:
    if task.kind == VERBATIM:
        return text
    return rules.category_answer(text) if task.kind == "category" else rules.caption_answer(text)


def _normalise_reference(rules: Profile, task: Task, text: str) -> str:
    return rules.category_reference(text) if task.kind == "category" else text


def semantic_iou(answer: str, reference: str) -> float:
    """Words in common / words in either, lower case; 0 where neither has a word.

    Source: `SemanticIOU` of Osprey's `lvis_paco_eval.py`.
    """
    words, right = set(answer.lower().split()), set(reference.lower().split())
    return len(words & right) / len(words | right) if words | right else 0.0


def exact_match(answer: str, reference: str) -> float:
    """1 if both have the same words in the same order, lower case."""
    return float(answer.lower().split() == reference.lower().split())


def _score_words(material: Material, scoring: Scoring) -> None:
    """Semantic IoU and exact match with the best of the references."""
    for name, compare in (("semantic_iou", semantic_iou), ("exact_match", exact_match)):
        values = [
            max(compare(answer, reference) for reference in group)
            for answer, group in zip(material.answers, material.references, strict=True)
        ]
        scoring.measures.append(mean_measure(name, values))
        chance = chance_of_random_names(material.references, compare)
        if chance is not None:
            scoring.chance[name] = chance


def chance_of_random_names(references: Sequence[Sequence[str]], compare: Callable[[str, str], float]) -> float | None:
    """Expected score of answers that are the first reference of a region drawn at random from the same data.

    None with more than `MOST_NAMES_FOR_CHANCE` different names, where the table of all pairs grows large.
    """
    drawn = Counter(group[0] for group in references)
    asked = Counter(tuple(group) for group in references)
    if max(len(drawn), len(asked)) > MOST_NAMES_FOR_CHANCE:
        return None
    total = sum(
        drawn_count * asked_count * max(compare(name, reference) for reference in group)
        for name, drawn_count in drawn.items()
        for group, asked_count in asked.items()
    )
    return total / len(references) ** 2


def _score_attributes(material: Material, scoring: Scoring) -> None:
    """Accuracy of texture, colour, shape and all three, over regions that bear the name of a synthetic shape."""
    from data_pipelines.synthetic import vocabulary

    kinds = (("texture", vocabulary.TEXTURES), ("colour", vocabulary.COLOURS), ("shape", vocabulary.SHAPES))
    rows = []
    for answer, group in zip(material.answers, material.given.references, strict=True):
        right = vocabulary.attributes_of(group[0])
        synthetic = " ".join(str(word) for word in right) == group[0]
        given = vocabulary.attributes_of(answer)
        rows.append([float(a == b) if synthetic else np.nan for a, b in zip(given, right, strict=True)])
    correct = np.array(rows)
    if np.isnan(correct).all():
        return
    for column, (name, words) in enumerate(kinds):
        scoring.measures.append(mean_measure(name, correct[:, column]))
        scoring.chance[name] = 1 / len(words)
    scoring.measures.append(mean_measure("all_attributes", correct.prod(axis=1)))
    scoring.chance["all_attributes"] = float(np.prod([1 / len(words) for _, words in kinds]))


def _score_captions(material: Material, scoring: Scoring) -> None:
    from eval.captions import MISSING_JAVA, caption_measures, has_java

    measures, tokenizer = caption_measures(material.answers, material.references)
    scoring.measures += measures
    scoring.notes["caption_tokenizer"] = tokenizer
    if not has_java():
        scoring.not_measured["METEOR"] = MISSING_JAVA


def _score_semantic_similarity(material: Material, scoring: Scoring) -> None:
    if material.options.sentence_bert is None:
        scoring.not_measured["semantic_similarity"] = "no SentenceBERT folder given (--sentence-bert DIR)"
        return
    from eval.sentence_bert import SentenceBert

    encoder = SentenceBert.from_pretrained(material.options.sentence_bert)
    similarities = encoder.best_similarities(material.answers, material.references)
    scoring.measures.append(mean_measure("semantic_similarity", similarities))
    scoring.notes["sentence_bert"] = encoder.checksum


def _score_candidates(material: Material, scoring: Scoring) -> None:
    from eval.candidates import score_candidates

    score_candidates(material, scoring)


def _score_segments_by_similarity(material: Material, scoring: Scoring) -> None:
    from eval.segmentation import score_by_similarity

    score_by_similarity(material, scoring)


def _score_segments_by_likelihood(material: Material, scoring: Scoring) -> None:
    from eval.segmentation import score_by_likelihood

    score_by_likelihood(material, scoring)


def _score_grounding(material: Material, scoring: Scoring) -> None:
    from eval.grounding import score_grounding

    score_grounding(material, scoring)


def _score_pope(material: Material, scoring: Scoring) -> None:
    from eval.pope import score_pope

    score_pope(material, scoring)


def _score_ratings(material: Material, scoring: Scoring) -> None:
    from eval.rating import score_ratings

    score_ratings(material, scoring)


def _score_dlc_bench(material: Material, scoring: Scoring) -> None:
    from eval.dlc_bench import score_dlc_bench

    score_dlc_bench(material, scoring)


SCORERS: dict[str, Scorer] = {
    "words": _score_words,
    "attributes": _score_attributes,
    "captions": _score_captions,
    "semantic_similarity": _score_semantic_similarity,
    "candidates": _score_candidates,
    "segments_by_similarity": _score_segments_by_similarity,
    "segments_by_likelihood": _score_segments_by_likelihood,
    "grounding": _score_grounding,
    "pope": _score_pope,
    "ratings": _score_ratings,
    "dlc_bench": _score_dlc_bench,
}


def summarise(scoring: Scoring, answers: Answers) -> dict[str, dict[str, Any]]:
    """Value, 95% interval over images, and chance level of every measure, as in `metrics.json`."""
    table = {}
    for measure in scoring.measures:
        found = estimate(measure, answers.images)
        if found is not None:
            chance = scoring.chance.get(measure.name)
            table[measure.name] = _as_dict(found) | ({} if chance is None else {"chance": chance})
    return table


def by_region_size(scoring: Scoring, answers: Answers) -> dict[str, list[dict[str, Any]]]:
    """Every measure over regions of like size: `from_cells` <= size < `to_cells` (None: no upper end)."""
    cells = np.asarray(answers.region_cells, dtype=np.float64)
    table: dict[str, list[dict[str, Any]]] = {measure.name: [] for measure in scoring.measures}
    for low, high in pairwise(CELL_EDGES):
        chosen = (cells >= low) & (cells < high)
        for measure in scoring.measures:
            found = estimate(measure, answers.images, chosen) if chosen.any() else None
            if found is not None:
                edges = {"from_cells": low, "to_cells": None if np.isinf(high) else high}
                table[measure.name].append(edges | _as_dict(found))
    return {name: rows for name, rows in table.items() if rows}


def _as_dict(found: Estimate) -> dict[str, Any]:
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "regions": found.regions,
        "images": found.images,
    }


def select_answers(predictions: Mapping[str, str], ids: Sequence[str], source: str, *, complete: bool) -> list[str]:
    """The ids that have predictions, in the order of `ids`.

    Raises:
        ValueError: predictions for ids that were not asked, or (`complete`) questions without a prediction.
    """
    unknown = sorted(predictions.keys() - set(ids))
    if unknown:
        raise ValueError(
            f"{source} answers {len(unknown)} questions that the data does not ask, the first {unknown[0]}"
        )
    missing = [question_id for question_id in ids if question_id not in predictions]
    if missing and complete:
        raise ValueError(
            f"{source} lacks {len(missing)} of {len(ids)} answers, the first {missing[0]}; nothing was scored"
        )
    return [question_id for question_id in ids if question_id in predictions]
