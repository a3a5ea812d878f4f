"""Files that the page makes for the user: written when they are asked for, and saved by the browser at once."""

import hashlib
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

SAVE = """
let seen = props.value ? props.value.number : 0;
watch("value", () => {
  const value = props.value;
  if (!value || !value.file || value.number === seen) return;
  seen = value.number;
  const link = document.createElement("a");
  link.href = value.file.url;
  link.download = value.name;
  document.body.append(link);
  link.click();
  link.remove();
});
"""


def build_download() -> gr.HTML:
    """A component without looks: a value of `download_value` makes the browser save that file."""
    return gr.HTML({"number": 0}, html_template="", js_on_load=SAVE, apply_default_css=False, elem_classes="download")


def download_value(content: bytes, name: str, before: dict[str, Any] | None) -> dict[str, Any]:
    """The next value of a download whose value was `before`; the file is called `name`."""
    file = Path(get_upload_folder()) / hashlib.sha256(content).hexdigest() / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    number = before.get("number", 0) if before else 0
    return {
        "file": {"path": str(file), "meta": {"_type": "gradio.FileData"}},
        "name": name,
        "number": number + 1 if isinstance(number, int) else 1,
    }
