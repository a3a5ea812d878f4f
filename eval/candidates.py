"""Candidate likelihood: a closed vocabulary ranked by the model's own log-likelihood of each name as the answer.

```
region, question ─► session.score(names) ─► (names,) log-likelihoods ─► best synonym of each class ─► softmax
    ─► top-1, top-5, calibration error, Brier score
```

By default a name's score is the log-likelihood of its tokens and its end token, summed: the probability that the model
gives exactly this answer, so that the best class is what the model would most probably say if it could say nothing
else, and the softmax is its belief among the classes. The mean over tokens (`mean`) takes from long names what they
lose by their length; it suits models that were not trained to answer with these names, and is no probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from eval.asking import Asking, Session, Shown, prediction_of
from eval.intervals import Array, Measure, mean_measure
from eval.predictions import Prediction
from eval.questions import Question
from eval.vocabulary import Vocabulary

if TYPE_CHECKING:
    from eval.metrics import Material, Scoring

CandidateScore = Literal["sum", "mean"]
DEFAULT_SCORE: CandidateScore = "sum"
DECIMALS = 4
"""Of log-likelihoods in `predictions.jsonl`."""

BINS = 15
"""Of the calibration error, as Guo et al. 2017, section 2, and its experiments take them."""


def rank_candidates(session: Session, batch: Sequence[Shown], asking: Asking) -> list[Prediction]:
    """The best candidate of each question's vocabulary as the answer, with the log-likelihoods of all its texts.

    Every region is scored by itself, so that the numbers do not depend on what else is asked.
    """
    predictions = []
    for item in batch:
        vocabulary: Vocabulary = item.question.facts["vocabulary"]
        per_token = item.question.facts["candidate_score"] == "mean"
        scores = session.score(
            vocabulary.texts,
            item.shown.regions,
            item.question.text,
            batch_size=asking.batch_size,
            per_token=per_token,
        )[0]
        rounded = np.round(scores, DECIMALS)
        best = vocabulary.texts[int(rounded.argmax())]
        predictions.append(prediction_of(item, best, asking, rounded.tolist()))
    return predictions


def class_probabilities(question: Question, prediction: Prediction) -> Array:
    """(classes,) softmax over the classes of a question's vocabulary, by the best synonym of each.

    A prediction without scores, such as somebody else's, is certain of the class it names.

    Raises:
        ValueError: there is another number of scores than of texts, or an answer without scores is none of the texts.
    """
    vocabulary: Vocabulary = question.facts["vocabulary"]
    if not prediction.scores:
        place = vocabulary.place_of(prediction.prediction)
        if place is None:
            raise ValueError(
                f"the answer {prediction.prediction!r:.60} to {question.id} has no scores and is none of the "
                f'{len(vocabulary)} candidates; give log-likelihoods as "scores", or score without --candidates'
            )
        return np.eye(len(vocabulary))[place]
    if len(prediction.scores) != len(vocabulary.texts):
        raise ValueError(
            f"the answer to {question.id} has {len(prediction.scores)} scores, there are {len(vocabulary.texts)} "
            "candidates; is it from a run with another vocabulary?"
        )
    return softmax(vocabulary.best_synonyms(np.array(prediction.scores)))


def all_class_probabilities(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Array:
    """(answers, classes) `class_probabilities` of every answer."""
    return np.stack([class_probabilities(*pair) for pair in zip(questions, predictions, strict=True)])


def softmax(scores: Array) -> Array:
    """Over the last axis."""
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))


def right_classes(questions: Sequence[Question]) -> np.ndarray:
    """(questions,) the class of each question's first reference.

    Raises:
        ValueError: a reference is no class of the vocabulary.
    """
    places = []
    unknown: dict[str, None] = {}
    for question in questions:
        place = question.facts["vocabulary"].place_of(question.facts["name"])
        if place is None:
            unknown[question.facts["name"]] = None
        places.append(-1 if place is None else place)
    if unknown:
        source = questions[0].facts["vocabulary"].source
        raise ValueError(
            f"{len(unknown)} names of the data are no class of {source}, the first {next(iter(unknown))!r}; write each "
            "as a synonym in the line of its class"
        )
    return np.array(places)


def score_candidates(material: Material, scoring: Scoring) -> None:
    """Top-1, top-5, expected calibration error and Brier score of the classes' probabilities."""
    given = material.given
    right = right_classes(given.questions)
    probabilities = all_class_probabilities(given.questions, given.predictions)
    classes = probabilities.shape[1]
    ranks = ranks_of(probabilities, right)
    scoring.measures.append(mean_measure("top_1", (ranks == 0).astype(float)))
    scoring.chance["top_1"] = 1 / classes
    if classes > 5:
        scoring.measures.append(mean_measure("top_5", (ranks < 5).astype(float)))
        scoring.chance["top_5"] = 5 / classes
    scoring.measures += [
        calibration_measure(probabilities.max(axis=1), ranks == 0),
        mean_measure("brier_score", brier_scores(probabilities, right)),
    ]
    scoring.details["reliability"] = reliability(probabilities.max(axis=1), ranks == 0)
    vocabulary: Vocabulary = given.questions[0].facts["vocabulary"]
    scoring.notes["vocabulary"] = f"{classes} classes of {vocabulary.source}, {len(vocabulary.texts)} texts"
    scoring.notes["candidate_score"] = str(given.questions[0].facts["candidate_score"])


def ranks_of(probabilities: Array, right: np.ndarray) -> np.ndarray:
    """(answers,) how many classes are ranked before the right one; equal ones in the order of the vocabulary.

    A class of probability 0 is ranked last: nothing was said of it.
    """
    rows = np.arange(len(right))
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranks = np.argmax(order == right[:, None], axis=1)
    return np.where(probabilities[rows, right] > 0, ranks, probabilities.shape[1])


def brier_scores(probabilities: Array, right: np.ndarray) -> Array:
    """(answers,) squared distance from certainty of the right class, 0 to 2 (Brier 1950)."""
    certain = np.zeros_like(probabilities)
    certain[np.arange(len(right)), right] = 1
    return np.asarray(((probabilities - certain) ** 2).sum(axis=1))


def _bins(confidence: Array) -> np.ndarray:
    """(answers,) the bin of each, of `BINS` equal ones, the upper edge inside."""
    return np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)


def calibration_measure(confidence: Array, correct: np.ndarray) -> Measure:
    """Expected calibration error: the mean distance of confidence and accuracy over bins, weighted by their answers.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.
    """
    difference = np.zeros((len(confidence), BINS + 1))
    difference[np.arange(len(confidence)), _bins(confidence)] = correct.astype(float) - confidence
    difference[:, -1] = 1

    def error(sums: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.abs(sums[..., :-1]).sum(axis=-1) / sums[..., -1])

    return Measure("calibration_error", difference, error, np.abs(correct.astype(float) - confidence))


def reliability(confidence: Array, correct: np.ndarray) -> list[dict[str, Any]]:
    """Accuracy and mean confidence of every bin that holds an answer, for the diagram."""
    places = _bins(confidence)
    rows = []
    for place in range(BINS):
        chosen = places == place
        if chosen.any():
            rows.append(
                {
                    "from": place / BINS,
                    "to": (place + 1) / BINS,
                    "regions": int(chosen.sum()),
                    "confidence": float(confidence[chosen].mean()),
                    "accuracy": float(correct[chosen].mean()),
                }
            )
    return rows
