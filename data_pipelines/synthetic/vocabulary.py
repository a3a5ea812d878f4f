"""The words that name a region of a synthetic scene, and which of their combinations training never sees."""

from __future__ import annotations

import re
from itertools import product

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS: tuple[str, ...] = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
TEXTURES: tuple[str, ...] = ("solid", "striped", "dotted")
SIZES: tuple[str, ...] = ("large", "small")

Triple = tuple[str, str, str]
"""(texture, colour, shape)"""

TRIPLES: tuple[Triple, ...] = tuple(product(TEXTURES, COLOURS, SHAPES))


def is_held_out(texture: str, colour: str, shape: str) -> bool:
    """Whether this combination is kept out of training and validation scenes.

    One colour of each (texture, shape) pair is held out, 18 of the 144 combinations; every pair of attribute values
    other than these (texture, shape, colour) triples is still seen in training.
    """
    return (COLOURS.index(colour) + SHAPES.index(shape) + 3 * TEXTURES.index(texture)) % len(COLOURS) == 0


SEEN_TRIPLES: tuple[Triple, ...] = tuple(triple for triple in TRIPLES if not is_held_out(*triple))
HELD_OUT_TRIPLES: tuple[Triple, ...] = tuple(triple for triple in TRIPLES if is_held_out(*triple))


def region_name(texture: str, colour: str, shape: str) -> str:
    """The name of a region and of its COCO category, such as "striped red triangle"."""
    return f"{texture} {colour} {shape}"


def category_id(texture: str, colour: str, shape: str) -> int:
    """The id, from 1, of the COCO category of this combination."""
    return TRIPLES.index((texture, colour, shape)) + 1


def attributes_of(name: str) -> tuple[str | None, str | None, str | None]:
    """The (texture, colour, shape) that a free text names: the first word of each kind, None where there is none.

    Case and punctuation do not matter, and a plural "s" is understood: ``attributes_of("Two red stars.")`` is
    ``(None, "red", "star")``.
    """
    words = re.findall(r"[a-z]+", name.lower())

    def first(vocabulary: tuple[str, ...]) -> str | None:
        known = {word: word for word in vocabulary} | {f"{word}s": word for word in vocabulary}
        return next((known[word] for word in words if word in known), None)

    return first(TEXTURES), first(COLOURS), first(SHAPES)
