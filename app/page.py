"""What every tab of the page works on, and how its events run: on Gradio, one piece of model work at a time.

```
shared.connect(button.click, work, inputs, outputs)
    click ─► work(event, *inputs) ─► {component: value}, {component: value}, ...   while the user waits for nothing else
```
"""

import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import gradio as gr

from app.overlay import Overlay, overlay_json
from app.pictures import PictureCache
from app.state import Selection
from app.status import Status, failed
from app.waiting_line import WaitingLine

Changes = Mapping[Any, Any]
"""New values (or `gr.update`) of some components; the others stay as they are."""

SIMULTANEOUS_EVENTS = 40  # of each kind; the waiting line lets one of them work at a time

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """Who caused an event, and what the component said about it."""

    user: str
    data: Mapping[str, Any]


Work = Callable[..., Iterator[Changes]]


def visibility(shown: bool) -> Literal[True, "hidden"]:
    """`visible` of a component that comes and goes.

    It is hidden where it stands: Gradio builds what is invisible only when it is to be seen, and a change that comes
    meanwhile may be lost (gradio pull request 13553).
    """
    return shown or "hidden"


class LatestWork:
    """Numbers the users' work: only the latest of each user is still wanted."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._latest: dict[str, int] = {}

    def begin(self, user: str) -> int:
        """The user begins new work; what was running for this user is not wanted any more."""
        self._latest[user] = number = next(self._numbers)
        return number

    def is_wanted(self, user: str, number: int) -> bool:
        """Whether the user has not gone on to something else."""
        return self._latest.get(user) == number

    def stop(self, user: str) -> None:
        """The user wants nothing of what is running."""
        self._latest.pop(user, None)


@dataclass(frozen=True)
class Shared:
    """What every tab works on.

    Attributes:
        overlay: The picture with what is drawn over it. Its value is made by `overlay_value`.
        selection: State, a `Selection`: the open picture and what is selected in it.
        regions: State, a `Kept`: the regions that the user keeps.
        opened: State, the path of the open picture ("" for none). Its `change` tells that there is another one.
        status: The line about what goes on. Its value is `str(Status(kind, text))`.
        pictures: The open pictures by (user, path).
        line: Lets one piece of model work run at a time.
        latest: Which work is still wanted.
    """

    overlay: gr.HTML
    selection: gr.State
    regions: gr.State
    opened: gr.State
    status: gr.HTML
    pictures: PictureCache
    line: WaitingLine
    latest: LatestWork = field(default_factory=LatestWork)

    def connect(
        self,
        trigger: Callable[..., Any],
        work: Work,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        *,
        needs_model: bool = True,
    ) -> None:
        """Runs `work` on an event.

        Args:
            trigger: Of a component, such as `button.click`.
            work: Called with the `Event` and the values of `inputs`, yields `Changes` of `outputs` and of `status`.
                It is closed, wherever it is, when the user goes on to other work, stops it or leaves. A `ValueError`
                or `OSError` is shown to the user; other errors are logged and shown in short.
            inputs: Components.
            outputs: Components; `status` need not be among them.
            needs_model: Wait in the line, and end what is running for this user. Otherwise the work runs at once and
                beside what is running.
        """

        def run(request: gr.Request, data: gr.EventData, *values: Any) -> Iterator[Changes]:
            user = request.session_hash or ""
            reported = _reported(work, Event(user, data._data or {}), values, self.status)
            yield from self._latest(user, reported) if needs_model else reported

        trigger(
            run,
            list(inputs),
            [*outputs, *([] if self.status in outputs else [self.status])],
            preprocess=False,  # files arrive as paths: the app reads them itself and says what is wrong with them
            show_progress="hidden",
            api_visibility="private",
            trigger_mode="multiple",
            concurrency_limit=SIMULTANEOUS_EVENTS,
        )

    def _latest(self, user: str, work: Iterator[Changes]) -> Iterator[Changes]:
        """The items of the work, in the waiting line, as long as the user does not go on to something else."""
        number = self.latest.begin(user)
        place = self.line.run(work, lambda ahead: {self.status: str(_waiting(ahead))})
        try:
            for changes in place:
                if not self.latest.is_wanted(user, number):
                    break
                yield changes
        except ValueError as error:
            yield {self.status: str(failed(error))}
        finally:
            place.close()


def overlay_value(selection: Selection, overlay: Overlay) -> str:
    """The value of `Shared.overlay`: the selection's picture, by the name of its file, and what is drawn over it.

    As JSON in a string: Gradio changes objects in place where parts of them change, and then nobody sees that they did.
    """
    picture, shown = selection.picture, None
    if picture is not None:
        shown = {"file": picture.file, "width": picture.width, "height": picture.height}
    value = {"picture": shown, "serial": selection.serial, "busy": selection.busy} | overlay_json(overlay)
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _reported(work: Work, event: Event, values: Sequence[Any], status: gr.HTML) -> Iterator[Changes]:
    """Lets work end in a line for the user; what nobody foresaw goes to the log as well."""
    try:
        yield from work(event, *values)
    except (ValueError, OSError) as error:
        yield {status: str(failed(error))}
    except Exception as error:
        _logger.exception("an event of the app failed")
        told = f"Something went wrong ({type(error).__name__}). The log says more."
        yield {status: str(Status("error", told))}


def _waiting(ahead: int) -> Status:
    return Status("busy", "One request is ahead of yours …" if ahead == 1 else f"{ahead} requests are ahead of yours …")
