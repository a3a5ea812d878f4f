"""What people wrote about a region, checked before it becomes part of a record with other regions."""

from __future__ import annotations

from typing import Any

from data_pipelines.records import REGION_REFERENCE
from data_pipelines.sources.reader import Unusable
from osprey_tp.prompts import IMAGE_TOKEN, REGION_TOKEN


def plain_text(value: Any) -> str:
    """The caption without white space around it.

    Raises:
        Unusable: if it is no text, is empty, or would be taken for a placeholder or a reference to a region.
    """
    if not isinstance(value, str) or not value.strip():
        raise Unusable("caption without text", repr(value)[:80])
    found = [mark for mark in (IMAGE_TOKEN, REGION_TOKEN) if mark in value] + REGION_REFERENCE.findall(value)
    if found:
        raise Unusable("caption holds a placeholder of the prompt", repr(value)[:80])
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise Unusable("caption that is not Unicode", repr(value)[:80])
    return value.strip()
