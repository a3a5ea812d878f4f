"""What the app remembers of a user: the clicks."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from osprey_tp.segmenters import Candidate, Point


@dataclass(frozen=True)
class Selection:
    """The region that one user is pointing at. `path` names the open picture, "" before there is one; `points` are
    (x, y) in source pixels with `labels` true on the object; `chosen` is an index into `candidates`.
    """

    path: str = ""
    points: tuple[Point, ...] = ()
    labels: tuple[bool, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    chosen: int = 0

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """The chosen mask (height, width) in source pixels; None while nothing is selected."""
        return self.candidates[self.chosen].mask if self.candidates else None

    def with_point(self, point: Point, positive: bool) -> "Selection":
        """The same with one more point; its masks are out of date and gone."""
        return replace(self.without_masks(), points=(*self.points, point), labels=(*self.labels, positive))

    def without_last_point(self) -> "Selection":
        """The same before the last point was set."""
        return replace(self.without_masks(), points=self.points[:-1], labels=self.labels[:-1])

    def without_points(self) -> "Selection":
        """Only the picture."""
        return Selection(path=self.path)

    def without_masks(self) -> "Selection":
        """Only the picture and the points."""
        return replace(self, candidates=(), chosen=0)

    def with_candidates(self, candidates: tuple[Candidate, ...]) -> "Selection":
        """The same with new masks, the first of them chosen."""
        return replace(self, candidates=candidates, chosen=0)

    def choosing(self, index: int) -> "Selection":
        """The same with another of its masks. Raises `ValueError` if there is none of that index."""
        if not 0 <= index < len(self.candidates):
            raise ValueError(f"no mask {index + 1}: there are {len(self.candidates)}")
        return replace(self, chosen=index)
