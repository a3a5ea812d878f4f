"""What turns a click or a box into region masks: the interface, and the choice of a segmenter by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Point = tuple[float, float]
Box = tuple[float, float, float, float]

SEGMENTER_NAMES = ("grabcut", "sam:PATH")
VIT_SIZES = {768: "ViT-B", 1024: "ViT-L", 1280: "ViT-H"}
"""Published sizes of Segment Anything by the width of the image encoder."""


@dataclass(frozen=True)
class Candidate:
    """One answer to a click: a boolean mask (height, width) in source pixels, and how good it seems, 0 to 1."""

    mask: NDArray[np.bool_]
    score: float


class SegmentedImage(Protocol):
    """A picture that a segmenter has taken in; whatever is costly and depends on the picture alone is done."""

    def segment(self, points: Sequence[Point], labels: Sequence[bool], box: Box | None = None) -> list[Candidate]:
        """Masks of the object that the points and the box show, best first; never an empty list or an empty mask.

        `points` are (x, y) in source pixels, `labels` say which of them lie on the object (true) and which off it.
        `box` is (x0, y0, x1, y1) in source pixels. Raises `ValueError` if no positive point and no box is given, if a
        point or the box lies outside the picture, or if nothing is found.
        """
        ...

    def everything(self, most: int = 64) -> list[Candidate]:
        """Masks of all objects in the picture, best first, no two of one object, at most `most`; may be empty."""
        ...


class Segmenter(Protocol):
    """Makes masks from clicks. `description` names it, and its weights, for the user."""

    description: str

    def open(self, image: Image.Image) -> SegmentedImage:
        """Takes in an RGB picture; slow for a neural segmenter, so keep what is returned."""
        ...


def load_segmenter(specification: str, device: str = "cpu") -> Segmenter:
    """The segmenter for `NAME[:PATH]`: `grabcut`, or `sam:PATH`.

    The path is a checkpoint file of the `segment_anything` package (ViT-B, ViT-L or ViT-H, recognised from its shapes),
    or a folder of transformers with a model of its families SAM, SAM-HQ, SAM 2, SAM 3 or EdgeTAM.

    Raises `ValueError` for an unknown name or an unreadable model, `FileNotFoundError` for a missing one, and
    `ImportError` saying what to install if the segmenter's package is missing.
    """
    name, _, path = specification.partition(":")
    if name == "grabcut" and path:
        raise ValueError(f"segmenter grabcut takes no checkpoint, got {specification!r}")
    if name == "sam" and not path:
        raise ValueError("segmenter sam needs a checkpoint file or a model folder: sam:PATH")
    if name not in ("grabcut", "sam"):
        raise ValueError(f"unknown segmenter {name!r}; choose from {', '.join(SEGMENTER_NAMES)}")
    try:
        if name == "grabcut":
            from osprey_tp.grabcut import GrabCutSegmenter

            return GrabCutSegmenter()
        if Path(path).is_dir():
            from osprey_tp.sam_transformers import TransformersSegmenter

            return TransformersSegmenter.from_folder(Path(path), device=device)
        from osprey_tp.sam import SamSegmenter

        return SamSegmenter.from_checkpoint(Path(path), device=device)
    except ImportError as error:
        raise ImportError(f"segmenter {name} needs the package {error.name}: pip install 'osprey_tp[app]'") from error


def check_prompts(
    points: Sequence[Point], labels: Sequence[bool], box: Box | None, height: int, width: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The points (n, 2) and labels (n,) as arrays, or `ValueError` saying which of them cannot be used."""
    if len(points) != len(labels):
        raise ValueError(f"{len(points)} points, {len(labels)} labels: give one label a point")
    if box is None and not any(labels):
        raise ValueError("no point on the object: click the object first, or draw a box")
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"point ({x:g}, {y:g}) lies outside the picture of {width}x{height} pixels")
    if box is not None:
        x0, y0, x1, y1 = box
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(
                f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) does not fit the picture of {width}x{height} pixels"
            )
    return np.asarray(points, dtype=np.float64).reshape(-1, 2), np.asarray(labels, dtype=bool)
