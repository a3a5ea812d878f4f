"""Pictures with regions drawn on them, for the app and for reports. Needs numpy and Pillow alone.

An outline of two bands, dark outside and light inside, has contrast against any picture: one of the two always differs
from what lies beside it. The translucent fill tells regions apart by colour without hiding what they show.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

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
    masks: Sequence[NDArray[np.bool_]],
    names: Sequence[str] = (),
    *,
    opacity: float = 0.4,
    colours: Sequence[Colour] | None = None,
    outline_width: int | None = None,
    font_size: int | None = None,
) -> Image.Image:
    """A copy of the picture with every region filled, outlined and labelled.

    `masks` are boolean arrays (height, width) in source pixels. `names` holds one label a region ("" draws none);
    without names several regions are numbered from 1 and a single one gets no label. `opacity` is the fill's share,
    from 0 to 1. `colours`, one a region, defaults to `region_colour`. `outline_width` of one band and `font_size` are
    in source pixels and follow the picture's size by default. An empty mask draws nothing.

    Raises `ValueError` if a mask has another size than the picture, or if the counts of masks, names or colours differ.
    """
    width, height = image.size
    masks = [_checked(mask, height, width, index) for index, mask in enumerate(masks)]
    if not names:
        names = [str(number) for number in range(1, len(masks) + 1)] if len(masks) > 1 else [""] * len(masks)
    colours = [region_colour(index) for index in range(len(masks))] if colours is None else colours
    if not len(masks) == len(names) == len(colours):
        raise ValueError(f"{len(masks)} masks, {len(names)} names, {len(colours)} colours: give one of each a region")

    pixels = np.array(image.convert("RGB"))
    band = line_width(height, width) if outline_width is None else outline_width
    # Large regions first, so that a region inside another one stays visible.
    for index in sorted(range(len(masks)), key=lambda index: -int(masks[index].sum())):
        _paint_region(pixels, masks[index], colours[index], opacity, band)
    drawn = Image.fromarray(pixels)
    font = ImageFont.load_default(size=font_size or max(11, round(max(height, width) / 45)))
    for mask, name, colour in zip(masks, names, colours, strict=True):
        if name and mask.any():
            _draw_label(drawn, mask, name, colour, font)
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


def _checked(mask: NDArray[np.bool_], height: int, width: int, index: int) -> NDArray[np.bool_]:
    mask = np.asarray(mask)
    if mask.shape != (height, width):
        raise ValueError(f"mask {index} has shape {mask.shape}, the picture is (height, width) = ({height}, {width})")
    return mask.astype(bool, copy=False)


def _paint_region(
    pixels: NDArray[np.uint8], mask: NDArray[np.bool_], colour: Colour, opacity: float, band: int
) -> None:
    """Fills and outlines one region in place; works inside the region's own box only."""
    box = _bounding_box(mask)
    if box is None:
        return
    x0, y0, x1, y1 = box
    height, width = mask.shape
    view = (slice(max(0, y0 - band), min(height, y1 + band)), slice(max(0, x0 - band), min(width, x1 + band)))
    inside, window = mask[view], pixels[view]
    window[inside] = np.round(window[inside] * (1 - opacity) + np.asarray(colour) * opacity).astype(np.uint8)
    window[_grow(inside, band) & ~inside] = DARK
    # The picture's border is no outline: a region cut off by it continues.
    window[inside & _grow(~inside, band)] = LIGHT


def _grow(mask: NDArray[np.bool_], steps: int) -> NDArray[np.bool_]:
    """Dilation, alternating between four and eight neighbours for a nearly round brush."""
    grown = mask.copy()
    for step in range(steps):
        previous = grown.copy()
        grown[1:] |= previous[:-1]
        grown[:-1] |= previous[1:]
        sideways = grown.copy() if step % 2 else previous
        grown[:, 1:] |= sideways[:, :-1]
        grown[:, :-1] |= sideways[:, 1:]
    return grown


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """(x0, y0, x1, y1) of the true pixels, the far ends exclusive; None if there are none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _draw_label(
    image: Image.Image,
    mask: NDArray[np.bool_],
    name: str,
    colour: Colour,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Writes the name on a dark plate above the region, or at its top where the picture leaves no room above."""
    box = _bounding_box(mask)
    if box is None:
        return
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = draw.textbbox((0, 0), name, font=font)
    padding = max(2, round((bottom - top) / 4))
    plate_width, plate_height = right - left + 3 * padding, bottom - top + 2 * padding
    x = max(0, min(box[0], image.width - plate_width))
    y = box[1] - plate_height - padding
    if y < 0:
        y = min(box[1] + padding, max(0, image.height - plate_height))
    draw.rectangle((x, y, x + plate_width, y + plate_height), fill=DARK)
    draw.rectangle((x, y, x + padding // 2 + 1, y + plate_height), fill=colour)
    draw.text((x + 2 * padding - left, y + padding - top), name, fill=LIGHT, font=font)
