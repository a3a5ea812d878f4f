"""Find: the regions that an expression means, by the protocol of the evaluation's grounding task."""

import math
import types

import numpy as np
import pytest
from PIL import Image

from app.find import LEAST_STRENGTH, best_matches, find
from app.find_tab import FAINTEST, Finding, candidates_of, finding_overlay, match_rows
from app.found import Found
from app.state import Kept, Shape
from eval.asking import Asking
from eval.grounding import choose_regions
from eval.tasks import TASKS
from osprey_tp.masks import to_mask, to_rle

from .tiny_models import tiny_describer

HEIGHT, WIDTH = 60, 80


def rle(x0, y0, x1, y1):
    return to_rle({"box": [x0, y0, x1, y1]}, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def session():
    return tiny_describer().open(Image.effect_noise((WIDTH, HEIGHT), 90).convert("RGB"))


def test_the_evaluation_of_grounding_says_the_same(session):
    regions = [rle(index, index, index + 30, index + 20) for index in range(0, 30, 5)]
    matches = find(session, "  a cup\n on the left ", regions, HEIGHT, WIDTH)
    task = TASKS["grounding"]
    question = types.SimpleNamespace(
        text=task.question,
        facts={"candidates": regions, "expression": "a cup on the left"},
        height=HEIGHT,
        width=WIDTH,
        **dict.fromkeys(("id", "references", "image", "area_share")),
    )
    item = types.SimpleNamespace(question=question, shown=question)
    (prediction,) = choose_regions(session, [item], Asking(4, 1))
    assert prediction.prediction == str(matches[0].index + 1)
    evidence = {match.index: match.evidence for match in matches}
    assert [evidence[index] for index in range(len(regions))] == pytest.approx(prediction.scores, abs=1e-4)
    assert len(set(prediction.scores)) > 1


class Session:
    """Likelihoods of its own; the last is the whole picture's."""

    def __init__(self, *likelihoods):
        self.likelihoods = np.array(likelihoods, dtype=float)[:, None]

    def score(self, texts, regions, question):
        assert texts == ["a cup"] and len(regions) == len(self.likelihoods)
        assert regions[-1] == {"box": [0, 0, WIDTH, HEIGHT]}
        return self.likelihoods


def test_scores_are_shares_and_evidence_over_the_whole_picture():
    matches = find(Session(-12, -10, -10 + math.log(0.5), -900, -11), "a cup", ["a", "b", "c", "d"], HEIGHT, WIDTH)
    assert [match.index for match in matches] == [1, 2, 0, 3]
    assert matches[0].log_likelihood == -10 and matches[0].evidence == 1 and matches[0].strength == 1
    assert matches[1].strength == pytest.approx(0.5) and matches[1].share == pytest.approx(matches[0].share / 2)
    assert sum(match.share for match in matches) == pytest.approx(1)
    assert [match.index for match in best_matches(matches)] == [1, 2, 0]
    assert matches[3].strength < LEAST_STRENGTH and len(best_matches(matches, most=1)) == 1


@pytest.mark.parametrize(
    ("expression", "regions", "message"),
    [
        ("  ", ["a"], "write what to look for first"),
        ("x" * 201, ["a"], "201 characters, the limit is 200"),
        ("a cup", [], "no region to look at"),
    ],
)
def test_what_cannot_be_looked_for_is_said(expression, regions, message):
    with pytest.raises(ValueError, match=message):
        find(Session(0), expression, regions, HEIGHT, WIDTH)


def test_a_region_that_is_kept_is_no_second_candidate():
    boxes = [(0, 0, 20, 20), (30, 30, 50, 50)]
    found = [Found.of(Shape.of(to_mask(rle(*box), HEIGHT, WIDTH))) for box in boxes]
    kept = Kept().adding(Shape.of(to_mask(rle(0, 0, 20, 19), HEIGHT, WIDTH)))
    assert [candidate.name for candidate in candidates_of(found, kept)] == ["region1", "2"]
    assert [candidate.name for candidate in candidates_of(found, Kept())] == ["1", "2"]
    assert [candidate.name for candidate in candidates_of([], kept)] == ["region1"]


def test_the_best_matches_light_up_by_their_strength():
    found = [Found.of(Shape.of(to_mask(rle(x, 0, x + 9, 9), HEIGHT, WIDTH))) for x in (0, 20, 40, 60)]
    regions = [region.shape.rle for region in found]
    matches = find(Session(-12, -10, -10 + math.log(0.5), -900, -11), "a cup", regions, HEIGHT, WIDTH)
    finding = Finding("a.png", tuple(candidates_of(found, Kept())), tuple(matches))
    drawn = finding_overlay(finding).regions
    assert [region.strength for region in drawn] == pytest.approx([FAINTEST, 0.5, 1])
    assert drawn[-1].name.startswith("2") and "+1.00 nats" in drawn[-1].note
    assert [row.cells[:2] for row in match_rows(finding)] == [(1, "2"), (2, "3"), (3, "1"), (4, "4")]
    assert [region.name for region in finding_overlay(finding, rank=4).regions] == ["4 0%"]
    assert not finding_overlay(Finding()).regions
