"""What can be said of a scene: referring expressions that fit one object only, and captions of the whole picture."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np

from data_pipelines.synthetic.scenes import Scene, SceneObject

RELATIONS: dict[str, tuple[int, int]] = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
"""Relation -> (axis of (x, y), sign): where the object lies as seen from its anchor."""

EXTREMES: dict[str, tuple[int, int]] = {"leftmost": (0, -1), "rightmost": (0, 1), "topmost": (1, -1), "bottom": (1, 1)}

CLEAR_MARGIN = 0.08
"""A relation holds, or does not, only where positions differ by this share of the picture's shorter side."""

COUNT_WORDS = ("no", "one", "two", "three", "four", "five", "six")

_ADJECTIVES = ("size", "texture", "colour")
_ADJECTIVE_SETS = [chosen for count in range(4) for chosen in combinations(_ADJECTIVES, count)]


def referring_expression(scene: Scene, index: int, rng: np.random.Generator) -> str | None:
    """An expression that fits ``scene.objects[index]`` and nothing else that is drawn.

    Where adjectives alone leave several objects, a relation to another object or an extreme position decides; such
    expressions are preferred, three times in four, to those that adjectives alone make unique. Relations and extremes
    are only used where every object that the adjectives fit clearly stands so or clearly does not.

    Returns:
        The expression, such as "the large striped red triangle left of the ring"; None if there is none.

    """
    target = scene.objects[index]
    plain = plain_descriptions(scene, target)
    relational = _relational_descriptions(scene, target)
    if relational and (not plain or rng.random() < 0.75):
        return relational[rng.integers(len(relational))]
    return plain[rng.integers(len(plain))] if plain else None


def plain_descriptions(scene: Scene, target: SceneObject) -> list[str]:
    """Every "the <size> <texture> <colour> <shape>", adjectives left out or not, that fits the target only."""
    return [
        f"the {_phrase(target, chosen)}"
        for chosen in _ADJECTIVE_SETS
        if all(item is target for item in _fitting(scene, target, chosen))
    ]


def _phrase(item: SceneObject, adjectives: tuple[str, ...]) -> str:
    return " ".join([*(getattr(item, kind) for kind in adjectives), item.shape])


def _fitting(scene: Scene, target: SceneObject, adjectives: tuple[str, ...]) -> list[SceneObject]:
    """Everything drawn that the target's description by these adjectives fits; a speck counts as small."""

    def seen(item: SceneObject, kind: str) -> str:
        value: str = getattr(item, kind)
        return "small" if value == "tiny" else value

    kinds = (*adjectives, "shape")
    return [item for item in scene.everything if all(seen(item, kind) == seen(target, kind) for kind in kinds)]


def _relational_descriptions(scene: Scene, target: SceneObject) -> list[str]:
    """Every expression in which a relation or an extreme is needed to tell the target from what else fits."""
    margin = CLEAR_MARGIN * min(scene.picture.shape[:2])
    expressions = []
    for chosen in _ADJECTIVE_SETS:
        rivals = [item for item in _fitting(scene, target, chosen) if item is not target]
        if not rivals:
            continue
        phrase = _phrase(target, chosen)
        for word, (axis, sign) in EXTREMES.items():
            if all(_lead(target, rival, axis, sign) > margin for rival in rivals):
                expressions.append(f"the {word} {phrase}")
        for anchor in scene.objects:
            if anchor is target or any(anchor is rival for rival in rivals):
                continue
            anchor_phrases = plain_descriptions(scene, anchor)
            for word, (axis, sign) in RELATIONS.items():
                holds = _lead(target, anchor, axis, sign) > margin
                if anchor_phrases and holds and all(_lead(rival, anchor, axis, sign) < -margin for rival in rivals):
                    expressions.append(f"the {phrase} {word} {anchor_phrases[0]}")
    return expressions


def _lead(item: SceneObject, other: SceneObject, axis: int, sign: int) -> float:
    """How far, in source pixels, ``item`` lies beyond ``other`` in a direction."""
    return sign * (item.position[axis] - other.position[axis])


def captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Two captions of the picture: what is in it, and how two of its shapes stand to each other."""
    objects = [scene.objects[index] for index in rng.permutation(len(scene.objects))]
    named = [f"a {item.size} {item.name}" for item in objects]
    listing = f"{', '.join(named[:-1])} and {named[-1]}."
    count = f"{COUNT_WORDS[len(objects)]} shapes"
    margin = CLEAR_MARGIN * min(scene.picture.shape[:2])
    relations = [
        f", with a {first.name} {word} a {second.name}"
        for first, second in permutations(objects, 2)
        for word, (axis, sign) in RELATIONS.items()
        if _lead(first, second, axis, sign) > margin
    ]
    relation = relations[rng.integers(len(relations))] if relations else ""
    return [listing.capitalize(), f"{count}{relation}.".capitalize()]
