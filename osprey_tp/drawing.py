"""Pictures with regions drawn on them, for the app and for reports. Needs numpy and Pillow alone.

An outline of two bands, dark outside and light inside, has contrast against any picture: one of the two always differs
from what lies beside it. The translucent fill tells regions apart by colour without hiding what they show.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from osprey_tp.labels import place_labels

Colour = tuple[int, int, int]

# Hues far apart from each other, ordered so that neighbours in the list differ most.
REGION_COLOURS: tuple[Colour, ...] = (
    (255, 99, 71),
    (30, 144, 255),
    (255, 200, 0),
    (50, 205, 50),
    (218, 112, 214),
    (0, 206, 209),
    (255, 140, 0),
    (147, 112, 219),
    (240, 98, 146),
    (139, 195, 74),
)
DARK: Colour = (20, 20, 24)
LIGHT: Colour = (255, 255, 255)
POSITIVE: Colour = (22, 163, 74)
NEGATIVE: Colour = (220, 38, 38)


def region_colour(index: int) -> Colour:
    """The colour of region number `index`, counted from 0; the same in every picture."""
    return REGION_COLOURS[index % len(REGION_COLOURS)]


def line_width(height: int, width: int) -> int:
    """Width in source pixels of an outline that looks alike on pictures of every size."""
    return max(1, round(max(height, width) / 450))


def draw_regions(
    image: Image.Image,
    masks: Iterable[NDArray[np.bool_]],
    names: Sequence[str] = (),
    *,
    opacity: float = 0.4,
    colours: Sequence[Colour] | None = None,
    outline_width: int | None = None,
    font_size: int | None = None,
) -> Image.Image:
    """A copy of the picture with every region filled, outlined and labelled.

    `masks` are boolean arrays (height, width) in source pixels, read one at a time. `names` holds one label a region
    ("" draws none); without names several regions are numbered from 1 and a single one gets no label. `opacity` is the
    fill's share, from 0 to 1. `colours`, one a region, defaults to `region_colour`. `outline_width` of one band and
    `font_size` are in source pixels and follow the picture's size by default. An empty mask draws nothing.

    Raises `ValueError` if a mask has another size than the picture, or if the counts of masks, names or colours differ.
    """
    width, height = image.size
    parts = [_part(mask, height, width, index) for index, mask in enumerate(masks)]
    if not names:
        names = [str(number) for number in range(1, len(parts) + 1)] if len(parts) > 1 else [""] * len(parts)
    colours = [region_colour(index) for index in range(len(parts))] if colours is None else colours
    if not len(parts) == len(names) == len(colours):
        raise ValueError(f"{len(parts)} masks, {len(names)} names, {len(colours)} colours: give one of each a region")

    pixels = np.array(image.convert("RGB"))
    band = line_width(height, width) if outline_width is None else outline_width
    # Large regions first, so that a region inside another one stays visible.
    for index in sorted(range(len(parts)), key=lambda index: -int(parts[index][0].sum())):
        _paint_region(pixels, *parts[index], colours[index], opacity, band)
    drawn = Image.fromarray(pixels)
    font = ImageFont.load_default(size=font_size or max(11, round(max(height, width) / 45)))
    _draw_labels(drawn, parts, names, colours, font, band)
    return drawn


def draw_points(
    image: Image.Image, points: Sequence[tuple[float, float]], labels: Sequence[bool], *, radius: int | None = None
) -> Image.Image:
    """A copy of the picture with a marker at each (x, y) in source pixels: a plus in green where the label is true, a
    minus in red where it is false. `radius` in source pixels follows the picture's size by default.
    """
    drawn = image.convert("RGB") if image.mode != "RGB" else image.copy()
    width, height = drawn.size
    radius = max(4, round(max(height, width) / 75)) if radius is None else radius
    stroke = max(1, radius // 4)
    draw = ImageDraw.Draw(drawn)
    for (x, y), positive in zip(points, labels, strict=True):
        for extent, colour in ((radius + 2 * stroke, DARK), (radius + stroke, LIGHT)):
            draw.ellipse((x - extent, y - extent, x + extent, y + extent), fill=colour)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=POSITIVE if positive else NEGATIVE)
        arm = radius * 0.55
        draw.line((x - arm, y, x + arm, y), fill=LIGHT, width=max(1, stroke))
        if positive:
            draw.line((x, y - arm, x, y + arm), fill=LIGHT, width=max(1, stroke))
    return drawn


Part = tuple[NDArray[np.bool_], int, int]
"""A mask inside its bounding box, with the box's top and left; (0, 0) pixels for an empty mask."""


def _part(mask: NDArray[np.bool_], height: int, width: int, index: int) -> Part:
    mask = np.asarray(mask)
    if mask.shape != (height, width):
        raise ValueError(f"mask {index} has shape {mask.shape}, the picture is (height, width) = ({height}, {width})")
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return np.zeros((0, 0), dtype=bool), 0, 0
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(axis=0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    return np.ascontiguousarray(mask[top:bottom, left:right], dtype=bool), top, left


def _paint_region(
    pixels: NDArray[np.uint8], mask: NDArray[np.bool_], top: int, left: int, colour: Colour, opacity: float, band: int
) -> None:
    """Fills and outlines one region in place; works inside the region's own box only."""
    if not mask.size:
        return
    height, width = pixels.shape[:2]
    above, before = min(top, band), min(left, band)
    below = min(height - top - mask.shape[0], band)
    behind = min(width - left - mask.shape[1], band)
    inside = np.pad(mask, ((above, below), (before, behind)))
    window = pixels[top - above : top + mask.shape[0] + below, left - before : left + mask.shape[1] + behind]
    for channel in range(3):
        mixed = np.round(np.arange(256) * (1 - opacity) + colour[channel] * opacity).astype(np.uint8)
        np.copyto(window[..., channel], mixed[window[..., channel]], where=inside)
    window[_grow(inside, band) & ~inside] = DARK
    # The picture's border is no outline: a region cut off by it continues.
    window[inside & _grow(~inside, band)] = LIGHT


def _grow(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Dilation (height, width) by a disc, 64 pixels of a row at a time."""
    height, width = mask.shape
    bits = np.pad(mask, ((radius, radius), (0, -width % 64)))
    spread = np.packbits(bits, axis=1, bitorder="little").view("<u8")
    grown = np.zeros((height, spread.shape[1]), dtype="<u8")
    reached = 0
    for down in range(radius, -1, -1):
        for _ in range(reached, math.isqrt(radius * radius + radius // 2 - down * down)):
            spread = _widened(spread)
            reached += 1
        grown |= spread[radius - down : radius - down + height]
        grown |= spread[radius + down : radius + down + height]
    return np.unpackbits(grown.view(np.uint8), axis=1, bitorder="little", count=width).view(bool)


def _widened(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Rows of bits, the lowest first, with both neighbours of every bit set, too."""
    wide = words | (words << np.uint64(1)) | (words >> np.uint64(1))
    wide[:, 1:] |= words[:, :-1] >> np.uint64(63)
    wide[:, :-1] |= words[:, 1:] << np.uint64(63)
    return wide


def _draw_labels(
    image: Image.Image,
    parts: Sequence[Part],
    names: Sequence[str],
    colours: Sequence[Colour],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    band: int,
) -> None:
    """Writes the names on dark plates; one that found no place at its region is tied to it by a line."""
    draw = ImageDraw.Draw(image)
    texts = [draw.textbbox((0, 0), name, font=font) for name in names]
    padding = [max(2, round((bottom - top) / 4)) for _, top, _, bottom in texts]
    sizes = [
        (round(right - left + 3 * pad), round(bottom - top + 2 * pad)) if name and part[0].size else None
        for name, part, (left, top, right, bottom), pad in zip(names, parts, texts, padding, strict=True)
    ]
    plates = place_labels(parts, sizes, image.height, image.width, gap=2 * band)
    for plate in plates:
        if plate is not None and plate.leads_to is not None:
            x0, y0, x1, y1 = plate.rectangle
            line = ((x0 + x1) / 2, (y0 + y1) / 2, *plate.leads_to)
            draw.line(line, fill=DARK, width=3 * band)
            draw.line(line, fill=LIGHT, width=band)
    for plate, name, colour, (left, top, _, _), pad in zip(plates, names, colours, texts, padding, strict=True):
        if plate is not None:
            x0, y0, x1, y1 = map(round, plate.rectangle)
            draw.rectangle((x0, y0, x1, y1), fill=DARK)
            draw.rectangle((x0, y0, x0 + pad // 2 + 1, y1), fill=colour)
            draw.text((x0 + 2 * pad - left, y0 + pad - top), name, fill=LIGHT, font=font)
