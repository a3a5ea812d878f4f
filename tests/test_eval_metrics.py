"""Scores of answers against values worked out by hand, and intervals against theory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.synthetic import vocabulary
from eval.intervals import Estimate, Measure, estimate, mean_measure
from eval.metrics import (
    Answers,
    ScoringOptions,
    by_region_size,
    chance_of_random_names,
    exact_match,
    score,
    semantic_iou,
    summarise,
)
from eval.predictions import Prediction
from eval.profiles import PROFILES
from eval.questions import Question
from eval.tasks import TASKS

CLASSIFICATION = TASKS["referring-classification"]


def answers_of(predictions: list[str], references: list[str], cells: list[float] | None = None) -> Answers:
    questions = [
        asked(f"fake:{number}#1", f"{number}.png", (reference,)) for number, reference in enumerate(references)
    ]
    given = [Prediction(question.id, text) for question, text in zip(questions, predictions, strict=True)]
    return Answers(questions, given, cells or [float("nan")] * len(predictions))


def asked(question_id: str, image: str, references: tuple[str, ...]) -> Question:
    return Question(question_id, image, Path(image), 8, 8, "<mask>?", ({"size": [8, 8], "counts": ""},), references)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("striped red triangle", "striped red triangle", 1.0),
        ("red striped triangle", "striped red triangle", 1.0),
        ("a red triangle", "striped red triangle", 2 / 4),
        ("Red Triangle", "striped red triangle", 2 / 3),
        ("dog dog dog", "dog", 1.0),
        ("cat", "dog", 0.0),
        ("", "dog", 0.0),
        ("", "", 0.0),
    ],
)
def test_semantic_iou_by_hand(answer: str, reference: str, expected: float) -> None:
    assert semantic_iou(answer, reference) == pytest.approx(expected)


def test_exact_match_minds_order_and_not_case() -> None:
    assert exact_match("Red  ring", "red ring") == 1
    assert exact_match("ring red", "red ring") == 0


@pytest.mark.parametrize(
    ("profile", "answer", "normalised"),
    [
        ("osprey", " Trash_can. ", "Trash_can "),
        ("osprey", "The category is: dog, brown.", " dog  brown "),
        ("osprey", "car:wheel:rim", "wheel"),
        ("pixelrefer", "Car:Wheel (rim)_x.", "car wheel  rim  x"),
        ("clean", "Ｃar: the Wheel-rim!", "car the wheel rim"),
        ("clean", "Straße", "strasse"),
    ],
)
def test_category_answers_by_profile(profile: str, answer: str, normalised: str) -> None:
    assert PROFILES[profile].category_answer(answer) == normalised


@pytest.mark.parametrize(
    ("profile", "reference", "normalised"),
    [("osprey", "Car_(auto):Wheel", "Car (auto) Wheel"), ("pixelrefer", "Car_(auto):Wheel", "car  auto  wheel")],
)
def test_category_references_by_profile(profile: str, reference: str, normalised: str) -> None:
    assert PROFILES[profile].category_reference(reference) == normalised


def test_caption_answers_by_profile() -> None:
    assert PROFILES["osprey"].caption_answer(" Caption: a dog.It runs") == " a dog.\nIt runs"
    assert PROFILES["pixelrefer"].caption_answer("word " * 150) == " ".join(["word"] * 100)
    assert PROFILES["clean"].caption_answer(" A dog:\n it runs. ") == "A dog: it runs."


def test_right_answers_of_parts_are_scored_half_by_osprey_only() -> None:
    answers = answers_of(["car:wheel"], ["car:wheel"])
    values = {
        profile: summarise(score(CLASSIFICATION, answers, ScoringOptions(profile)), answers) for profile in PROFILES
    }
    assert {profile: table["semantic_iou"]["value"] for profile, table in values.items()} == {
        "osprey": 0.5,
        "pixelrefer": 1.0,
        "clean": 1.0,
    }


def test_perfect_answers_score_one_everywhere() -> None:
    names = [vocabulary.region_name(*triple) for triple in vocabulary.TRIPLES]
    answers = answers_of(names, names)
    table = summarise(score(CLASSIFICATION, answers, ScoringOptions("clean")), answers)
    assert set(table) == {"semantic_iou", "exact_match", "texture", "colour", "shape", "all_attributes"}
    assert all(row["value"] == row["low"] == row["high"] == 1 for row in table.values())
    assert all(row["regions"] == row["images"] == 144 for row in table.values())


def test_answers_in_random_order_score_chance() -> None:
    names = [vocabulary.region_name(*triple) for triple in vocabulary.TRIPLES] * 20
    shuffled = list(np.random.default_rng(0).permutation(names))
    answers = answers_of(shuffled, names)
    table = summarise(score(CLASSIFICATION, answers, ScoringOptions("clean")), answers)
    assert [round(table[name]["chance"], 4) for name in ("texture", "colour", "shape", "all_attributes")] == [
        0.3333,
        0.125,
        0.1667,
        0.0069,
    ]
    for name, row in table.items():
        assert row["value"] == pytest.approx(row["chance"], abs=0.02), name
        assert row["low"] <= row["value"] <= row["high"]


def test_attributes_are_read_one_by_one() -> None:
    answers = answers_of(
        ["A striped RED ring.", "dotted blue star", "no idea", ""],
        ["striped red circle", "dotted blue star", "solid pink cross", "solid pink cross"],
    )
    table = summarise(score(CLASSIFICATION, answers, ScoringOptions("clean")), answers)
    values = {name: table[name]["value"] for name in ("texture", "colour", "shape", "all_attributes")}
    assert values == {"texture": 0.5, "colour": 0.5, "shape": 0.25, "all_attributes": 0.25}


def test_names_that_are_not_synthetic_have_no_attributes() -> None:
    answers = answers_of(["star", "striped red ring"], ["star", "striped red ring"])
    table = summarise(score(CLASSIFICATION, answers, ScoringOptions("clean")), answers)
    assert table["semantic_iou"]["regions"] == 2
    assert table["colour"]["regions"] == 1
    photograph = answers_of(["orange"], ["orange"])
    assert "colour" not in summarise(score(CLASSIFICATION, photograph, ScoringOptions("clean")), photograph)


def test_the_best_of_several_references_counts() -> None:
    answers = Answers(
        [asked("a#1", "a.png", ("blue cross", "red ring", "red"))], [Prediction("a#1", "red ring")], [1.0]
    )
    assert summarise(score(CLASSIFICATION, answers, ScoringOptions("clean")), answers)["exact_match"]["value"] == 1


@given(st.lists(st.lists(st.sampled_from(["a b", "a c", "d", "b"]), min_size=1, max_size=2), min_size=1, max_size=6))
def test_chance_is_the_mean_over_all_pairs(references: list[list[str]]) -> None:
    pairs = [
        max(semantic_iou(drawn[0], reference) for reference in asked) for drawn in references for asked in references
    ]
    assert chance_of_random_names(references, semantic_iou) == pytest.approx(sum(pairs) / len(pairs))


def test_sizes_are_put_in_octaves_of_cells() -> None:
    answers = answers_of(["a", "a", "x", "a", "x"], ["a"] * 5, [0.2, 1.0, 1.9, 700.0, 5000.0])
    rows = by_region_size(score(CLASSIFICATION, answers, ScoringOptions("clean")), answers)["exact_match"]
    found = [(row["from_cells"], row["to_cells"], row["value"], row["regions"]) for row in rows]
    assert found == [(0, 1, 1.0, 1), (1, 4, 0.5, 2), (256, 1024, 1.0, 1), (1024, None, 0.0, 1)]


def test_sizes_that_are_not_known_make_no_table() -> None:
    answers = answers_of(["a"], ["a"])
    assert by_region_size(score(CLASSIFICATION, answers, ScoringOptions("clean")), answers) == {}


def test_interval_of_a_share_is_that_of_theory() -> None:
    count, share = 2000, 0.3
    values = np.random.default_rng(1).random(count) < share
    found = estimate(mean_measure("share", values), [str(number) for number in range(count)])
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    half_width = 1.96 * np.sqrt(found.value * (1 - found.value) / count)
    assert found.high - found.value == pytest.approx(half_width, rel=0.1)
    assert found.value - found.low == pytest.approx(half_width, rel=0.1)


def test_more_regions_of_the_same_images_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(2).random(300) < 0.5
    images = [str(number) for number in range(300)]
    once = estimate(mean_measure("share", values), images)
    tenfold = estimate(mean_measure("share", np.repeat(values, 10)), list(np.repeat(images, 10)))
    assert once is not None
    assert tenfold is not None
    assert (tenfold.low, tenfold.high) == (once.low, once.high)
    assert tenfold.regions == 3000
    assert tenfold.images == 300


def test_one_image_has_no_interval() -> None:
    found = estimate(mean_measure("share", [1.0, 0.0]), ["a", "a"])
    assert found is not None
    assert (found.value, found.low, found.high) == (0.5, None, None)


def test_a_formula_of_sums_is_not_a_mean_of_ratios() -> None:
    ratio = Measure("ratio", np.array([[1.0, 1.0], [1.0, 9.0]]), lambda sums: sums[..., 0] / sums[..., 1], np.ones(2))
    found = estimate(ratio, ["a", "b"])
    assert found is not None
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((1 / 9, 1.0))


def test_a_whole_score_has_its_name_and_no_interval() -> None:
    whole = Measure.whole("AP", 0.25, np.array([1.0, np.nan, 0.0]))
    assert (whole.name, whole.statistics.shape) == ("AP", (3, 1))
    assert whole.formula(np.zeros((5, 2, 1))).tolist() == [[0.25] * 2] * 5
    assert estimate(whole, ["a", "b", "c"]) == Estimate(0.25, None, None, 2, 2)
    assert estimate(whole, ["a", "b", "c"], np.ones(3, bool)) is None


def test_without_answers_or_encoder_the_reason_is_given(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no answers"):
        score(CLASSIFICATION, answers_of([], []), ScoringOptions("clean"))
    one = answers_of(["a"], ["a"])
    assert "--sentence-bert" in score(CLASSIFICATION, one, ScoringOptions("clean")).not_measured["semantic_similarity"]
    with pytest.raises(ValueError, match=r"config\.json"):
        score(CLASSIFICATION, one, ScoringOptions(sentence_bert=tmp_path))
