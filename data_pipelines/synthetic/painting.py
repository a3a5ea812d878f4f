"""Pixels of a scene: backgrounds, clutter, textured shapes, noise."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data_pipelines.synthetic.shapes import Polygon

Picture = NDArray[np.float32]
"""(height, width, 3), 0 to 255."""

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (218, 38, 40),
    "orange": (246, 134, 26),
    "yellow": (248, 218, 48),
    "green": (48, 168, 74),
    "cyan": (62, 208, 216),
    "blue": (42, 84, 212),
    "purple": (136, 62, 182),
    "pink": (248, 140, 192),
}
DARK_SHADE = 0.4
"""Stripes, dots and outlines are the shape's own colour times this, so that its hue stays one."""

SUPERSAMPLING = 4
BACKGROUNDS: tuple[str, ...] = ("plain", "graded", "checkered", "striped", "cloudy")


def paint_background(rng: np.random.Generator, height: int, width: int) -> Picture:
    """A muted background (height, width, 3) in one of the styles of ``BACKGROUNDS``, with grey clutter on it."""
    first, second = _muted_pair(rng)
    y, x = np.mgrid[:height, :width].astype(np.float32) / min(height, width)
    angle = rng.uniform(0, np.pi)
    across = x * np.cos(angle) + y * np.sin(angle)
    style = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    if style == "plain":
        share = np.zeros((height, width), np.float32)
    elif style == "graded":
        share = (across - across.min()) / max(float(np.ptp(across)), 1e-6)
    elif style == "checkered":
        side = rng.uniform(0.09, 0.22)
        share = ((x // side + y // side) % 2).astype(np.float32)
    elif style == "striped":
        share = ((across // rng.uniform(0.08, 0.2)) % 2).astype(np.float32)
    else:
        coarse = Image.fromarray(rng.random((5, 7)).astype(np.float32))
        share = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)
    picture = (first + share[..., None] * (second - first)).astype(np.float32)
    return _add_clutter(rng, picture)


def _muted_pair(rng: np.random.Generator) -> tuple[Picture, Picture]:
    """Two neighbouring colours of low saturation, (3,) each."""
    hue, saturation, value = rng.random(), rng.uniform(0.02, 0.22), rng.uniform(0.3, 0.92)
    other = np.clip(value + rng.choice([-1, 1]) * rng.uniform(0.06, 0.14), 0.2, 1.0)
    pair = [colorsys.hsv_to_rgb(hue, saturation, level) for level in (value, float(other))]
    return 255 * np.array(pair[0], np.float32), 255 * np.array(pair[1], np.float32)


def _add_clutter(rng: np.random.Generator, picture: Picture) -> Picture:
    """Draw up to four thin curves in grey: things that no annotation names."""
    height, width = picture.shape[:2]
    image = Image.fromarray(picture.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 5)):
        start, end = rng.uniform(0, 1, (2, 2)) * (width, height)
        bend = rng.normal(0, 0.15 * min(height, width), 2)
        steps = np.linspace(0, 1, 12)[:, None]
        curve = start + steps * (end - start) + 4 * steps * (1 - steps) * bend
        grey = int(rng.integers(60, 210))
        points = [tuple(point) for point in curve.tolist()]
        draw.line(points, fill=(grey, grey, grey), width=max(1, round(height / 128)))
    return np.asarray(image).astype(np.float32)


def paint_shape(
    rng: np.random.Generator, picture: Picture, polygons: list[Polygon], texture: str, colour: str, radius: float
) -> None:
    """Paint one textured shape, antialiased, onto ``picture`` in place.

    Args:
        rng: chooses shade, phase and direction of the texture.
        picture: (height, width, 3).
        polygons: border and holes in source pixels, as ``shapes.outline`` gives them.
        texture: one of ``vocabulary.TEXTURES``.
        colour: one of ``vocabulary.COLOURS``.
        radius: in source pixels; it sets the scale of stripes and dots.

    """
    height, width = picture.shape[:2]
    low = np.maximum(np.floor(polygons[0].min(axis=0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(polygons[0].max(axis=0)).astype(int) + 2, (width, height))
    inside, edge = _antialiased(polygons, low, high, line_width=max(1.0, 0.05 * radius))
    base = np.array(PALETTE[colour], np.float32) * rng.uniform(0.88, 1.04) + rng.normal(0, 6, 3).astype(np.float32)
    y, x = np.mgrid[low[1] : high[1], low[0] : high[0]].astype(np.float32)
    pattern = _texture_pattern(rng, texture, x, y, radius)
    light = 1 - 0.1 * ((x - x.mean()) + (y - y.mean())) / (2 * radius)
    dark = np.maximum(pattern, 0.75 * edge)[..., None]
    paint = (base * light[..., None]) * (1 - dark * (1 - DARK_SHADE))
    window = picture[low[1] : high[1], low[0] : high[0]]
    window += inside[..., None] * (paint - window)


def _antialiased(
    polygons: list[Polygon], low: NDArray[np.int_], high: NDArray[np.int_], line_width: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Share of each pixel of the window [low, high) inside the shape, and on its outline; (h, w) each, 0 to 1."""
    scale = SUPERSAMPLING
    size = (int(high[0] - low[0]) * scale, int(high[1] - low[1]) * scale)
    inside, edge = Image.new("L", size), Image.new("L", size)
    for index, polygon in enumerate(polygons):
        points = [tuple(point) for point in ((polygon - low) * scale).tolist()]
        ImageDraw.Draw(inside).polygon(points, fill=0 if index else 255)
        ImageDraw.Draw(edge).line([*points, points[0]], fill=255, width=max(1, round(2 * line_width * scale)))
    reduced = [np.asarray(image.reduce(scale), np.float32) / np.float32(255) for image in (inside, edge)]
    return reduced[0], reduced[1]


def _texture_pattern(
    rng: np.random.Generator, texture: str, x: NDArray[np.float32], y: NDArray[np.float32], radius: float
) -> NDArray[np.float32]:
    """Share of the dark shade at each pixel, 0 to 1; ``x`` and ``y`` are pixel centres in source pixels."""
    if texture == "solid":
        return np.zeros_like(x)
    angle, phase_u, phase_v = rng.uniform(0, np.pi), *rng.uniform(0, 2 * np.pi, 2)
    pitch = max(4.8, 0.42 * radius)
    u = 2 * np.pi / pitch * (x * np.cos(angle) + y * np.sin(angle)) + phase_u
    if texture == "striped":
        return np.clip(0.5 + 1.4 * np.sin(u), 0, 1).astype(np.float32)
    v = 2 * np.pi / pitch * (y * np.cos(angle) - x * np.sin(angle)) + phase_v
    return np.clip(0.5 + 1.6 * (np.cos(u) + np.cos(v) - 0.75), 0, 1).astype(np.float32)


def add_noise(rng: np.random.Generator, picture: Picture) -> NDArray[np.uint8]:
    """The picture as bytes, with Gaussian noise of a standard deviation between 1 and 9 grey levels."""
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(1, 9))
    return np.clip(picture + noise, 0, 255).round().astype(np.uint8)
