"""One scene: objects placed, painted and masked, from one random generator."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data_pipelines.synthetic.painting import add_noise, paint_background, paint_shape
from data_pipelines.synthetic.shapes import Polygon, outline, rasterise
from data_pipelines.synthetic.vocabulary import SEEN_TRIPLES, Triple, region_name

DEFAULT_SIZE = (128, 192)
MIN_SIDE = 64
"""Smallest height and width of a scene in pixels: below, shapes cannot be told apart."""

MIN_OBJECTS, MAX_OBJECTS = 3, 6
MIN_VISIBLE = 0.75
"""No object is covered so far that less than this share of it shows."""

RADIUS_SHARES = {"large": (0.165, 0.21), "small": (0.09, 0.115), "tiny": (0.018, 0.03)}
"""Radius as a share of the picture's shorter side."""

CROWD_CHANCE, TINY_CHANCE = 0.08, 0.06

ALIKE_CHANCE = 0.06
"""How often an object is made like one that is already there. Few are, so that what a scene holds says little about
one of its objects: a model that cannot see its region should be right as often as by chance. Most lookalikes come by
chance.
"""


@dataclass(frozen=True)
class SceneObject:
    """One shape of a scene. ``mask`` (height, width) is what shows of it; ``centre`` is (x, y) in source pixels."""

    texture: str
    colour: str
    shape: str
    size: str
    centre: tuple[float, float]
    radius: float
    rotation: float
    polygons: list[Polygon] = field(repr=False)
    full_mask: NDArray[np.bool_] = field(repr=False)
    mask: NDArray[np.bool_] = field(repr=False)

    @property
    def name(self) -> str:
        """Its region name, such as "striped red triangle"."""
        return region_name(self.texture, self.colour, self.shape)

    @property
    def triple(self) -> Triple:
        """(texture, colour, shape)."""
        return self.texture, self.colour, self.shape

    @cached_property
    def position(self) -> tuple[float, float]:
        """(x, y) of the middle of what shows of it, in source pixels."""
        y, x = np.nonzero(self.mask)
        return float(x.mean()), float(y.mean())

    @property
    def is_whole(self) -> bool:
        """Whether nothing covers any part of it."""
        return bool((self.mask == self.full_mask).all())


@dataclass(frozen=True)
class Scene:
    """A picture (height, width, 3) of bytes and what is in it.

    ``objects`` are the nameable ones, front last; ``tiny`` are specks, each an object of a few pixels; ``crowd`` are
    the members of one group (or none) that is annotated as a single crowd region.
    """

    picture: NDArray[np.uint8] = field(repr=False)
    objects: tuple[SceneObject, ...]
    tiny: tuple[SceneObject, ...] = ()
    crowd: tuple[SceneObject, ...] = ()

    @property
    def everything(self) -> tuple[SceneObject, ...]:
        """Every shape that is drawn, back to front."""
        return (*self.crowd, *self.tiny, *self.objects)


def draw_scene(
    rng: np.random.Generator,
    size: tuple[int, int] = DEFAULT_SIZE,
    triples: tuple[Triple, ...] = SEEN_TRIPLES,
    novel_triples: tuple[Triple, ...] = (),
) -> Scene:
    """Draw one scene.

    Args:
        rng: the only source of chance: equal generators draw equal scenes.
        size: (height, width) in pixels.
        triples: combinations that may appear.
        novel_triples: further combinations; if there are any, a third of the objects is drawn from them.

    Raises:
        ValueError: a side is below ``MIN_SIDE``.

    """
    if min(size) < MIN_SIDE:
        raise ValueError(f"a scene of {size[0]}x{size[1]} pixels is too small: both sides must be at least {MIN_SIDE}")
    objects: list[SceneObject] = []
    while len(objects) < MIN_OBJECTS:
        objects = _place_objects(rng, size, triples, novel_triples)
    crowd = _place_crowd(rng, size, triples, objects) if rng.random() < CROWD_CHANCE else []
    tiny = _place_tiny(rng, size, triples, [*objects, *crowd]) if rng.random() < TINY_CHANCE else []
    picture = paint_background(rng, *size)
    for item in (*crowd, *tiny, *objects):
        paint_shape(rng, picture, item.polygons, item.texture, item.colour, item.radius)
    return Scene(add_noise(rng, picture), tuple(objects), tuple(tiny), tuple(crowd))


def _new_object(
    rng: np.random.Generator,
    size: tuple[int, int],
    triple: Triple,
    kind: str,
    near: tuple[float, float] | None = None,
    spread: float = 0.0,
) -> SceneObject:
    """Make an object anywhere inside the picture, or about ``near`` at a distance of up to ``spread`` pixels."""
    height, width = size
    low, high = RADIUS_SHARES[kind]
    radius = rng.uniform(low, high) * min(size)
    margin = 1.2 * radius + 1
    if near is None:
        x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
    else:
        angle, distance = rng.uniform(0, 2 * np.pi), spread * rng.uniform(0.75, 1.0)
        x = float(np.clip(near[0] + distance * np.cos(angle), margin, width - margin))
        y = float(np.clip(near[1] + distance * np.sin(angle), margin, height - margin))
    rotation = rng.uniform(0, 2 * np.pi)
    polygons = outline(triple[2], (x, y), radius, rotation)
    mask = rasterise(polygons, height, width)
    return SceneObject(*triple, kind, (x, y), radius, rotation, polygons, mask, mask)


def _place_objects(
    rng: np.random.Generator, size: tuple[int, int], triples: tuple[Triple, ...], novel: tuple[Triple, ...]
) -> list[SceneObject]:
    """Place up to ``MAX_OBJECTS`` objects, each tried in a few places until nothing is hidden too far."""
    objects: list[SceneObject] = []
    for _ in range(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1)):
        triple = _choose_triple(rng, triples, novel, objects)
        kind = "large" if rng.random() < 0.5 else "small"
        for _ in range(12):
            neighbour = objects[rng.integers(len(objects))] if objects and rng.random() < 0.35 else None
            spread = 0.9 * (neighbour.radius + RADIUS_SHARES[kind][1] * min(size)) if neighbour else 0.0
            candidate = _new_object(rng, size, triple, kind, neighbour.centre if neighbour else None, spread)
            placed = _cover(objects, candidate)
            if placed is not None:
                objects = placed
                break
    return objects


def _choose_triple(
    rng: np.random.Generator, triples: tuple[Triple, ...], novel: tuple[Triple, ...], objects: list[SceneObject]
) -> Triple:
    """Choose a combination; now and then one that shares shape, or shape and colour, with an object already there."""
    pool = novel if novel and rng.random() < 1 / 3 else triples
    if objects and rng.random() < ALIKE_CHANCE:
        model = objects[rng.integers(len(objects))]
        same_colour = rng.random() < 0.5
        alike = [t for t in pool if t[2] == model.shape and (t[1] == model.colour or not same_colour)]
        pool = tuple(alike) or pool
    return pool[rng.integers(len(pool))]


def _cover(objects: list[SceneObject], candidate: SceneObject) -> list[SceneObject] | None:
    """Put the candidate in front of the objects; None if that hides one of them too far."""
    covered = []
    for item in objects:
        mask = item.mask & ~candidate.full_mask
        if mask.sum() < MIN_VISIBLE * item.full_mask.sum():
            return None
        covered.append(replace(item, mask=mask))
    return [*covered, candidate]


def _is_free(item: SceneObject, others: list[SceneObject]) -> bool:
    return bool(item.mask.any()) and not any((item.mask & other.full_mask).any() for other in others)


def _place_crowd(
    rng: np.random.Generator, size: tuple[int, int], triples: tuple[Triple, ...], objects: list[SceneObject]
) -> list[SceneObject]:
    """A group of at least four tiny shapes of one kind where no object is; empty if there is no room."""
    triple = triples[rng.integers(len(triples))]
    middle = (rng.uniform(0.15, 0.85) * size[1], rng.uniform(0.15, 0.85) * size[0])
    members: list[SceneObject] = []
    for _ in range(14):
        member = _new_object(rng, size, triple, "tiny", middle, rng.uniform(0, 0.16) * min(size))
        if _is_free(member, [*objects, *members]):
            members.append(member)
    return members if len(members) >= 4 else []


def _place_tiny(
    rng: np.random.Generator, size: tuple[int, int], triples: tuple[Triple, ...], others: list[SceneObject]
) -> list[SceneObject]:
    """One tiny shape where nothing else is; empty if there is no room."""
    for _ in range(10):
        speck = _new_object(rng, size, triples[rng.integers(len(triples))], "tiny")
        if _is_free(speck, others):
            return [speck]
    return []
