"""Pictures from outside: every form a picture comes in becomes one RGB picture, or one line that says why not."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from osprey_tp.outside import one_line

MAX_PIXELS = 100_000_000
"""Default limit of height times width of a picture."""

PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""File formats that are decoded; others of Pillow's start programs or fetch further files."""

_SIXTEEN_BIT_TO_EIGHT = 257
_ROWS_AT_A_TIME = 256
_LONGEST_PATH = 1000  # characters
_ON_ITS_SIDE = (5, 6, 7, 8)
"""Values of EXIF's orientation that swap height and width."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `check_pixels` refuses, in words


def load_image(source: Any, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Picture in any form as an RGB picture of 8 bits a channel, turned upright as its EXIF data say.

    Transparent pictures are laid over white, 16-bit pictures scaled to 8 bits, of animations the first frame is taken.

    Args:
        source: Path of a file; PIL picture; numpy array (height, width, 3), or (height, width) or with 1 or 4 channels,
            uint8 or floats in [0, 1]; torch tensor alike with the channels first.
        max_pixels: Limit of height times width, checked before anything is decoded.

    Raises:
        ValueError: If the source cannot be read, is too large, or is no picture; the message names the source.
    """
    if isinstance(source, (str, Path)):
        name = name_of(source)
        with decoding(name), open_picture(source, max_pixels, name) as picture:
            return _to_rgb(picture, name)
    if isinstance(source, Image.Image):
        filename = getattr(source, "filename", "")
        name = name_of(filename) if filename else "the picture"
        check_pixels(source.height, source.width, max_pixels, name)
        with decoding(name):
            return _to_rgb(source, name)
    if hasattr(source, "detach"):
        return _array_to_rgb(_channels_last(source), max_pixels, f"tensor of shape {tuple(source.shape)}")
    if isinstance(source, np.ndarray):
        return _array_to_rgb(source, max_pixels, f"array of shape {source.shape}")
    raise ValueError(f"a picture is a path, a PIL picture, an array or a tensor, not {type(source).__name__}")


def picture_size(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) in pixels of what `load_image` makes of a file, without decoding it where its header says enough.

    Raises:
        ValueError: As `open_picture`.
    """
    name = name_of(path)
    with decoding(name), open_picture(path, max_pixels, name) as picture:
        if picture.format == "TIFF":  # which of the two sizes Pillow tells before decoding depends on its version
            upright = ImageOps.exif_transpose(picture)
            return upright.height, upright.width
        lies_on_its_side = picture.getexif().get(ExifTags.Base.Orientation) in _ON_ITS_SIDE
        return (picture.width, picture.height) if lies_on_its_side else (picture.height, picture.width)


def open_picture(path: str | Path, max_pixels: int, name: str) -> Image.Image:
    """Open a file and check its size, without decoding it.

    Raises:
        ValueError: If the file is no picture in one of `PICTURE_FORMATS` or has more than ``max_pixels`` pixels.
    """
    with decoding(name):
        if Path(path).exists() and not Path(path).is_file():  # a device or a pipe may never end
            raise ValueError("it is no file")
        picture = Image.open(path, formats=PICTURE_FORMATS)
    check_pixels(picture.height, picture.width, max_pixels, name)
    return picture


def check_pixels(height: int, width: int, max_pixels: int, name: str) -> None:
    """Refuse pictures without pixels or with more than ``max_pixels``.

    Raises:
        ValueError: If the picture is refused.
    """
    if height < 1 or width < 1:
        raise ValueError(f"{name} has no pixels: it is {height} x {width} (height x width)")
    if height * width > max_pixels:
        raise ValueError(f"{name} has {height} x {width} = {height * width} pixels, the limit is {max_pixels}")


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises about a broken file into one line that starts with ``name``."""
    try:
        yield
    except Exception as error:  # a foreign file can make Pillow raise anything
        if isinstance(error, ValueError) and str(error).startswith(name):
            raise
        raise ValueError(f"{name} cannot be read: {one_line(error)}") from error


def name_of(path: object, kind: str = "picture") -> str:
    """What a picture of a file is called in errors."""
    return one_line(f"{kind} {path}", _LONGEST_PATH)


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    """A new RGB picture; of every step's result, at most two are held at a time besides the source."""
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        return _sixteen_bit_to_rgb(picture, name)
    if picture.mode == "F":
        return _array_to_rgb(np.asarray(picture), picture.height * picture.width, name)
    if picture.has_transparency_data:
        see_through = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        opaque = Image.new("RGB", picture.size, "white")
        opaque.paste(see_through, mask=see_through)
        return opaque
    return picture.convert("RGB")


def _sixteen_bit_to_rgb(picture: Image.Image, name: str) -> Image.Image:
    values = np.asarray(picture)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 0xFFFF:
        raise ValueError(f"{name} has integers from {low} to {high}, expected 16 bits (0 to 65535)")
    eight_bits = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), _ROWS_AT_A_TIME):
        rows = slice(row, row + _ROWS_AT_A_TIME)
        eight_bits[rows] = np.round(values[rows] / _SIXTEEN_BIT_TO_EIGHT)
    return Image.fromarray(eight_bits).convert("RGB")


def _channels_last(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu()
    array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array.transpose(1, 2, 0) if array.ndim == 3 else array


def _array_to_rgb(array: np.ndarray, max_pixels: int, name: str) -> Image.Image:
    """8-bit RGB picture of an array (height, width) or (height, width, channels)."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(
            f"{name} is no picture: arrays are (height, width, 3), tensors (3, height, width), or with 1 or 4 channels"
        )
    check_pixels(array.shape[0], array.shape[1], max_pixels, name)
    if array.dtype.kind == "f":
        array = _unit_floats_to_bytes(array, name)
    elif array.dtype != np.uint8:
        raise ValueError(f"{name} holds {array.dtype}; pictures hold uint8, or floating-point numbers from 0 to 1")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)), name)


def _unit_floats_to_bytes(array: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinite numbers")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise ValueError(f"{name} has floating-point numbers from {low:g} to {high:g}; they must lie between 0 and 1")
    return np.round(array * 255).astype(np.uint8)
