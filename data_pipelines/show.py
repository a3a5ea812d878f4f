"""A page that shows records as a model will see them; people look before they train."""

from __future__ import annotations

import base64
import io
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from data_pipelines.conversations import conversation_of
from data_pipelines.prompts import PromptStyle
from data_pipelines.records import RecordFolder, RegionRecord
from osprey_tp.drawing import draw_regions, region_colour
from osprey_tp.images import load_image
from osprey_tp.masks import to_mask
from osprey_tp.prompts import REGION_TOKEN

LONGEST_SIDE = 960
"""Of the embedded pictures, in pixels; larger ones are shrunk."""

SHORTEST_SHOWN = 480
"""Pictures whose longer side is below are magnified by a whole factor, so that small regions can be seen."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #1c1c22 }
article { display: grid; grid-template-columns: minmax(0, 3fr) minmax(18rem, 2fr); gap: 1.5rem;
  border-top: 1px solid #ccc; padding: 1.5rem 0 }
@media (max-width: 50rem) { article { grid-template-columns: minmax(0, 1fr) } }
h2 { grid-column: 1 / -1; margin: 0; font-size: 1.1rem; overflow-wrap: anywhere }
h2 small { font-weight: normal; color: #555 }
img { max-width: 100%; height: auto; display: block }
ul { list-style: none; padding: 0; margin: .75rem 0; display: flex; flex-wrap: wrap; gap: .25rem 1rem }
.region { border: .15rem solid var(--colour); border-radius: .3rem; padding: 0 .3rem }
.user, .assistant { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 .6rem; padding: .4rem .7rem;
  border-radius: .5rem; background: #eef1f6 }
.assistant { margin-left: 2rem; background: #e4f3e7 }
</style>
<h1>{{ title }}</h1>
<p>{{ subtitle }}</p>
{% macro badge(number) -%}
<span class="region" style="--colour: {{ colours[number] }}">{{ number }}</span>
{%- endmacro %}
{% for sample in samples %}
<article>
<h2>{{ sample.record.id }} <small>{{ sample.record.image }}, {{ sample.record.height }} × {{ sample.record.width }}
(height × width), {{ sample.record.regions | length }} regions</small></h2>
<div>
<img src="data:image/jpeg;base64,{{ sample.picture }}" alt="{{ sample.record.image }} with its regions">
<ul>{% for region in sample.record.regions %}
<li>{{ badge(loop.index) }} {{ region.name or "(no name)" }}</li>{% endfor %}
</ul>
</div>
<div>{% for message in sample.messages %}
<p class="{{ message.role }}">{% for part in message.parts -%}
{% if part is number %}{{ badge(part) }}{% else %}{{ part }}{% endif %}
{%- endfor %}</p>{% endfor %}
</div>
</article>
{% endfor %}
</html>
"""


def write_page(
    folder: RecordFolder,
    out: str | Path,
    *,
    limit: int = 20,
    seed: int = 0,
    prompt_style: PromptStyle = "clean",
    progress: bool = True,
) -> int:
    """Write a page of `limit` random records, whole in one file, and return how many it shows.

    Raises:
        ValueError: naming the record, if its picture cannot be shown.
    """
    from jinja2 import Environment
    from tqdm import tqdm

    out = Path(out)
    if limit < 1:
        raise ValueError(f"the limit is {limit}; it must be at least 1")
    chosen = sorted(random.Random(seed).sample(range(len(folder)), min(limit, len(folder))))
    with tqdm(chosen, desc="drawing", unit="record", disable=not progress) as bar:
        samples = [_sample(folder, folder[index], prompt_style) for index in bar]
    most = max(len(sample["record"].regions) for sample in samples)
    text = (
        Environment(autoescape=True)
        .from_string(PAGE)
        .render(
            title=f"Records of {folder.path.resolve().name}",
            subtitle=f"{len(samples)} of {len(folder)} records of the source {folder.manifest['source']}, "
            f"{prompt_style} wording. A number in a frame is the place of a region in the prompt.",
            samples=samples,
            colours={number: f"rgb{region_colour(number - 1)}" for number in range(1, most + 1)},
        )
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.partial")
    aside.write_text(text, encoding="utf-8")
    aside.rename(out)
    return len(samples)


def _sample(folder: RecordFolder, record: RegionRecord, prompt_style: PromptStyle) -> dict[str, Any]:
    try:
        image = load_image(folder.image_path(record))
        masks = [to_mask(region.segmentation, record.height, record.width) for region in record.regions]
        factor = max(1, SHORTEST_SHOWN // max(image.size))
        magnified = image.resize((image.width * factor, image.height * factor))
        masks = [mask.repeat(factor, axis=0).repeat(factor, axis=1) for mask in masks]
        numbers = [str(number) for number in range(1, len(masks) + 1)]
        drawn = draw_regions(magnified, masks, numbers, opacity=0.2)
    except (OSError, ValueError) as error:
        raise ValueError(f"{error} (record {record.id}); see `validate`") from error
    messages = conversation_of(record, None, prompt_style=prompt_style)
    return {"record": record, "picture": _embedded(drawn), "messages": list(_shown(record, messages))}


def _embedded(image: Image.Image) -> str:
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _shown(record: RegionRecord, messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Messages as parts: text, and the number of the region, from 1, for each `<mask>`."""
    picture = messages[0]["content"][0]
    number_of = {region.segmentation["counts"]: number for number, region in enumerate(record.regions, start=1)}
    numbers = iter([number_of[mask["counts"]] for mask in picture["regions"]])
    for message in messages:
        content = message["content"]
        text = content if isinstance(content, str) else "".join(item.get("text", "") for item in content)
        pieces = re.split(f"({re.escape(REGION_TOKEN)})", text)
        parts = [next(numbers) if piece == REGION_TOKEN else piece for piece in pieces]
        yield {"role": message["role"], "parts": parts}
