"""Noisy pictures of plain and striped shapes with their masks."""

import math

import numpy as np
from PIL import Image, ImageDraw


def iou(first, second):
    return (first & second).sum() / (first | second).sum()


def drawn(kind: str, size=(300, 200)) -> tuple[Image.Image, np.ndarray, tuple[float, float]]:
    """A noisy picture with one shape among distractors, the shape's mask, and a point on it."""
    outline = Image.new("L", size)
    draw = ImageDraw.Draw(outline)
    if kind == "ring":
        draw.ellipse((40, 40, 140, 140), fill=255)
        draw.ellipse((65, 65, 115, 115), fill=0)
        point = (52.0, 90.0)
    elif kind == "triangle":
        draw.polygon([(40, 150), (150, 150), (95, 40)], fill=255)
        point = (95.0, 110.0)
    else:
        draw.polygon([(95 + r * math.cos(a), 95 + r * math.sin(a)) for r, a in _star()], fill=255)
        point = (95.0, 95.0)
    mask = np.array(outline) > 0
    noise = np.random.default_rng(0).normal(0, 6, (size[1], size[0], 3))
    pixels = np.full((size[1], size[0], 3), (120.0, 125.0, 110.0)) + np.linspace(-15, 15, size[0])[None, :, None]
    pixels[20:70, 200:280] = (50, 80, 210)
    pixels[120:180, 190:240] = (220, 60, 50)
    pixels[mask] = (220, 60, 50)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)), mask, point


def _star():
    return [(55 if corner % 2 == 0 else 24, corner * math.pi / 5) for corner in range(10)]


def striped(size=(300, 200)) -> tuple[Image.Image, np.ndarray, tuple[float, float]]:
    image, mask, point = drawn("triangle", size)
    pixels = np.array(image)
    stripes = (np.add.outer(np.arange(size[1]), np.arange(size[0])) // 5) % 2 == 0
    pixels[mask & stripes] = (245, 190, 180)
    return Image.fromarray(pixels), mask, point
