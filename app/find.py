"""Find: which regions of a picture an expression means.

```
expression, regions ─► log p(expression | region), one question about each ─► minus log p(expression | whole picture)
```

The protocol is that of `python -m eval grounding`: the same question, the likelihood summed over the tokens of the
expression and its end, and the whole picture as the region that shows nothing. The last is the same for all regions
and changes no order; it makes the number the evidence of a region for the expression, which can be compared between
expressions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from app.found import Found
from osprey_tp.mask_selection import SAME_OBJECT_IOU, mask_ious
from osprey_tp.prompts import SHORT_DESCRIPTION_QUESTION

LONGEST_EXPRESSION = 200  # characters
SHOWN_MATCHES = 5
LEAST_STRENGTH = 0.05


class Scored(Protocol):
    """What finding needs of `osprey_tp.sessions.ImageSession`."""

    def score(self, texts: Sequence[str], regions: Sequence[Any], question: str) -> NDArray[np.float64]:
        """(regions, texts) log-likelihoods."""
        ...


@dataclass(frozen=True)
class Match:
    """How well a region fits an expression.

    Attributes:
        index: Of the region among the candidates.
        log_likelihood: Of the expression as the answer about the region, in nats.
        evidence: The same less that of the whole picture; above 0 the region makes the expression likelier.
        share: Of the region in the softmax of all candidates' log-likelihoods; they add up to 1.
        strength: Its share over that of the best one, 0 to 1.
    """

    index: int
    log_likelihood: float
    evidence: float
    share: float
    strength: float


def find(session: Scored, expression: str, regions: Sequence[Any], height: int, width: int) -> list[Match]:
    """How well each region of a picture fits an expression, best first.

    Args:
        session: Of the picture.
        expression: What is looked for, in words.
        regions: Candidates, in any form of `osprey_tp.masks`.
        height: Of the picture in source pixels.
        width: Of the picture in source pixels.

    Raises:
        ValueError: if the expression is empty or too long, or there are no candidates.
    """
    expression = " ".join(expression.split())
    if not expression:
        raise ValueError("write what to look for first, such as: the red cup on the left")
    if len(expression) > LONGEST_EXPRESSION:
        raise ValueError(f"the expression has {len(expression)} characters, the limit is {LONGEST_EXPRESSION}")
    if not regions:
        raise ValueError("there is no region to look at: nothing was found in this picture, and no region is kept")
    whole = {"box": [0, 0, width, height]}
    likelihoods = session.score([expression], [*regions, whole], SHORT_DESCRIPTION_QUESTION)[:, 0]
    candidates, prior = likelihoods[:-1], likelihoods[-1]
    strengths = np.exp(candidates - candidates.max())
    matches = [
        Match(index, float(likelihood), float(likelihood - prior), float(strength / strengths.sum()), float(strength))
        for index, (likelihood, strength) in enumerate(zip(candidates, strengths, strict=True))
    ]
    return sorted(matches, key=lambda match: -match.log_likelihood)


def best_matches(matches: Sequence[Match], most: int = SHOWN_MATCHES) -> list[Match]:
    """Those of sorted matches that are worth showing: the best one, and others that come near it."""
    return [match for match in matches[:most] if match.strength >= LEAST_STRENGTH]


def overlap_kept(found: Sequence[Found], kept: Sequence[dict[str, Any]]) -> list[bool]:
    """Whether each region found is one that the user keeps already (run-length encodings)."""
    overlaps = mask_ious([region.shape.rle for region in found], kept)
    return [bool((row >= SAME_OBJECT_IOU).any()) for row in overlaps]
