"""The picture as a component of the page: a canvas of our own, since a click changes what is drawn over the picture
and never the picture, which is sent once.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image

from app.overlay import Overlay
from app.page import overlay_value
from app.state import Selection

JPEG_QUALITY = 90
LONGEST_NAME = 100  # characters of a file's name, as told to the user
_FOLDER = Path(__file__).parent


def build_canvas() -> gr.HTML:
    """The component. Its value comes from `overlay_value`; its events are `prompt`, `picked`, `closed`, `refused`."""
    return gr.HTML(
        overlay_value(Selection(), Overlay()),
        html_template=(_FOLDER / "canvas.html").read_text(encoding="utf-8"),
        js_on_load=(_FOLDER / "canvas.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id="picture",
    )


def publish(canvas: gr.HTML, picture: Image.Image) -> str:
    """Writes a picture where Gradio serves files from, under a name made of its content, and returns the file's path.

    Gradio deletes it after a while, as it does uploads.
    """
    digest = hashlib.sha256(picture.tobytes() + repr(picture.size).encode()).hexdigest()
    file = Path(canvas.GRADIO_CACHE) / digest / "picture.jpg"
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file, quality=JPEG_QUALITY)
    canvas.temp_files.add(str(file))
    return str(file)


def uploaded_file(data: Mapping[str, Any]) -> tuple[str, str]:
    """Path and name of the file that a `picked` event tells of. Raises `ValueError` if it was not uploaded here."""
    folder, path = Path(get_upload_folder()).resolve(), Path(str(data.get("path", ""))).resolve()
    if not (path.is_relative_to(folder) and path.is_file()):
        raise ValueError("this file was not uploaded to this page; choose it again")
    return str(path), str(data.get("name", path.name))[:LONGEST_NAME]


def serial_of(data: Mapping[str, Any]) -> int:
    """The number of an event of the canvas, by which it tells old answers from new ones."""
    serial = data.get("serial")
    return serial if isinstance(serial, int) else 0
