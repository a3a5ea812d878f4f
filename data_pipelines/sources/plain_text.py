"""What people wrote about a region, checked before it becomes part of a record with other regions."""

from __future__ import annotations

from typing import Any

from data_pipelines.records import REGION_REFERENCE
from data_pipelines.sources.reader import Unusable
from data_pipelines.sources.texts import shown, text_of
from osprey_tp.prompts import IMAGE_TOKEN, REGION_TOKEN


def plain_text(value: Any) -> str:
    """The caption without white space at its ends.

    Raises:
        Unusable: if it is no text, is empty, or would be taken for a placeholder or a reference to a region.
    """
    caption = text_of(value, "caption without text")
    if IMAGE_TOKEN in caption or REGION_TOKEN in caption or REGION_REFERENCE.search(caption):
        raise Unusable("caption holds a placeholder of the prompt", shown(caption))
    return caption
