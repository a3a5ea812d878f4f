"""The picture as a component of the page: a canvas of our own, since a click changes what is drawn over the picture
and never the picture, which is sent once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from app.overlay import Overlay
from app.page import overlay_value
from app.state import Selection

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
