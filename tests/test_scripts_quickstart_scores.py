"""Truth of expressions and captions, held against plain scenes and against what drawn scenes say of themselves."""

import numpy as np
import pytest

from data_pipelines.records import Region
from data_pipelines.synthetic.expressions import captions, referring_expression
from data_pipelines.synthetic.writer import scene_of as drawn_scene
from osprey_tp.masks import to_rle
from scripts.quickstart_scores import Expression, Item, caption_scores, expression_scores

RING = Item("striped red ring", "large", (20.0, 30.0))
CROSS = Item("solid blue cross", "small", (60.0, 90.0))
OTHER_RING = Item("dotted red ring", "small", (90.0, 20.0))
SCENE = [RING, CROSS, OTHER_RING]


@pytest.mark.parametrize(
    ("text", "true_of"),
    [
        ("the striped ring", {RING}),
        ("the red ring", {RING, OTHER_RING}),
        ("the large red ring", {RING}),
        ("the rightmost large ring", {RING}),
        ("the ring left of the solid cross", {RING}),
        ("the ring right of the cross", {OTHER_RING}),
        ("the ring above the blue cross.", {RING, OTHER_RING}),
        ("The rightmost red ring", {OTHER_RING}),
        ("the topmost ring", {OTHER_RING}),
        ("the bottom ring", {RING}),
        ("the cross below the dotted ring", {CROSS}),
        ("the ring left of the star", set()),
        ("the ring left of the ring", {RING}),
        ("the green ring", set()),
    ],
)
def test_expressions_are_held_against_the_scene(text: str, true_of: set[Item]) -> None:
    expression = Expression.parse(text)
    assert expression is not None
    assert {item for item in SCENE if expression.holds(item, SCENE)} == true_of


@pytest.mark.parametrize("text", ["", "ring", "the ring ring", "the red striped ring", "the ring left of", "a ring"])
def test_what_is_no_expression_is_true_of_nothing(text: str) -> None:
    assert Expression.parse(text) is None
    scores = expression_scores([(text, RING, SCENE)])
    assert scores["true"] == scores["unique"] == 0 and scores["placed"] is None


def test_relations_are_compared_with_the_other_items_of_the_scene() -> None:
    scores = expression_scores([("the ring left of the cross", RING, SCENE), ("the topmost ring", RING, SCENE)])
    assert scores == {
        "answers": 2,
        "true": 0.5,
        "unique": 0.5,
        "placing": 2,
        "placed": 0.5,
        "placed_by_chance": pytest.approx((0 + 1 / 2) / 2),
    }


def test_captions_are_compared_with_their_own_and_with_another_scene() -> None:
    said = ["A large striped red ring, a small solid blue star and more.", "Two shapes, a solid blue cross."]
    scores = caption_scores(said, [[RING, CROSS], [CROSS]])
    assert scores["precision"] == pytest.approx(2 / 3)
    assert scores["recall"] == pytest.approx(2 / 3)
    assert scores["precision_by_chance"] == pytest.approx(1 / 3)


def test_what_scenes_say_of_themselves_is_true() -> None:
    rng = np.random.default_rng(0)
    answers, said, described = [], [], []
    for index in range(30):
        scene, _ = drawn_scene("test", index, seed=3)
        items = [Item.of(Region(to_rle(shape.mask, *shape.mask.shape), shape.name)) for shape in scene.everything]
        for number in range(len(scene.objects)):
            text = referring_expression(scene, number, rng)
            if text:
                answers.append((text, items[number - len(scene.objects)], items))
        said.append(captions(scene, rng)[0])
        described.append(items[-len(scene.objects) :])
    scores = expression_scores(answers)
    assert scores["answers"] == len(answers) > 60
    assert scores["true"] > 0.98 and scores["unique"] > 0.98 and scores["placed"] > 0.98
    assert scores["placed_by_chance"] < 0.7
    truth = caption_scores(said, described)
    assert truth["precision"] == truth["recall"] == 1
    assert truth["precision_by_chance"] < 0.2
