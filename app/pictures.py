"""Pictures that were read, encoded and embedded once."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from osprey_tp.segmenters import SegmentedImage
from osprey_tp.sessions import ImageSession


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
