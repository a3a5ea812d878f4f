"""What happens on each event of the page, without a word about the page itself.

```
open ──► Selection(path)        the picture is read, embedded by the segmenter, encoded by the model: once
click ─► Selection(points, candidates) ─► Request ─► answer: streamed by the picture's ImageSession
```
"""

import functools
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import ParamSpec

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.pictures import Describer, OpenPicture, PictureCache
from app.questions import FREE, Question, make_question
from app.state import Selection
from osprey_tp.drawing import draw_points, draw_regions
from osprey_tp.segmenters import Segmenter

MAX_PICTURES = 8  # open at a time, over all users

SELECT, ADD, REMOVE = "Select object", "Add to it", "Exclude from it"
CLICK_MODES = (SELECT, ADD, REMOVE)

_logger = logging.getLogger(__name__)
_Arguments = ParamSpec("_Arguments")


class Keep(Enum):
    """Stands for a part of the page that does not change."""

    KEEP = 0


KEEP = Keep.KEEP


@dataclass(frozen=True)
class Status:
    """One line about what goes on. `kind` is "ready", "busy", "done" or "error"."""

    kind: str
    text: str


@dataclass(frozen=True)
class Request:
    """A question to be answered about the selected region; the number tells two equal ones apart."""

    number: int
    question: Question


@dataclass(frozen=True)
class Update:
    """What an event changes on the page. `picture` and `request` may also become None: gone."""

    picture: Image.Image | Keep | None = KEEP
    selection: Selection | Keep = KEEP
    status: Status | Keep = KEEP
    question: str | Keep = KEEP
    answer: str | Keep = KEEP
    request: Request | Keep | None = KEEP


START = Status("ready", "Upload a picture or pick an example.")
CLICK = Status("ready", "Click an object in the picture.")


def _reporting_errors(
    event: Callable[_Arguments, Iterator[Update]],
) -> Callable[_Arguments, Iterator[Update]]:
    """Lets an event end in a line for the user; what nobody foresaw goes to the log as well."""

    @functools.wraps(event)
    def reporting(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Iterator[Update]:
        try:
            yield from event(*args, **kwargs)
        except (ValueError, OSError) as error:
            yield Update(status=Status("error", _sentence(str(error))))
        except Exception as error:
            _logger.exception("an event of the app failed")
            yield Update(status=Status("error", f"Something went wrong ({type(error).__name__}). The log says more."))

    return reporting


class Controller:
    """Answers the page's events with updates; holds the model, the segmenter and the open pictures."""

    def __init__(self, describer: Describer, segmenter: Segmenter, max_pictures: int = MAX_PICTURES) -> None:
        self._describer = describer
        self._segmenter = segmenter
        self._numbers = itertools.count(1)
        self._latest: dict[str, int] = {}  # number of the request, by user, whose answer is still wanted
        self.pictures = PictureCache(self._open, capacity=max_pictures)

    @_reporting_errors
    def open(self, user: str, path: str) -> Iterator[Update]:
        """A picture was uploaded or picked; `path` names its file."""
        self._drop_answer(user)
        name = Path(path).name
        blank = Update(selection=Selection(), status=Status("busy", f"Reading {name} …"), question="", answer="")
        yield blank
        try:
            picture = self.pictures.get(user, path)
        except (ValueError, OSError) as error:
            reason = _sentence(str(error).replace(path, name))
            yield Update(picture=None, status=Status("error", f"{reason} Choose a picture in JPEG, PNG or WebP."))
            return
        yield Update(picture=picture.shown, selection=Selection(path), status=CLICK)

    def close(self, user: str) -> Update:
        """The user took the picture away."""
        self._drop_answer(user)
        return Update(picture=None, selection=Selection(), status=START, question="", answer="", request=None)

    @_reporting_errors
    def click(
        self, user: str, selection: Selection, x: float, y: float, mode: str, kind: str, own: str
    ) -> Iterator[Update]:
        """A click at the shares `x`, `y` (0 to 1) of the picture's width and height; asks about what is found there."""
        if not selection.path:
            raise ValueError("open a picture first")
        if mode not in CLICK_MODES:
            raise ValueError(f"no kind of click {mode!r}; choose from {', '.join(CLICK_MODES)}")
        self._drop_answer(user)
        yield Update(status=Status("busy", "Finding the object …"), question="", answer="")
        image = self.pictures.get(user, selection.path).image
        point = (min(x * image.width, image.width - 1.0), min(y * image.height, image.height - 1.0))
        if mode == SELECT:
            selection = selection.without_points()
        yield from self._segmented(user, selection.with_point(point, positive=mode != REMOVE), kind, own)

    @_reporting_errors
    def undo(self, user: str, selection: Selection, kind: str, own: str) -> Iterator[Update]:
        """Takes the last point back."""
        if not selection.points:
            raise ValueError("there is no point to take back")
        self._drop_answer(user)
        yield Update(status=Status("busy", "Finding the object …"), question="", answer="")
        yield from self._segmented(user, selection.without_last_point(), kind, own)

    @_reporting_errors
    def clear(self, user: str, selection: Selection) -> Iterator[Update]:
        """Takes all points back."""
        if not selection.path:
            raise ValueError("there is nothing to clear")
        self._drop_answer(user)
        shown = self.pictures.get(user, selection.path).shown
        yield Update(shown, selection.without_points(), CLICK, question="", answer="", request=None)

    @_reporting_errors
    def choose(self, user: str, selection: Selection, index: int, kind: str, own: str) -> Iterator[Update]:
        """Takes another of the segmenter's masks."""
        selection = selection.choosing(index)
        yield self._shown(user, selection)
        yield from self._asked(user, kind, own)

    @_reporting_errors
    def ask(self, user: str, selection: Selection, kind: str, own: str) -> Iterator[Update]:
        """The question was chosen, or asked again."""
        if not selection.path:
            raise ValueError("open a picture first")
        if selection.mask is None:
            raise ValueError("click an object first")
        yield Update(status=Status("busy", "Answering …"), answer="", request=self._request(user, kind, own))

    @_reporting_errors
    def answer(self, user: str, selection: Selection, request: Request | None) -> Iterator[Update]:
        """Streams the answer to a request; every update holds the whole text so far. Ends, and ends the model's work,
        as soon as the user has gone on to something else.
        """
        if request is None or selection.mask is None:
            return
        started = time.monotonic()
        session = self.pictures.get(user, selection.path).session
        question, text = request.question, ""
        for piece in session.stream([selection.mask], question.text, max_new_tokens=question.max_new_tokens):
            if self._latest.get(user) != request.number:
                return
            text += piece
            yield Update(question=question.text, answer=text.strip())
        seconds = time.monotonic() - started
        if text.strip():
            yield Update(status=Status("done", f"Answered in {seconds:.1f} s. Click another object to go on."))
        else:
            yield Update(status=Status("done", "The model had nothing to say about this region."))

    def leave(self, user: str) -> None:
        """The user closed the page."""
        self._drop_answer(user)
        self.pictures.forget(user)

    def _open(self, path: str) -> OpenPicture:
        return OpenPicture.read(path, self._describer, self._segmenter)

    def _segmented(self, user: str, selection: Selection, kind: str, own: str) -> Iterator[Update]:
        """Shows the points with the mask that they give, then asks about it."""
        if not any(selection.labels):
            yield self._shown(user, selection)
            yield Update(status=CLICK if not selection.points else Status("ready", "Now click the object itself."))
            return
        try:
            found = self.pictures.get(user, selection.path).segmented.segment(selection.points, selection.labels)
        except ValueError:
            yield self._shown(user, selection)
            raise
        yield self._shown(user, selection.with_candidates(tuple(found)))
        yield from self._asked(user, kind, own)

    def _asked(self, user: str, kind: str, own: str) -> Iterator[Update]:
        if kind == FREE and not own.strip():
            yield Update(status=Status("ready", "Write your question and press Ask."))
            return
        yield Update(status=Status("busy", "Answering …"), request=self._request(user, kind, own))

    def _request(self, user: str, kind: str, own: str) -> Request:
        request = Request(next(self._numbers), make_question(kind, own))
        self._latest[user] = request.number
        return request

    def _drop_answer(self, user: str) -> None:
        """Lets an answer that is being streamed end: the user has gone on to something else."""
        self._latest.pop(user, None)

    def _shown(self, user: str, selection: Selection) -> Update:
        """The picture with the selected region and the points drawn on it."""
        picture = self.pictures.get(user, selection.path)
        drawn = picture.shown
        if selection.mask is not None:
            drawn = draw_regions(drawn, [_resized(selection.mask, drawn.height, drawn.width)])
        scale_x, scale_y = drawn.width / picture.image.width, drawn.height / picture.image.height
        points = [(x * scale_x, y * scale_y) for x, y in selection.points]
        drawn = draw_points(drawn, points, selection.labels)
        return Update(drawn, selection, question="", answer="", request=None)


def _resized(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    resized = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
    shares = np.asarray(resized)
    return shares > 127 if (shares > 127).any() else shares > 0


def _sentence(text: str) -> str:
    """An error's message on one line, with a capital letter and a full stop."""
    text = " ".join(text.split()).rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."
