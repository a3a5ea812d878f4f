"""Fuzz targets of regions: masks in every form, users' COCO files, answers that name a region, chat messages."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pydantic import ValidationError

from app.api_schema import Region, first_problem
from app.chat_completions import _parse
from app.chat_schema import read_conversation
from app.coco_files import read_coco, write_coco
from data_pipelines.sources.reader import Unusable
from data_pipelines.sources.segmentation import box_of, read_box, read_segmentation
from eval.grounding import chosen_region
from eval.questions import Question
from osprey_tp.masks import to_mask, to_rle, to_runs

from .checking import outcome

HEIGHT, WIDTH = 12, 20
MOST_BYTES = 10_000
POLYGON = [1.0, 2.0, 15.0, 2.5, 9.0, 11.0]
SQUARE = {"size": [HEIGHT, WIDTH], "counts": [14, 4, 8, 4, 8, 4, 198]}
COMPRESSED = {"size": [HEIGHT, WIDTH], "counts": "><b05c0000000000000000000000Pl6"}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)


def mask_seeds() -> list[bytes]:
    """A picture's size and a region in each of COCO's forms."""
    regions = [
        [POLYGON],
        [POLYGON, [0, 0, 5, 0, 5, 5]],
        SQUARE,
        to_rle([POLYGON], HEIGHT, WIDTH),
        {"box": [1, 2, 9.5, 11]},
        {"segmentation": [POLYGON]},
        {"mask": {"box": [1, 2, 9, 11]}, "points": [[3, 4]]},
    ]
    return [json.dumps({"height": HEIGHT, "width": WIDTH, "region": region}).encode() for region in regions]


def masks(data: bytes) -> None:
    """`to_mask`, `to_runs` and `to_rle` agree with each other and with pycocotools, as do readers of annotations."""
    document = _loaded(data)
    if not isinstance(document, dict):
        return
    height, width, region = (document.get(name) for name in ("height", "width", "region"))
    if not all(isinstance(side, int) and not isinstance(side, bool) for side in (height, width)):
        return
    if isinstance(region, str):  # for a caller of the library, the path of a file
        return
    runs = outcome(lambda: to_runs(region, height, width))
    mask = outcome(lambda: to_mask(region, height, width, allow_empty=True))
    rle = outcome(lambda: to_rle(region, height, width))
    assert (runs is None) == (rle is None) and (runs is None or mask is not None)
    if runs is not None:
        assert mask.shape == (height, width) and mask.dtype == bool
        assert runs.area == mask.sum() > 0
        np.testing.assert_array_equal(runs.draw(), mask)
        np.testing.assert_array_equal(coco_mask.decode(rle).astype(bool), mask)
    if 0 < height <= 4000 and 0 < width <= 4000:
        _annotations(region, height, width)


def _annotations(region: Any, height: int, width: int) -> None:
    """As the sources read regions, where the picture's size is one that a reader has checked."""
    box = region.get("box") if isinstance(region, dict) else None
    for read in (lambda: read_segmentation(region, height, width), lambda: read_box(box, height, width)):
        try:
            rle, _ = read()
        except Unusable as unusable:
            assert unusable.reason and "\n" not in unusable.reason
            continue
        x0, y0, x1, y1 = box_of(rle)
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        assert to_runs(rle, height, width).area == coco_mask.area(rle)


def count_seeds() -> list[bytes]:
    """Compressed run lengths."""
    return [to_rle([POLYGON], HEIGHT, WIDTH)["counts"].encode(), to_rle(SQUARE, HEIGHT, WIDTH)["counts"].encode()]


def counts(data: bytes) -> None:
    """Compressed run lengths that are taken say what pycocotools says that they say."""
    rle = {"size": [HEIGHT, WIDTH], "counts": data}
    mask = outcome(lambda: to_mask(rle, HEIGHT, WIDTH, allow_empty=True))
    if mask is not None:
        np.testing.assert_array_equal(coco_mask.decode(rle).astype(bool), mask)


def upload_seeds() -> list[bytes]:
    """A user's COCO file, and a list of results."""
    annotations = [
        {"id": number, "image_id": 1, "category_id": 3, "segmentation": form, "bbox": [1, 2, 3.5, 4], "score": 0.5}
        for number, form in enumerate(([POLYGON], SQUARE, COMPRESSED, None))
    ]
    annotations[0] |= {"caption": "a red valve"}
    whole = {
        "images": [
            {"id": 1, "file_name": "a/b.jpg", "height": HEIGHT, "width": WIDTH},
            {"id": 2, "file_name": "c.jpg"},
        ],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "valve"}],
    }
    results = [{"image_id": 7, "segmentation": [POLYGON], "score": 0.9}]
    return [json.dumps(whole).encode(), json.dumps(results).encode()]


def uploads(data: bytes) -> None:
    """A COCO file that is read can be written, and says the same when it is read again."""
    found = outcome(lambda: read_coco(data, "b.jpg", HEIGHT, WIDTH))
    if found:
        written = write_coco(found, "b.jpg", HEIGHT, WIDTH).encode("utf-8")
        again = read_coco(written, "b.jpg", HEIGHT, WIDTH)
        assert [region.shape.rle for region in again] == [region.shape.rle for region in found]


def answer_seeds() -> list[bytes]:
    """What models say when they are asked for a region."""
    said: list[Any] = [1, 2, [1, 2, 9, 11.5], {"box": [1, 2, 9, 11]}, {"segmentation": SQUARE}]
    return [json.dumps(value).encode() for value in [*said, {"segmentation": [POLYGON]}]]


def answers(data: bytes) -> None:
    """A model's answer is a region, a box, or none; it is never an error."""
    text = data.decode("utf-8", "replace")
    candidate = to_rle([POLYGON], HEIGHT, WIDTH)
    question = Question("1", "a", Path("a"), HEIGHT, WIDTH, "?", (candidate,), (), facts={"candidates": (candidate,)})
    chosen = chosen_region(question, text)
    if isinstance(chosen, dict):
        assert to_runs(chosen, HEIGHT, WIDTH).area
    elif chosen is not None:
        assert len(chosen) == 4 and all(np.isfinite(chosen))


def chat_seeds() -> list[bytes]:
    """Bodies of requests to the interface that clients of OpenAI's know."""
    regions = [
        {"box": [1, 2, 9, 11]},
        {"points": [[3, 4], [5, 6]], "labels": [1, 0], "box": [0, 0, 9, 9]},
        {"segmentation": SQUARE},
        {"segmentation": [POLYGON]},
    ]
    content = [
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "auto"}},
        {"type": "regions", "regions": regions},
        {"type": "text", "text": "What is region1 doing to region2?"},
    ]
    turns = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "It <mask> stands.", "refusal": None},
        {"role": "user", "content": [{"type": "regions", "regions": regions[:1]}, {"type": "text", "text": "<mask>?"}]},
    ]
    choices = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 5, "seed": 1, "stop": ["\n"], "stream": True, "n": 1}
    body = {"model": "m", "messages": turns, "stream_options": {"include_usage": True}} | choices
    short = {"model": "m", "messages": [{"role": "user", "content": content}]}
    return [json.dumps(body).encode(), json.dumps(short).encode()]


def chat(data: bytes) -> None:
    """A request that is taken has a region for every placeholder, and its regions are drawn or refused."""
    request = outcome(lambda: _parse(data))
    about = request and outcome(lambda: read_conversation(request, MOST_BYTES))
    if about:
        assert sum(text.count("<mask>") for role, text in about.turns if role == "user") == len(about.regions)
        assert len(about.picture) <= MOST_BYTES + 2
        json.dumps(about.turns).encode()
        for _, text in about.turns:
            text.encode("utf-8")
        for region in about.regions:
            _resolved(region)
    document = _loaded(data)
    if isinstance(document, list | dict):
        try:
            _resolved(Region.model_validate(document))
        except ValidationError as error:
            where, what = first_problem(error, document)
            assert what and "\n" not in where + what


def _resolved(region: Region) -> None:
    if region.points is None:
        outcome(lambda: to_mask(region.resolve(None), HEIGHT, WIDTH))  # type: ignore[arg-type]


def _loaded(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "masks": (masks, mask_seeds),
    "counts": (counts, count_seeds),
    "uploads": (uploads, upload_seeds),
    "answers": (answers, answer_seeds),
    "chat": (chat, chat_seeds),
}
