"""Files that the page makes for the user: written when they are asked for, and saved by the browser at once."""

import hashlib
import itertools
import json
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder

_NUMBERS = itertools.count(1)
"""The same file may be wanted again."""

SAVE = """
let seen = 0;
function address(path) {
  const { root = "", api_prefix: prefix = "/gradio_api" } = window.gradio_config || {};
  return root.replace(/\\/$/, "") + prefix + "/file=" + path.split("/").map(encodeURIComponent).join("/");
}
watch("value", () => {
  const { path, name, number } = JSON.parse(props.value || "{}");
  if (!path || number === seen) return;
  seen = number;
  const link = document.createElement("a");
  link.href = address(path);
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
});
"""


def build_download() -> gr.HTML:
    """A component without looks: a value of `download_value` makes the browser save that file."""
    return gr.HTML("", html_template="", js_on_load=SAVE, apply_default_css=False, elem_classes="download")


def download_value(content: bytes, name: str) -> str:
    """A value that makes the browser save `content` as a file called `name`."""
    file = Path(get_upload_folder()) / hashlib.sha256(content).hexdigest() / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return json.dumps({"path": str(file), "name": name, "number": next(_NUMBERS)})
