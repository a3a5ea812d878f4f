"""Pictures for galleries: the scene at a readable size, the region outlined and the rest subdued, as JPEG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

DISPLAY_SIDE = 480
LARGEST_ENLARGEMENT = 3.0
OUTLINE = 2
SUBDUED = 0.55
JPEG_QUALITY = 82


def gallery_picture(
    image: Image.Image, masks: Sequence[NDArray[np.bool_]], names: Sequence[str] = (), side: int = DISPLAY_SIDE
) -> bytes:
    """The picture with its regions outlined and all else greyed.

    It is scaled so that its longer side is `side` pixels, but enlarged 3 times at most.

    Args:
        image: the picture.
        masks: boolean arrays (height, width) in source pixels.
        names: one label a region; none by default.
        side: display pixels.

    Returns:
        The bytes of a JPEG file.
    """
    from osprey_tp.drawing import draw_regions

    scale = min(side / max(image.size), LARGEST_ENLARGEMENT)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    shown = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    scaled = [_scaled(mask, size) for mask in masks]
    shown = _subdue(shown, np.any(scaled, axis=0)) if masks else shown
    around = [_grown(mask) for mask in scaled]
    drawn = draw_regions(shown, around, names or [""] * len(masks), opacity=0, outline_width=OUTLINE)
    file = io.BytesIO()
    drawn.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _subdue(image: Image.Image, kept: NDArray[np.bool_]) -> Image.Image:
    """The picture with everything outside the mask `kept` (height, width) drawn towards a light grey of itself."""
    grey = Image.merge("RGB", [image.convert("L").point(lambda value: 110 + value // 2)] * 3)
    return Image.composite(image, Image.blend(image, grey, SUBDUED), Image.fromarray(kept.astype(np.uint8) * 255))


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask with a margin for the outline's inner band, which would hide a small region."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.filter(ImageFilter.MaxFilter(2 * OUTLINE + 1))) > 0


def _scaled(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask at another (width, height); a region too small to fill half a pixel keeps the pixels it falls on."""
    area = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
    scaled = np.asarray(area) >= 128
    if not scaled.any():
        rows, columns = np.nonzero(mask)
        scaled[rows * size[1] // mask.shape[0], columns * size[0] // mask.shape[1]] = True
    return scaled
