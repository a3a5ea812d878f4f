"""Inputs and weights of the golden data: regenerated from names, so that only outputs are stored."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden"


def load_json(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 array whose seed is its name."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode("utf-8"))))
    return generator.standard_normal(size=tuple(shape), dtype=np.float32)


def param(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weight of the parameter with this published state-dict name; scales of norms lie around 1, the rest around 0."""
    values = normal(name, shape) * np.float32(0.02)
    *parents, last = name.split(".")
    is_norm_scale = last == "weight" and any(part.startswith("ln_") or "norm" in part for part in parents)
    return np.float32(1.0) + values if is_norm_scale else values


def image(height: int, width: int) -> np.ndarray:
    """Test picture, uint8 RGB (height, width, 3): two gradients and a checked pattern."""
    y, x = np.mgrid[0:height, 0:width]
    red = (x * 255) // max(width - 1, 1)
    green = (y * 255) // max(height - 1, 1)
    blue = np.where(((x // 7) + (y // 5)) % 2 == 0, 230, 20) - ((3 * x + 5 * y) % 17)
    return np.stack([red, green, blue], -1).astype(np.uint8)


def golden_canvas_masks(height: int, width: int) -> list[np.ndarray]:
    """The 14 masks of the published pooling case, in its order, on a canvas of that size."""
    y, x = np.mgrid[0:height, 0:width]
    dots = [(y // 2 == row // 2) & (x // 2 == col // 2) for row, col in ((0, 0), (48, 48))]
    return [
        (y >= height // 4) & (y < height // 2) & (x >= width // 3) & (x < 2 * width // 3),
        (y - height // 2) ** 2 + (x - width // 2) ** 2 <= (min(height, width) // 4) ** 2,
        y == 70,
        y == 76,
        x == 77,
        x == 78,
        y == x,
        *dots,
        np.isin(y, (47, 48)) & np.isin(x, (55, 56)),
        (y == 49) & (x == 63),
        np.zeros((height, width), dtype=bool),
        np.ones((height, width), dtype=bool),
        (y >= height - 14) & (x >= width - 14),
    ]
