"""What the page and the programming interfaces share: model, segmenter, open pictures, waiting line, limits."""

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image

from app.pictures import Describer, OpenPicture, PictureCache
from app.waiting_line import LineFullError, WaitingLine
from osprey_tp.images import MAX_PIXELS
from osprey_tp.segmenters import Segmenter

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one user may ask for, and how much the server keeps.

    Attributes:
        waiting: Requests that may wait while one is at work.
        request_seconds: That a request may work.
        upload_bytes: Of a picture's file.
        pixels: Height times width of a picture.
        pictures: That may be open.
        cache_bytes: That all open pictures may hold together.
        idle_seconds: After which an open picture that nobody has asked for is closed.
    """

    waiting: int = 32
    request_seconds: float = 120.0
    upload_bytes: int = 64 << 20
    pixels: int = MAX_PIXELS
    pictures: int = 16
    cache_bytes: int = 4 << 30
    idle_seconds: float = 1800.0


class Service:
    """A model and a segmenter at work for several users.

    Attributes:
        line: Through which all work of the model and of the segmenter goes.
        pictures: The open pictures.
        name: Of the model, for users.
        device: On which it runs.
        segmenter: Its description, for users.
        context: Tokens that the language model can read and write together; None where that is not known.
    """

    def __init__(
        self,
        describer: Describer,
        segmenter: Segmenter,
        limits: Limits | None = None,
        *,
        name: str = "osprey_tp",
        device: str = "cpu",
    ) -> None:
        self.describer, self.limits, self.name, self.device = describer, limits or Limits(), name, device
        self.segmenter = segmenter.description
        self.line = WaitingLine(self.limits.waiting, self.limits.request_seconds)
        self.pictures = PictureCache(
            lambda path: OpenPicture.read(path, describer, segmenter, self.limits.pixels),
            self.limits.pictures,
            self.limits.cache_bytes,
            self.limits.idle_seconds,
        )
        config = getattr(getattr(describer, "model", None), "config", None)
        self.context: int | None = getattr(getattr(config, "text_config", None), "max_position_embeddings", None)
        self._failure: str | None = None

    def count_tokens(self, text: str) -> int:
        """Tokens of a text by itself, without the picture; 0 where the model does not tell how it counts."""
        processor: Any = getattr(self.describer, "processor", None)
        return 0 if processor is None else processor.count_tokens(text)

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Whether the model answers, and what is going on.

        The model is asked for one token if nothing else is at work; otherwise it counts as well as it did last, unless
        it has been making one item for longer than a request may take.
        """
        if self.line.stuck:
            self._failure = f"at work for more than {self.limits.request_seconds:g} seconds without a result"
        else:
            self._probe()
        facts = {
            "status": "ok" if self._failure is None else "failing",
            "model": self.name,
            "segmenter": self.segmenter,
            "device": self.device,
            "open_pictures": len(self.pictures),
            "open_picture_bytes": self.pictures.nbytes,
            "busy": self.line.busy,
            "waiting_requests": self.line.waiting,
        }
        return self._failure is None, facts | ({} if self._failure is None else {"failure": self._failure})

    def _probe(self) -> None:
        def work() -> Iterator[bool]:
            with closing(self._probe_session.converse([("user", "?")], max_new_tokens=1)) as pieces:
                yield all(isinstance(piece, str) for piece in pieces)

        place = self.line.run(work(), lambda ahead: False)
        try:
            if next(place):  # otherwise others are at work
                self._failure = None
        except LineFullError:
            pass
        except Exception as error:
            _logger.exception("the model does not answer")
            self._failure = type(error).__name__
        finally:
            place.close()

    @cached_property
    def _probe_session(self) -> Any:
        """A small grey picture that the model is asked about to see whether it answers."""
        return self.describer.open(Image.new("RGB", (32, 32), (128, 128, 128)))
