"""Pictures whose pixels are ids of segments, and the masks of all segments of one in a single pass.

```
PNG ─► ids (height, width) ─► runs of equal ids, column by column ─► one compressed RLE an id
```
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from data_pipelines.sources.reader import Unusable
from data_pipelines.sources.segmentation import Rle
from osprey_tp.images import MAX_PIXELS, decoding, open_picture
from osprey_tp.outside import confined_path
from osprey_tp.run_lengths import Runs

Coding = Literal["rgb", "grey"]
"""How an id stands in a pixel: as R + 256 G + 256² B, or as a grey value of 8 to 32 bits."""

_MODES = {"rgb": ("RGB", "RGBA"), "grey": ("L", "I", "I;16")}


def read_id_map(root: Path, name: str, coding: Coding, size: tuple[int, int] | None = None) -> np.ndarray:
    """The ids of a PNG file.

    Args:
        root: Folder that the file must lie in.
        name: Its path relative to the folder.
        coding: How ids stand in it.
        size: (height, width) that it must have, looked at before anything is decoded; None for any.

    Returns:
        int64 (height, width), in source pixels.

    Raises:
        Unusable: if it is absent, leaves the folder, cannot be read, or has another size or coding.
    """
    try:
        path = confined_path(root, name)
    except ValueError as error:
        raise Unusable("path of the segment picture leaves its folder", str(error)) from None
    if not path.is_file():
        raise Unusable("segment picture not found", name)
    try:
        with open_picture(path, MAX_PIXELS, name) as picture:
            if size is not None and (picture.height, picture.width) != size:
                found = f"{picture.height} x {picture.width}, the picture {size[0]} x {size[1]} (height x width)"
                raise Unusable("segment picture of another size than the picture", found)
            if picture.mode not in _MODES[coding]:
                raise Unusable("segment picture of another kind", f"mode {picture.mode}, not {_MODES[coding][0]}")
            with decoding(name):
                pixels = np.asarray(picture)
    except ValueError as error:
        raise Unusable("segment picture cannot be read", str(error)) from None
    ids = pixels.astype(np.int64)
    return ids if coding == "grey" else ids[..., 0] + 256 * ids[..., 1] + 256**2 * ids[..., 2]


def masks_of(ids: np.ndarray) -> dict[int, Rle]:
    """The mask of every id that the picture holds, as compressed RLE, in the order of the ids.

    Args:
        ids: (height, width), in source pixels.
    """
    height, width = ids.shape
    pixels = ids.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(pixels[1:] != pixels[:-1]) + 1])
    ends = np.append(starts[1:], pixels.size)
    by_id = np.argsort(pixels[starts], kind="stable")
    found, firsts = np.unique(pixels[starts][by_id], return_index=True)
    return {
        int(number): Runs(height, width, starts[runs], ends[runs]).to_rle()
        for number, runs in zip(found, np.split(by_id, firsts[1:]), strict=True)
    }
