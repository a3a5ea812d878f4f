"""Open-vocabulary segmentation: the true segments of a picture as proposals, their classes in the model's own words.

```
segment ─► "What is in <mask>? Using a short phrase." ─► free answer
    ─► cosine with "There is a {synonym} in the scene." by SentenceBERT, best synonym of each class
    ─► softmax over the raw cosines ─► class of each segment ─► PQ, AP, mIoU
```

It measures recognition alone. Source: Osprey's `eval_open_vocab_seg_detectron2.py`. There the softmax is multiplied by
(1 − void), where void is 1 for places of the 300 proposals that hold no segment and 0 for all others; only segments
are proposed here, so that the factor is 1. The published AP of Cityscapes is that of its own scripts, not COCO's.
With candidates (`eval.candidates`) the classes' probabilities come from likelihoods instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.candidates import all_class_probabilities, right_classes, softmax
from eval.intervals import Array, Measure, mean_measure
from eval.panoptic import Segments, average_precision, mean_iou_measure, panoptic_measures
from eval.questions import Question, region_question
from eval.vocabulary import Vocabulary, spoken

if TYPE_CHECKING:
    from data_pipelines.records import RegionRecord
    from eval.metrics import Material, Scoring
    from eval.sentence_bert import SentenceBert

MOST_PROPOSALS = 300
SENTENCE = "There is a {} in the scene."
MEASURES = ("class_accuracy", "PQ", "SQ", "RQ", "AP", "mIoU")
NO_CLASSES = "no SentenceBERT folder given (--sentence-bert DIR), nor candidates to rank (--candidates names)"


def about_each_segment(record: RegionRecord, image_path: Path, text: str) -> Iterator[Question]:
    """One question about each of the first 300 segments; the first question holds the others as "unasked"."""
    unasked = tuple((region.segmentation, region.name) for region in record.regions[MOST_PROPOSALS:])
    for index, region in enumerate(record.regions[:MOST_PROPOSALS]):
        if region.name.strip():
            facts = {"name": region.name, "unasked": unasked if index == 0 else ()}
            yield region_question(record, index, image_path, text, spoken(region.name), **facts)


def score_by_similarity(material: Material, scoring: Scoring) -> None:
    """PQ, AP, mIoU and the share of right classes, with classes by SentenceBERT."""
    if material.options.sentence_bert is None:
        scoring.not_measured |= dict.fromkeys(MEASURES, NO_CLASSES)
        return
    from eval.sentence_bert import SentenceBert

    questions = material.given.questions
    encoder = SentenceBert.from_pretrained(material.options.sentence_bert)
    vocabulary: Vocabulary = questions[0].facts["vocabulary"]
    probabilities = probabilities_by_similarity(encoder, material.given.texts, vocabulary)
    right = right_classes(questions)
    scoring.measures.append(mean_measure("class_accuracy", (probabilities.argmax(axis=1) == right).astype(float)))
    scoring.chance["class_accuracy"] = 1 / len(vocabulary)
    _score_segments(questions, right, probabilities, scoring)
    scoring.notes["sentence_bert"] = encoder.checksum
    scoring.notes["vocabulary"] = f"{len(vocabulary)} classes of {vocabulary.source}, {len(vocabulary.texts)} texts"


def probabilities_by_similarity(encoder: SentenceBert, answers: Sequence[str], vocabulary: Vocabulary) -> Array:
    """(answers, classes): softmax over the raw cosines of an answer and the best sentence of each class."""
    texts, rows = np.unique([answer.strip() for answer in answers], return_inverse=True)
    sentences = encoder.encode([SENTENCE.format(text) for text in vocabulary.texts])
    cosines = encoder.encode(texts.tolist()) @ sentences.T
    return softmax(vocabulary.best_synonyms(cosines))[rows]


def score_by_likelihood(material: Material, scoring: Scoring) -> None:
    """PQ, AP and mIoU, with classes by the likelihood of the candidates."""
    given = material.given
    probabilities = all_class_probabilities(given.questions, given.predictions)
    _score_segments(given.questions, right_classes(given.questions), probabilities, scoring)


def _score_segments(questions: Sequence[Question], right: np.ndarray, probabilities: Array, scoring: Scoring) -> None:
    vocabulary: Vocabulary = questions[0].facts["vocabulary"]
    # what a class without a word about it is: a thing, so that none of its answers are merged
    things = np.array([vocabulary.is_thing(place) is not False for place in range(len(vocabulary))])
    masks: list[dict[str, Any]] = [question.regions[0] for question in questions]
    images, owners = [question.image for question in questions], list(range(len(questions)))
    classes = right.tolist()
    for owner, question in enumerate(questions):
        for mask, name in question.facts["unasked"]:
            masks.append(mask)
            images.append(question.image)
            owners.append(owner)
            classes += right_classes([_renamed(question, name)]).tolist()
    beyond = len(masks) - len(questions)
    if beyond:
        scoring.notes["unasked_segments"] = f"{beyond} beyond the first {MOST_PROPOSALS} of a picture count as missed"
    all_right = np.array(classes)
    scoring.measures += _panoptic(masks, images, all_right, np.array(owners), probabilities, things, scoring)
    padded = np.concatenate([probabilities, np.full((beyond, len(vocabulary)), np.nan)])
    precision = average_precision(images, masks, all_right, padded, things)
    if precision is None:
        scoring.not_measured["AP"] = "no segment of these data is of a thing that can be counted"
    else:
        values = np.where(things[right], probabilities[np.arange(len(right)), right], 0.0)
        scoring.measures.append(Measure.whole("AP", precision, values))


def _panoptic(
    masks: Sequence[dict[str, Any]],
    images: Sequence[str],
    right: np.ndarray,
    owners: np.ndarray,
    probabilities: Array,
    things: np.ndarray,
    scoring: Scoring,
) -> list[Measure]:
    """PQ and mIoU, which need segments that do not overlap."""
    from pycocotools import mask as mask_utils

    # one by one: pycocotools 2.0.11 takes lists of no more than 255 masks
    areas = np.array([float(mask_utils.area(mask)) for mask in masks])
    members: dict[str, list[int]] = {}
    for segment, image in enumerate(images):
        members.setdefault(image, []).append(segment)
    overlapping = [
        image
        for image, of_image in members.items()
        if areas[of_image].sum() > mask_utils.area(mask_utils.merge([masks[segment] for segment in of_image]))
    ]
    if overlapping:
        reason = (
            f"regions overlap in {len(overlapping)} pictures, the first {overlapping[0]}; prepare panoptic "
            "annotations (sources panoptic, cityscapes)"
        )
        scoring.not_measured |= dict.fromkeys(("PQ", "SQ", "RQ", "mIoU"), reason)
        return []
    answered = np.full(len(masks), -1)
    answered[: len(probabilities)] = probabilities.argmax(axis=1)
    segments = Segments(images, areas, right, answered, owners, things)
    return [*panoptic_measures(segments, len(probabilities)), mean_iou_measure(segments, len(probabilities))]


def _renamed(question: Question, name: str) -> Question:
    return replace(question, facts={**question.facts, "name": name})
