"""A page that shows records as a model will see them; people look before they train."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipelines.lengths import FIRST_WORDING, Wording
from data_pipelines.records import RecordFolder, RegionRecord
from data_pipelines.rendering import Message, Prompt, messages_of, prompt_of
from osprey_tp.drawing import REGION_COLOURS, draw_regions
from osprey_tp.files import write_text
from osprey_tp.images import load_image
from osprey_tp.masks import to_mask
from osprey_tp.outside import of_record

if TYPE_CHECKING:
    from osprey_tp.processing import OspreyTPProcessor

LONGEST_SIDE = 960
"""Of the embedded pictures, in pixels; larger ones are shrunk."""

SHORTEST_SHOWN = 480
"""Pictures whose longer side is below are magnified by a whole factor, so that small regions can be seen."""

MOST_NAMED = 8
"""Where there are more regions, their labels are numbers alone."""

TEMPLATE = Path(__file__).parent / "templates" / "records.html.jinja"


@dataclass(frozen=True)
class Label:
    """What stands at a region in the picture.

    Attributes:
        number: The region's, from 1.
        name: What is written beside the number.
        x, y: Place of its corner, in percent of the picture.
        above: Whether it hangs above that place.
        leftwards: Whether it ends at that place.
    """

    number: int
    name: str
    x: float
    y: float
    above: bool
    leftwards: bool


@dataclass(frozen=True)
class Sample:
    """What the page shows of one record; either `prompt`, if there is a model, or `messages`."""

    record: RegionRecord
    picture: str
    labels: Sequence[Label]
    areas: Sequence[str]
    prompt: Prompt | None
    messages: Sequence[Message]
    metadata: str


def write_page(
    folder: RecordFolder,
    out: str | Path,
    *,
    limit: int = 20,
    seed: int = 0,
    wording: Wording = FIRST_WORDING,
    processor: OspreyTPProcessor | None = None,
    longest: int = 0,
    progress: bool = True,
) -> int:
    """Write a page of random records, whole in one file, and return how many it shows.

    Args:
        folder: The records.
        out: The file.
        limit: How many records.
        seed: Which records.
        wording: How they are worded.
        processor: Shows what the model of this processor sees, token by token.
        longest: Most tokens that the model takes.
        progress: Show a progress bar on stderr.

    Raises:
        ValueError: naming the record, if it cannot be shown.
    """
    from jinja2 import Environment
    from tqdm import tqdm

    out = Path(out)
    if limit < 1:
        raise ValueError(f"the limit is {limit}; it must be at least 1")
    chosen = sorted(random.Random(seed).sample(range(len(folder)), min(limit, len(folder))))
    with tqdm(chosen, desc="drawing", unit="record", disable=not progress) as bar:
        samples = [_sample(folder, folder[index], wording, processor) for index in bar]
    template = Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        title=f"Records of {folder.path.resolve().name}",
        subtitle=f"{len(samples)} of {len(folder)} records of the source {folder.manifest['source']}, made for "
        f"{folder.purpose}, {wording.prompt_style} wording",
        samples=samples,
        colours=[f"rgb{colour}" for colour in REGION_COLOURS],
        limit=longest if processor is not None else 0,
    )
    write_text(out, text)
    return len(samples)


def _sample(
    folder: RecordFolder, record: RegionRecord, wording: Wording, processor: OspreyTPProcessor | None
) -> Sample:
    picture, masks = "", []
    try:
        if record.has_image:
            image = load_image(folder.image_path(record))
            masks = [to_mask(region.segmentation, record.height, record.width) for region in record.regions]
            picture = _embedded(_drawn(image, masks))
    except (OSError, ValueError) as error:
        raise ValueError(f"{error} {of_record(record.id)}; see `validate`") from error
    named = len(masks) <= MOST_NAMED
    return Sample(
        record=record,
        picture=picture,
        labels=[
            _label(number, region.name if named else "", mask)
            for number, (region, mask) in enumerate(zip(record.regions, masks, strict=False), start=1)
        ],
        areas=[_area(mask) for mask in masks],
        prompt=None if processor is None else prompt_of(record, processor, wording),
        messages=messages_of(record, wording) if processor is None else (),
        metadata=json.dumps(record.metadata, indent=1, ensure_ascii=False) if record.metadata else "",
    )


def _drawn(image: Image.Image, masks: Sequence[NDArray[np.bool_]]) -> Image.Image:
    """The picture with the outlines of the regions; small ones magnified."""
    factor = max(1, SHORTEST_SHOWN // max(image.size))
    magnified = image.resize((image.width * factor, image.height * factor))
    larger = [mask.repeat(factor, axis=0).repeat(factor, axis=1) for mask in masks]
    return draw_regions(magnified, larger, [""] * len(larger), opacity=0.2)


def _embedded(image: Image.Image) -> str:
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _label(number: int, name: str, mask: NDArray[np.bool_]) -> Label:
    """A label at the top left of the region's box, or where the picture leaves room for it."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left, right = (100 * float(value) for value in (rows[0] / mask.shape[0], *cols[[0, -1]] / mask.shape[1]))
    leftwards = left > 60
    return Label(number, name, right if leftwards else left, top, above=top > 8, leftwards=leftwards)


def _area(mask: NDArray[np.bool_]) -> str:
    share = 100 * float(mask.mean())
    return f"{share:.1f}%" if share >= 0.1 else f"{int(mask.sum())} pixels"
