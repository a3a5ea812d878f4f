"""The app's functions for programs, through gradio_client: JSON in and out, regions in source pixels.

```
client.predict(image=handle_file("a.jpg"), regions=[{"box": [10, 20, 110, 90]}], api_name="/describe")
    ─► {"status": "done", "height": 480, "width": 640, "answers": ["a red cup"]}
```

`app.api_schema` says what a region is. Until the last result the endpoints tell how far they are:
`{"status": "waiting", "ahead": 2}`, `{"status": "working", "done": 16, "of": 64}`.
"""

import inspect
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import gradio as gr
from pydantic import TypeAdapter, ValidationError

from app.api_schema import Box, Point, Region, first_problem, resolve_all
from app.canvas import uploaded_file
from app.chat_schema import MOST_NEW_TOKENS, MOST_REGIONS
from app.find import find
from app.pictures import OpenPicture
from app.questions import FREE, make_question
from app.service import Service
from osprey_tp.masks import to_rle
from osprey_tp.prompts import CATEGORY_QUESTION, SHORT_DESCRIPTION_QUESTION
from osprey_tp.segmenters import Candidate

BATCH = 16  # regions described or scored between two looks at the clock

Result = dict[str, Any]

_logger = logging.getLogger(__name__)
_regions = TypeAdapter(list[Region])
_points = TypeAdapter(list[Point])
_labels = TypeAdapter(list[int])
_box = TypeAdapter(Box | None)


class Api:
    """The endpoints. Each is a piece of work that yields how far it is and at last the result.

    Errors are `ValueError`s of one line, raised before or between the results.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(
        self,
        image: dict[str, Any],
        regions: list[dict[str, Any]],
        question: str = CATEGORY_QUESTION,
        max_new_tokens: int = 64,
    ) -> Iterator[Result]:
        """One answer about each region: `answers`. The question says <mask> where the region belongs; one that does
        not is told which region is meant.
        """
        wanted = self._read_regions(regions)
        text = make_question(FREE, question).text
        limit = _whole_number("max_new_tokens", max_new_tokens, MOST_NEW_TOKENS)
        picture = self._open(image)
        found = list(resolve_all(wanted, picture))
        yield _working(0, len(found))
        answers: list[str] = []
        for batch in _batches(found):
            answers += picture.session.ask(batch, text, max_new_tokens=limit, batch_size=BATCH)
            yield _working(len(answers), len(found))
        yield _done(picture, answers=answers)

    def segment(
        self,
        image: dict[str, Any],
        points: list[list[float]] | None = None,
        labels: list[int] | None = None,
        box: list[float] | None = None,
    ) -> Iterator[Result]:
        """The segmenter's masks of what points (labelled 1 on the object, 0 off it) and box show, best first:
        `candidates`, each a `segmentation` with its `score`.
        """
        where = _checked("points", _points, points or [])
        marks = _checked("labels", _labels, labels if labels is not None else [1] * len(where))
        corners = _checked("box", _box, box)
        picture = self._open(image)
        yield _working(0, 1)
        found = picture.segmented.segment(where, [mark == 1 for mark in marks], corners)
        yield _done(picture, candidates=[_told(candidate) for candidate in found])

    def everything(
        self,
        image: dict[str, Any],
        most: int = 64,
        question: str = SHORT_DESCRIPTION_QUESTION,
        max_new_tokens: int = 64,
    ) -> Iterator[Result]:
        """All that the segmenter finds, best first, at most so many: `regions`, each a `segmentation` with its `score`
        and its `answer` to the question. An empty question asks nothing.
        """
        limit = _whole_number("max_new_tokens", max_new_tokens, MOST_NEW_TOKENS)
        number = _whole_number("most", most, MOST_REGIONS)
        text = make_question(FREE, question).text if question else ""
        picture = self._open(image)
        yield _working(0, 1)
        found = [_told(candidate) for candidate in picture.segmented.everything(number)]
        if text:
            yield _working(0, len(found))
            for first in range(0, len(found), BATCH):
                batch = found[first : first + BATCH]
                asked = [{"segmentation": region["segmentation"]} for region in batch]
                answers = picture.session.ask(asked, text, max_new_tokens=limit, batch_size=BATCH)
                for region, answer in zip(batch, answers, strict=True):
                    region["answer"] = answer
                yield _working(first + len(batch), len(found))
        yield _done(picture, regions=found)

    def find(
        self, image: dict[str, Any], expression: str, regions: list[dict[str, Any]] | None = None
    ) -> Iterator[Result]:
        """Which regions an expression means: `matches`, best first, each the `index` of a region with its numbers
        (`log_likelihood`, `evidence` against the whole picture, `share` and `strength` among the regions). Without
        regions, all that the segmenter finds are compared, and told as `regions`.
        """
        wanted = None if regions is None else self._read_regions(regions)
        picture = self._open(image)
        yield _working(0, 1)
        told: Result = {}
        if wanted is None:
            told["regions"] = [_told(candidate) for candidate in picture.segmented.everything(MOST_REGIONS)]
            found = [{"segmentation": region["segmentation"]} for region in told["regions"]]
        else:
            found = list(resolve_all(wanted, picture))
        yield _working(0, len(found))
        matches = find(picture.session, expression, found, picture.image.height, picture.image.width)
        yield _done(picture, matches=[asdict(match) for match in matches], **told)

    def _open(self, image: dict[str, Any]) -> OpenPicture:
        """An uploaded file; no other file of this machine."""
        if not isinstance(image, dict):
            raise ValueError("upload the picture: gradio_client.handle_file(PATH) as the image")
        path, name = uploaded_file(image)
        try:
            return self._service.pictures.get("", path)
        except ValueError as error:
            raise ValueError(str(error).replace(path, name)) from error

    def _read_regions(self, regions: Any) -> list[Region]:
        if isinstance(regions, list) and len(regions) > MOST_REGIONS:
            raise ValueError(f"{len(regions)} regions in one request, the limit is {MOST_REGIONS}")
        return _checked("regions", _regions, regions)


def add_api(blocks: gr.Blocks, service: Service) -> None:
    """Gives the page the endpoints of `Api`."""
    api = Api(service)
    with blocks:
        for work in (api.describe, api.segment, api.everything, api.find):
            gr.api(
                _endpoint(work, service),
                api_name=work.__name__,
                api_description=" ".join((work.__doc__ or "").split()),
                concurrency_limit=None,
            )


def _endpoint(work: Callable[..., Iterator[Result]], service: Service) -> Callable[..., Iterator[Result]]:
    """The work in the waiting line, with its errors as the client is to read them."""

    def run(*values: Any) -> Iterator[Result]:
        try:
            yield from service.line.run(work(*values), _waiting)
        except (ValueError, OSError) as error:
            raise gr.Error(" ".join(str(error).split()), print_exception=False) from error
        except Exception as error:
            _logger.exception("a request failed")
            raise gr.Error(f"something went wrong ({type(error).__name__})", print_exception=False) from error

    run.__name__ = work.__name__
    run.__signature__ = inspect.signature(work)  # type: ignore[attr-defined]
    run.__annotations__ = dict(work.__annotations__)
    return run


def _waiting(ahead: int) -> Result:
    return {"status": "waiting", "ahead": ahead}


def _working(done: int, of: int) -> Result:
    return {"status": "working", "done": done, "of": of}


def _done(picture: OpenPicture, **result: Any) -> Result:
    return {"status": "done", "height": picture.image.height, "width": picture.image.width, **result}


def _told(candidate: Candidate) -> Result:
    return {"segmentation": to_rle(candidate.mask, *candidate.mask.shape), "score": float(candidate.score)}


def _whole_number(name: str, value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{name} is a whole number from 1 to {most}, got {value!r}")
    return value


def _checked(name: str, adapter: TypeAdapter[Any], value: Any) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        where, what = first_problem(error, value)
        raise ValueError(f"{'.'.join(filter(None, (name, where)))}: {what}") from None


def _batches(items: list[Any]) -> Iterator[list[Any]]:
    return (items[first : first + BATCH] for first in range(0, len(items), BATCH))
