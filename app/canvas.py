"""The picture as a component of the page: a canvas of our own, since a click changes what is drawn over the picture
and never the picture, which is sent once.
"""

from pathlib import Path

import gradio as gr

from app.overlay import Overlay
from app.page import overlay_value
from app.state import Selection

_FOLDER = Path(__file__).parent


def build_canvas() -> gr.HTML:
    """The component. Its value is made by `overlay_value`; its events are `prompt`, `picked`, `closed` and `refused`."""
    return gr.HTML(
        overlay_value(Selection(), Overlay()),
        html_template=(_FOLDER / "canvas.html").read_text(encoding="utf-8"),
        js_on_load=(_FOLDER / "canvas.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id="picture",
    )
