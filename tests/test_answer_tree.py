"""Candidate answers as one tree: the same log-likelihoods as reading every text alone, whatever is packed with it."""

from __future__ import annotations

import numpy as np
import pytest

from osprey_tp import answer_tree as module
from osprey_tp.answer_tree import AnswerTree
from osprey_tp.processing import IGNORED_LABEL

from .test_sessions import QUESTION, families, random_picture
from .tiny_models import tiny_describer

TEXTS = ["a red ring", "a red star", "blue", "the large picture of a region", "a", "blue", "a red ring."]


def test_what_texts_share_is_one_node() -> None:
    rows = [[7, 8, 1, 2, 9], [7, 8, 1, 3, 9], [7, 8, 4, 9]]
    labels = [[IGNORED_LABEL, IGNORED_LABEL, *row[2:]] for row in rows]
    tree = AnswerTree.build(rows, labels)
    (part,) = tree.parts
    assert tree.lengths.tolist() == [3, 3, 2]
    assert part.texts == (0, 1, 2)
    assert part.tokens.tolist() == [7, 8, 1, 2, 9, 3, 9, 4, 9]
    assert part.parents.tolist() == [-1, 0, 1, 2, 3, 2, 5, 1, 7]
    assert part.depths.tolist() == [0, 1, 2, 3, 4, 3, 4, 2, 3]
    assert part.answers == ((2, 3, 4), (2, 5, 6), (7, 8))
    assert [np.flatnonzero(row).tolist() for row in part.ancestors[[4, 6, 8]]] == [
        [0, 1, 2, 3, 4],
        [0, 1, 2, 5, 6],
        [0, 1, 7, 8],
    ]


def test_a_long_tree_is_cut_and_every_text_is_in_one_part() -> None:
    rows = [[7, 8, number // 4, number, 9] for number in range(16)]
    labels = [[IGNORED_LABEL, IGNORED_LABEL, *row[2:]] for row in rows]
    tree = AnswerTree.build(rows, labels, most=12)
    assert sorted(text for part in tree.parts for text in part.texts) == list(range(16))
    assert len(tree.parts) > 2
    assert max(len(part.tokens) for part in tree.parts) <= 12
    alone = AnswerTree.build(rows, labels, most=1)
    assert len(alone.parts) == 16


@families
def test_packed_scores_are_those_of_pairs(tower: str, language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    describer = tiny_describer(tower, language)
    image, masks = random_picture(5)
    session = describer.open(image)
    packed = session.score(TEXTS, masks, QUESTION)
    assert len(np.unique(packed.round(6))) > len(masks) * 4
    np.testing.assert_allclose(packed[:, 2], packed[:, 5])
    monkeypatch.setattr("osprey_tp.encoded_picture.can_pack", lambda *_: False)
    np.testing.assert_allclose(describer.open(image).score(TEXTS, masks, QUESTION, batch_size=3), packed, rtol=1e-5)
    monkeypatch.undo()
    monkeypatch.setattr(module, "MOST_TOKENS", 70)
    np.testing.assert_allclose(describer.open(image).score(TEXTS, masks, QUESTION), packed, rtol=1e-5)


def test_scores_a_token_are_means_over_the_text_and_its_end() -> None:
    describer = tiny_describer()
    image, masks = random_picture(5)
    session = describer.open(image)
    sums, means = (session.score(TEXTS, masks[:2], QUESTION, per_token=each) for each in (False, True))
    tokens = [
        len(describer.processor.tokenizer(f"ASSISTANT: {text}").input_ids)
        - len(describer.processor.tokenizer("ASSISTANT:").input_ids)
        for text in TEXTS
    ]
    np.testing.assert_allclose(sums / means, np.tile(np.array(tokens) + 1, (2, 1)))


def test_asking_after_scoring_is_asking_alone() -> None:
    describer = tiny_describer()
    image, masks = random_picture(6)
    fresh = describer.open(image).ask(masks, QUESTION, max_new_tokens=6)
    session = describer.open(image)
    first = session.score(TEXTS, masks, QUESTION)
    assert session.ask(masks, QUESTION, max_new_tokens=6) == fresh
    np.testing.assert_array_equal(session.score(TEXTS, masks, QUESTION), first)


def test_nothing_to_score_is_no_error() -> None:
    image, masks = random_picture(6)
    session = tiny_describer().open(image)
    assert session.score([], masks, QUESTION).shape == (len(masks), 0)
    assert session.score(TEXTS, [], QUESTION).shape == (0, len(TEXTS))


def test_a_question_without_a_region_cannot_be_scored() -> None:
    image, masks = random_picture(6)
    with pytest.raises(ValueError, match="0 <mask> placeholders"):
        tiny_describer().open(image).score(TEXTS, masks, "what is it")
