"""What is drawn over the picture: regions in their colours, the points and the box of the selection."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from osprey_tp.drawing import Colour
from osprey_tp.segmenters import Box, Point


@dataclass(frozen=True)
class DrawnRegion:
    """A region over the picture.

    Attributes:
        name: Its label, "" for none; hovering the same name in an answer makes the region stand out.
        mask: (height, width) boolean, source pixels.
        colour: Of fill and label.
        strength: Of the fill, 0 (outline alone) to 1.
        note: What hovering it tells.
    """

    name: str
    mask: NDArray[np.bool_]
    colour: Colour
    strength: float = 1.0
    note: str = ""


@dataclass(frozen=True)
class Overlay:
    """All that is drawn over a picture, in source pixels."""

    regions: tuple[DrawnRegion, ...] = ()
    points: tuple[Point, ...] = ()
    labels: tuple[bool, ...] = ()
    box: Box | None = None
