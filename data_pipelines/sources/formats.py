"""Which published format an annotation file is of, told from its content."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

COCO_INSTANCES = "COCO instances"
COCO_CAPTIONS = "COCO captions"
REFCOCO_REEXPORT = "a RefCOCO re-export"

SOURCE_OF_FORMAT = {COCO_INSTANCES: "coco", COCO_CAPTIONS: "captions", REFCOCO_REEXPORT: "refcoco"}
"""Which source reads a format that was recognised; the others are recognised only to be named."""

_SAMPLED = 1000


def load_annotations(path: Path, expected: str) -> dict[str, Any]:
    """The content of a JSON file of the expected format.

    Raises:
        ValueError: if it cannot be read, or looks like another format, with the source that reads that.
    """
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise ValueError(f"annotation file {path} does not exist") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"annotation file {path} cannot be read as JSON: {reason}") from None
    found = recognise(content)
    if found == expected:
        return content
    if found is None:
        raise ValueError(f"{path} is not {expected}: {_outline(content)}")
    source = SOURCE_OF_FORMAT.get(found)
    remedy = f"use `{source}`" if source else "which no source reads"
    raise ValueError(f"{path} is not {expected}: this looks like {found}, {remedy}")


def recognise(content: Any) -> str | None:
    """The name of the format that the content of a JSON file has, None if it is none that is known."""
    if isinstance(content, list):
        keys = _keys(content)
        if "conversations" in keys or "description" in keys:
            return "Osprey-724K" if "annotation" in keys else "LLaVA conversations"
        return "COCO results" if {"image_id", "category_id"} <= keys else None
    if not isinstance(content, dict) or not all(
        isinstance(content.get(name), list) for name in ("images", "annotations")
    ):
        return None
    annotations, images = _keys(content["annotations"]), _keys(content["images"])
    if "segments_info" in annotations:
        return "COCO panoptic"
    if "caption" in images:
        return REFCOCO_REEXPORT
    if "caption" in annotations:
        return "a Visual Genome re-export" if "segmentation" in annotations else COCO_CAPTIONS
    if "question" in annotations:
        return "visual questions"
    if "coco_url" in images and "file_name" not in images:
        return "LVIS"
    is_instances = isinstance(content.get("categories"), list)
    return COCO_INSTANCES if is_instances else None


def _keys(entries: list[Any]) -> set[str]:
    """Every key that one of the first entries has."""
    return {key for entry in islice(entries, _SAMPLED) if isinstance(entry, dict) for key in entry}


def _outline(content: Any) -> str:
    if isinstance(content, dict):
        listed = ", ".join(sorted(map(str, content))[:8])
        return f"it holds an object with {listed or 'no keys'}, where images, annotations and categories are expected"
    return f"it holds a JSON {type(content).__name__}, where an object with images and annotations is expected"
