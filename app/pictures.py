"""Pictures that were read, encoded and embedded once, within limits of number and memory.

```
get(user, path) ─► key: the file's bytes ─► OpenPicture, shared by all users of the same file
forget(user), evict_idle() ─► what nobody uses any more goes
```

What a user says or selects is never kept here: the same picture may be another user's.
"""

import hashlib
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from osprey_tp.files import sha256_of
from osprey_tp.images import MAX_PIXELS, load_image
from osprey_tp.segmenters import SegmentedImage, Segmenter
from osprey_tp.sessions import ImageSession

SHOWN_SIDES = (720, 1600)  # the longer side of a picture as shown, at least and at most, in pixels

_GONE = (-1, -1)


class Describer(Protocol):
    """What the app needs of `osprey_tp.describer.RegionDescriber`."""

    def open(self, image: Any) -> ImageSession:
        """Encodes a picture once and returns the session that answers about it."""
        ...


class OpenPicture:
    """A picture in RGB with everything that depends on it alone, each made when it is first needed.

    Attributes:
        image: In source pixels.
    """

    def __init__(self, image: Image.Image, describer: Describer, segmenter: Segmenter) -> None:
        self.image = image
        self._describer, self._segmenter = describer, segmenter

    @classmethod
    def read(cls, path: str, describer: Describer, segmenter: Segmenter, max_pixels: int = MAX_PIXELS) -> "OpenPicture":
        """Opens a file. Raises `ValueError` as `load_image`."""
        return cls(load_image(path, max_pixels), describer, segmenter)

    @cached_property
    def shown(self) -> Image.Image:
        """The picture in the size in which it is shown."""
        longer = max(self.image.size)
        scale = min(max(longer, SHOWN_SIDES[0]), SHOWN_SIDES[1]) / longer
        size = (max(1, round(self.image.width * scale)), max(1, round(self.image.height * scale)))
        return self.image.resize(size, Image.Resampling.LANCZOS)

    @cached_property
    def segmented(self) -> SegmentedImage:
        """The picture as the segmenter has taken it in. Model work."""
        return self._segmenter.open(self.image)

    @cached_property
    def session(self) -> ImageSession:
        """The picture as the model has encoded it. Model work. Use nothing of it that keeps turns of a chat."""
        return self._describer.open(self.image)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the picture, and what has been made of it so far, hold."""
        made = vars(self)
        pictures = [self.image, *([made["shown"]] if "shown" in made else [])]
        pixels = sum(3 * picture.width * picture.height for picture in pictures)
        # A segmenter or a session that cannot tell its size counts nothing.
        return pixels + sum(getattr(made.get(part), "nbytes", 0) for part in ("segmented", "session"))


class PictureCache:
    """Open pictures, the most recently used ones; safe to use from several threads.

    A picture is known by the bytes of its file. While one is being opened only those who want the same one wait.

    Args:
        open_picture: Opens the file of a path.
        capacity: Pictures that may be open.
        most_bytes: That all open pictures may hold together; the one asked for last stays open even so.
        idle_seconds: After which `evict_idle` closes a picture that nobody has asked for.
    """

    def __init__(
        self,
        open_picture: Callable[[str], OpenPicture],
        capacity: int,
        most_bytes: float = float("inf"),
        idle_seconds: float = float("inf"),
    ) -> None:
        if capacity < 1:
            raise ValueError(f"a cache of {capacity} pictures cannot hold the one in use; give 1 or more")
        self._open_picture = open_picture
        self._capacity, self._most_bytes, self._idle_seconds = capacity, most_bytes, idle_seconds
        self._lock = threading.Lock()
        self._pictures: OrderedDict[str, OpenPicture] = OrderedDict()  # by digest, used last comes last
        self._used: dict[str, float] = {}  # when, by time.monotonic()
        self._opening: dict[str, Future[OpenPicture]] = {}
        self._files: dict[tuple[str, str], tuple[str, tuple[int, int]]] = {}  # (user, path): digest, stamp of the file

    def get(self, user: str, path: str) -> OpenPicture:
        """The user's picture; opened now if it is not in the cache any more. Raises what opening raises."""
        digest = self._digest(user, path)
        picture = self._get(digest, lambda: self._open_picture(path))
        with self._lock:
            if digest in self._pictures:
                self._files[user, path] = (digest, _stamp(path))
        return picture

    def get_bytes(self, content: bytes) -> OpenPicture:
        """The picture in a file of this content, nobody's in particular. Raises what opening raises."""

        def open_content() -> OpenPicture:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "picture"
                path.write_bytes(content)
                try:
                    return self._open_picture(str(path))
                except ValueError as error:
                    reason = str(error).replace(f"picture {path}", "the picture").replace(repr(str(path)), "it")
                    raise ValueError(reason) from error

        return self._get(hashlib.sha256(content).hexdigest(), open_content)

    def forget(self, user: str) -> None:
        """Closes the pictures of a user who has left, those that are other users' too excepted."""
        with self._lock:
            left = {digest for (owner, _), (digest, _) in self._files.items() if owner == user}
            self._files = {key: file for key, file in self._files.items() if key[0] != user}
            for digest in left - {digest for digest, _ in self._files.values()}:
                self._close(digest)

    def evict_idle(self) -> None:
        """Closes the pictures that nobody has asked for in a while."""
        with self._lock:
            oldest = time.monotonic() - self._idle_seconds
            for digest in [digest for digest, used in self._used.items() if used < oldest]:
                self._close(digest)

    @property
    def nbytes(self) -> int:
        """Bytes that the open pictures hold."""
        with self._lock:
            return self._held()

    def __contains__(self, key: tuple[str, str]) -> bool:
        """Whether a (user, path) is open."""
        with self._lock:
            return key in self._files

    def __len__(self) -> int:
        """How many pictures are open."""
        return len(self._pictures)

    def _digest(self, user: str, path: str) -> str:
        """Of the file's bytes, read again only if the file has changed; of an open file that is gone, as it was."""
        with self._lock:
            known = self._files.get((user, path))
        if known and _stamp(path) in (known[1], _GONE):
            return known[0]
        return sha256_of(Path(path))

    def _get(self, digest: str, open_picture: Callable[[], OpenPicture]) -> OpenPicture:
        with self._lock:
            if digest in self._pictures:
                return self._use(digest)
            opening = self._opening.get(digest)
            if opening is None:
                mine = self._opening[digest] = Future()
        if opening is not None:
            return opening.result()
        try:
            picture = open_picture()
        except BaseException as error:
            with self._lock:
                del self._opening[digest]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._opening[digest]
            self._pictures[digest] = picture
            self._use(digest)
        mine.set_result(picture)
        return picture

    def _use(self, digest: str) -> OpenPicture:
        """Notes that a picture is used now, and closes others if there are too many or they hold too much."""
        self._pictures.move_to_end(digest)
        self._used[digest] = time.monotonic()
        while len(self._pictures) > self._capacity or (len(self._pictures) > 1 and self._held() > self._most_bytes):
            self._close(next(iter(self._pictures)))
        return self._pictures[digest]

    def _close(self, digest: str) -> None:
        self._pictures.pop(digest, None)
        self._used.pop(digest, None)
        self._files = {key: file for key, file in self._files.items() if file[0] != digest}

    def _held(self) -> int:
        return sum(picture.nbytes for picture in self._pictures.values())


def _stamp(path: str) -> tuple[int, int]:
    """(size, time of the last change) of a file; `_GONE` if there is none."""
    try:
        status = Path(path).stat()
    except OSError:
        return _GONE
    return (status.st_size, status.st_mtime_ns)
