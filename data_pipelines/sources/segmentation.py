"""From what annotation files call a segmentation to a region's mask, or the reason why there is none."""

from __future__ import annotations

import math
from typing import Any

from data_pipelines.sources.reader import Unusable
from osprey_tp.masks import to_mask, to_rle


def read_segmentation(segmentation: Any, height: int, width: int) -> tuple[dict[str, Any], int]:
    """The mask of an annotation in any of COCO's three forms.

    Polygons of fewer than three points are left out where others remain: pycocotools would take one of two points for
    a box.

    Args:
        segmentation: Polygons, or compressed or uncompressed RLE.
        height: Of the picture, in source pixels.
        width: Of the picture, in source pixels.

    Returns:
        Compressed RLE in source pixels, and the number of polygons that were left out.

    Raises:
        Unusable: with the reason.
    """
    if segmentation is None:
        raise Unusable("no segmentation")
    left_out = 0
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if not (isinstance(polygon, list) and len(polygon) < 6)]
        left_out = len(segmentation) - len(polygons)
        if not polygons and any(segmentation):
            raise Unusable("degenerate polygon", f"{left_out} of fewer than 3 points")
        segmentation = polygons
    if not segmentation:
        raise Unusable("empty segmentation")
    try:
        return to_rle(segmentation, height, width), left_out
    except ValueError as error:
        raise Unusable(_reason(segmentation, height, width), str(error)) from None


def _reason(segmentation: Any, height: int, width: int) -> str:
    """What kind of failure it is that `to_rle` described in words."""
    if isinstance(segmentation, dict) and segmentation.get("size") != [height, width]:
        return "mask of another size than the picture"
    if isinstance(segmentation, list) and any(_leaves(polygon, height, width) for polygon in segmentation):
        return "segmentation leaves the picture"
    try:
        to_mask(segmentation, height, width, allow_empty=True)
    except ValueError:
        return "malformed segmentation"
    return "segmentation covers no pixel"


def _leaves(polygon: Any, height: int, width: int) -> bool:
    if not isinstance(polygon, list) or not all(isinstance(value, (int, float)) for value in polygon):
        return False
    if not all(math.isfinite(value) for value in polygon):
        return False
    return min(polygon) < 0 or max(polygon[0::2]) > width or max(polygon[1::2]) > height
