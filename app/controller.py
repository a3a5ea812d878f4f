"""What happens on each event of the Ask tab and of the picture, without a word about the page itself.

```
open ───► View(picture)           the picture is read, embedded by the segmenter, encoded by the model: once
select ─► View(selection) ─► Answer, streamed by the picture's ImageSession
send ───► Chat, streamed; all of the conversation is the user's own
```
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from PIL import Image

from app.chat import Chat
from app.pictures import PictureCache
from app.questions import FREE, Question, make_question
from app.selecting import find_shapes, read_prompt
from app.state import Kept, Selection, Shown
from app.status import Status, failed

MAX_REGIONS = 64  # kept at a time, by one user


class Keep(Enum):
    """Stands for a part of the page that does not change."""

    KEEP = 0


KEEP = Keep.KEEP


@dataclass(frozen=True)
class View:
    """What is seen of the picture: the selection in it and the regions kept."""

    selection: Selection
    kept: Kept


@dataclass(frozen=True)
class Answer:
    """A question about the selected region, and its answer as far as it is known."""

    question: str = ""
    text: str = ""


@dataclass(frozen=True)
class Update:
    """What an event changes on the page."""

    view: View | Keep = KEEP
    status: Status | Keep = KEEP
    answer: Answer | Keep = KEEP
    chat: Chat | Keep = KEEP


@dataclass(frozen=True)
class Asking:
    """How the user asks: the kind of question, the own question, the temperature (0 for greedy answers), the most
    tokens of an answer.
    """

    kind: str
    own: str = ""
    temperature: float = 0.0
    longest: int = 512

    def question(self) -> Question:
        """Raises `ValueError` if there is none yet."""
        question = make_question(self.kind, self.own)
        return replace(question, max_new_tokens=min(question.max_new_tokens, self.longest))

    def options(self, most: int) -> dict[str, Any]:
        """Of generation, for an answer of at most `most` tokens."""
        sampling = {"do_sample": True, "temperature": self.temperature} if self.temperature > 0 else {}
        return {"max_new_tokens": most} | sampling


START = Status("ready", "Drop a picture, or pick an example.")
CLICK = Status("ready", "Click an object in the picture.")
PREPARING = Status("busy", "The model is looking at the picture …")
SELECTING = Status("busy", "Finding the object …")
STOPPED = Status("done", "Stopped.")
ANSWERING = Status("busy", "Answering …")


class Controller:
    """Answers the page's events with updates.

    Every event raises `ValueError` or `OSError` with a line for the user.

    Args:
        pictures: The open pictures, with the model and the segmenter at work on them.
        publish: Makes a picture available to the browser and returns the name by which the page asks for it.
    """

    def __init__(self, pictures: PictureCache, publish: Callable[[Image.Image], str]) -> None:
        self.pictures = pictures
        self._publish = publish

    def open(self, user: str, path: str, name: str, serial: int) -> Iterator[Update]:
        """A picture was uploaded or picked; `path` names its file, `name` is what the user calls it."""
        reading = Selection(serial=serial, busy=f"Reading {name} …")
        yield Update(View(reading, Kept()), Status("busy", reading.busy), Answer(), Chat())
        try:
            picture = self.pictures.get(user, path)
        except (ValueError, OSError) as error:
            reason = failed(ValueError(str(error).replace(path, name))).text
            unread = Selection(serial=serial)
            yield Update(View(unread, Kept()), Status("error", f"{reason} Choose a picture in JPEG, PNG or WebP."))
            return
        shown = Shown(path, self._publish(picture.shown), picture.image.height, picture.image.width)
        yield Update(View(Selection(shown, serial=serial), Kept()), PREPARING)
        _ = picture.segmented, picture.session  # so that the first click need not wait for them
        yield Update(status=CLICK)

    def close(self, serial: int) -> Iterator[Update]:
        """The user took the picture away."""
        yield Update(View(Selection(serial=serial), Kept()), START, Answer(), Chat())

    def select(
        self, user: str, selection: Selection, kept: Kept, pointed: Mapping[str, Any], serial: int, asking: Asking
    ) -> Iterator[Update]:
        """The user pointed at something in the picture (`selecting.read_prompt`); asks about what is found there."""
        picture = _require_picture(selection)
        selection = replace(selection.cleared(), serial=serial)
        selection = replace(selection, prompt=read_prompt(pointed, picture.height, picture.width))
        view = View(selection, kept)
        if not selection.prompt:
            yield Update(view, CLICK, Answer())
            return
        yield Update(view, SELECTING, Answer())
        segmented = self.pictures.get(user, picture.path).segmented
        shapes = find_shapes(segmented, selection.prompt, picture.height, picture.width)
        if not shapes:
            yield Update(status=Status("ready", "Now click the object itself."))
            return
        view = View(replace(selection, candidates=shapes), kept)
        if asking.kind == FREE and not asking.own.strip():
            yield Update(view, Status("ready", "Write your question and press Ask."))
            return
        yield Update(view, ANSWERING)
        yield from self.ask(user, view.selection, asking)

    def choose(self, user: str, selection: Selection, kept: Kept, index: int, asking: Asking) -> Iterator[Update]:
        """Takes another of the segmenter's masks."""
        selection = selection.choosing(index)
        yield Update(View(selection, kept), ANSWERING)
        yield from self.ask(user, selection, asking)

    def ask(self, user: str, selection: Selection, asking: Asking) -> Iterator[Update]:
        """Streams the answer to the question about the selected region; each update holds the text so far."""
        picture = _require_picture(selection)
        if selection.shape is None:
            raise ValueError("click an object first")
        question, text = asking.question(), ""
        yield Update(status=ANSWERING, answer=Answer(question.text))
        started = time.monotonic()
        session = self.pictures.get(user, picture.path).session
        options = asking.options(question.max_new_tokens)
        with _closing(session.stream([selection.shape.rle], question.text, **options)) as pieces:
            for piece in pieces:
                text += piece
                yield Update(answer=Answer(question.text, text.strip()))
        yield Update(status=_answered(text, started))

    def keep(self, selection: Selection, kept: Kept) -> Iterator[Update]:
        """Puts the selected region among the kept ones."""
        if selection.shape is None:
            raise ValueError("select a region first, then keep it")
        if len(kept.regions) >= MAX_REGIONS:
            raise ValueError(f"{MAX_REGIONS} regions are kept, which is the limit; remove some first")
        kept = kept.adding(selection.shape)
        status = Status("ready", f"Kept as {kept.regions[-1].name}. Select another object, or talk about it below.")
        yield Update(View(selection.cleared(), kept), status)

    def remove(self, selection: Selection, kept: Kept, number: int) -> Iterator[Update]:
        """Takes a region off the kept ones. A conversation that speaks of it goes on knowing it."""
        yield Update(View(selection, kept.without(number)))

    def send(
        self, user: str, selection: Selection, kept: Kept, chat: Chat, message: str, asking: Asking
    ) -> Iterator[Update]:
        """Takes the next turn of the conversation about the picture and the kept regions; streams its answer."""
        _require_picture(selection)
        yield from self._converse(user, selection, chat.asking(message, kept), asking)

    def regenerate(self, user: str, selection: Selection, chat: Chat, asking: Asking) -> Iterator[Update]:
        """Answers the last message again."""
        _require_picture(selection)
        yield from self._converse(user, selection, chat.regenerating(), asking)

    def leave(self, user: str) -> None:
        """The user closed the page."""
        self.pictures.forget(user)

    def _converse(self, user: str, selection: Selection, chat: Chat, asking: Asking) -> Iterator[Update]:
        yield Update(status=ANSWERING, chat=chat)
        started = time.monotonic()
        session = self.pictures.get(user, selection.path).session
        regions = [region.shape.rle for region in chat.regions]
        text = ""
        with _closing(session.converse(chat.turns, regions, **asking.options(asking.longest))) as pieces:
            for piece in pieces:
                text += piece
                yield Update(chat=chat.answered(text.strip(), finished=False))
        yield Update(status=_answered(text, started), chat=chat.answered(text.strip(), finished=True))


@contextmanager
def _closing(pieces: Iterator[str]) -> Iterator[Iterator[str]]:
    """Ends the generation of an answer that nobody reads on."""
    try:
        yield pieces
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()


def _require_picture(selection: Selection) -> Shown:
    if selection.picture is None:
        raise ValueError("open a picture first")
    return selection.picture


def _answered(text: str, started: float) -> Status:
    if not text.strip():
        return Status("done", "The model had nothing to say.")
    return Status("done", f"Answered in {time.monotonic() - started:.1f} s.")
