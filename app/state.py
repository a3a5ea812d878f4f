"""What the app remembers: the user's clicks, and pictures that were read, encoded and embedded once."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from osprey_tp.segmenters import Candidate, Point, SegmentedImage
from osprey_tp.sessions import ImageSession


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


@dataclass(frozen=True)
class OpenPicture:
    """A picture in RGB with everything that depends on it alone: what is shown, its embedding, its encoding."""

    image: Image.Image
    shown: Image.Image
    segmented: SegmentedImage
    session: ImageSession


class PictureCache:
    """Open pictures by (user, path), the most recently used ones; safe to use from several threads."""

    def __init__(self, open_picture: Callable[[str], OpenPicture], capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a cache of {capacity} pictures cannot hold the one in use; give 1 or more")
        self._open_picture = open_picture
        self._capacity = capacity
        self._pictures: OrderedDict[tuple[str, str], OpenPicture] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, user: str, path: str) -> OpenPicture:
        """The user's picture; opened now if it is not in the cache any more. Raises what opening raises."""
        with self._lock:
            if (user, path) not in self._pictures:
                picture = self._open_picture(path)
                while len(self._pictures) >= self._capacity:
                    self._pictures.popitem(last=False)
                self._pictures[user, path] = picture
            self._pictures.move_to_end((user, path))
            return self._pictures[user, path]

    def forget(self, user: str) -> None:
        """Drops the pictures of a user who has left."""
        with self._lock:
            for key in [key for key in self._pictures if key[0] == user]:
                del self._pictures[key]

    def __contains__(self, key: tuple[str, str]) -> bool:
        """Whether a (user, path) is open."""
        return key in self._pictures

    def __len__(self) -> int:
        """How many pictures are open."""
        return len(self._pictures)
