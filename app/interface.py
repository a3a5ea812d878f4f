"""The page, on Gradio: the picture on one side, the tabs that work on it on the other."""

import html
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import ImageOps

from app.ask_tab import AskTab, build_ask, build_region_list, redraw
from app.canvas import build_canvas, publish, serial_of, uploaded_file
from app.controller import START, STOPPED, Controller
from app.everything_tab import build_everything
from app.find_tab import build_find
from app.page import Changes, Event, Shared
from app.service import Limits, Service
from app.state import Kept, Selection
from app.status import Status
from osprey_tp.images import load_image

TITLE = "osprey_tp"
EXAMPLE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
OWN_EXAMPLES = Path(__file__).parent / "examples"
MAX_EXAMPLES = 24
THUMBNAIL_SIDE = 240  # pixels
KEPT_FILES = (3600, 24 * 3600)  # every how many seconds uploads older than how many are deleted
NO_CHECKPOINT = "no checkpoint of Segment Anything was given: it finds objects by colour"
SYNTHETIC_TOWER = "osprey_tp_tiny_tower"
"""Model type of the vision tower that has seen nothing but drawn scenes: the quickstart's."""

THEME = gr.themes.Default(
    primary_hue="teal",
    neutral_hue="slate",
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"],
    font_mono=["ui-monospace", "Consolas", "monospace"],
).set(  # at least 4.5 to 1 between letters and what is behind them
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_600",
    button_primary_background_fill_dark="*primary_700",
    body_text_color_subdued="*neutral_500",
)
STYLE = "\n".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in ("style.css", "canvas.css"))


def build_interface(service: Service, examples: Sequence[Path] = ()) -> gr.Blocks:
    """The app around a service; `app.server` serves it. `examples` are picture files to pick from; there are some of
    the app's own.
    """
    runs = service.segmenter + (f" ({NO_CHECKPOINT})" if service.segmenter == "GrabCut" else "")
    facts = {"Model": service.name, "Segmenter": runs, "Device": service.device}
    header = header_html(facts, warning=SYNTHETIC_ONLY if knows_only_synthetic_scenes(service.describer) else "")
    return build_page(service, header, examples or find_examples(OWN_EXAMPLES))


def build_page(service: Service, header: str, examples: Sequence[Path]) -> gr.Blocks:
    """The page with all its tabs."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=KEPT_FILES) as blocks:
        gr.HTML(header, elem_id="header", apply_default_css=False)
        with gr.Row(equal_height=False, elem_id="columns"):
            with gr.Column(scale=3, min_width=320):
                canvas = build_canvas()
                controller = Controller(service.pictures, partial(publish, canvas))
                listed = build_region_list()
                gallery = _examples(examples)
            with gr.Column(scale=2, min_width=320):
                with gr.Row(elem_id="line"):
                    status = gr.HTML(str(START), elem_id="status", apply_default_css=False)
                    stop = gr.Button("Stop", size="sm", variant="stop", elem_id="stop", min_width=64, scale=0)
                states = gr.State(Selection()), gr.State(Kept()), gr.State("")
                shared = Shared(canvas, *states, status, service.pictures, service.line)
                with gr.Tabs(elem_id="tabs") as tabs:
                    with gr.Tab("Ask", id="ask") as ask:
                        tab = build_ask(shared, controller, listed, tabs)
                    with gr.Tab("Everything", id="everything") as opened:
                        everything = build_everything(shared, opened)
                    with gr.Tab("Find", id="find") as opened:
                        build_find(shared, everything, opened)
        _connect_files(shared, controller, tab, examples, gallery, service.limits)
        _connect_leaving(shared, blocks, stop)
        seen = [shared.selection, shared.regions]
        ask.select(redraw, seen, canvas, queue=False, show_progress="hidden", api_visibility="private")
    return blocks


def find_examples(folder: Path) -> list[Path]:
    """The first pictures of a folder by name. Raises `ValueError` if there is no such folder or no picture in it."""
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXAMPLE_SUFFIXES and path.is_file())
    if not found:
        raise ValueError(f"no picture in {folder}: expected files ending in {', '.join(EXAMPLE_SUFFIXES)}")
    return found[:MAX_EXAMPLES]


SYNTHETIC_ONLY = (
    "This tiny model was trained on drawn scenes of coloured shapes and knows nothing else. "
    "Try it on the examples below the picture; about photographs it can only guess."
)


def knows_only_synthetic_scenes(describer: Any) -> bool:
    """Whether the model's vision tower is the one that the quickstart trains on drawn scenes."""
    config = getattr(getattr(describer, "model", None), "config", None)
    return getattr(getattr(config, "vision_config", None), "model_type", "") == SYNTHETIC_TOWER


def header_html(facts: Mapping[str, str], warning: str = "") -> str:
    """Title, what runs, and what to know about it."""
    chips = "".join(
        f'<span class="chip"><b>{html.escape(name)}</b> {html.escape(fact)}</span>'
        for name, fact in facts.items()
        if fact
    )
    note = f'<p class="warning" role="note">{html.escape(warning)}</p>' if warning else ""
    return f'<h1>{TITLE}</h1><p>Point at anything and ask about it.</p><div class="chips">{chips}</div>{note}'


def _examples(examples: Sequence[Path]) -> gr.Gallery:
    thumbnails = [ImageOps.contain(load_image(path), (THUMBNAIL_SIDE, THUMBNAIL_SIDE)) for path in examples]
    return gr.Gallery(
        thumbnails,
        label="Examples",
        show_label=False,
        columns=8,
        height="auto",
        allow_preview=False,
        interactive=False,
        object_fit="cover",
        buttons=[],
        elem_id="examples",
    )


def _connect_files(
    shared: Shared,
    controller: Controller,
    tab: AskTab,
    examples: Sequence[Path],
    gallery: gr.Gallery,
    limits: Limits,
) -> None:
    """What opens a picture and takes it away."""

    def picked(event: Event) -> Iterator[Changes]:
        path, name = uploaded_file(event.data)
        yield from tab.follow(controller.open(event.user, path, name, serial_of(event.data)))

    def example_picked(event: Event, selection: Selection) -> Iterator[Changes]:
        path = examples[int(event.data["index"])]
        yield from tab.follow(controller.open(event.user, str(path), path.name, selection.serial + 1))

    def closed(event: Event) -> Iterator[Changes]:
        shared.latest.stop(event.user)
        yield from tab.follow(controller.close(serial_of(event.data)))

    def refused(event: Event) -> Iterator[Changes]:
        name = str(event.data.get("name", "The file"))[:200]
        reason = f"{name} could not be uploaded. Files may have up to {limits.upload_bytes / 2**20:g} MB."
        yield {shared.status: str(Status("error", reason))}

    shared.connect(shared.overlay.picked, picked, [], tab.outputs)
    shared.connect(gallery.select, example_picked, [shared.selection], tab.outputs)
    shared.connect(shared.overlay.closed, closed, [], tab.outputs, needs_model=False)
    shared.connect(shared.overlay.refused, refused, [], [], needs_model=False)
    # An example that stays selected could not be picked again.
    gallery.select(lambda: gr.update(selected_index=None), None, gallery, queue=False, api_visibility="private")


def _connect_leaving(shared: Shared, blocks: gr.Blocks, stop: gr.Button) -> None:
    """What ends the work that runs for a user: the stop button, and closing the page."""

    def stopped(request: gr.Request) -> str:
        shared.latest.stop(request.session_hash or "")
        return str(STOPPED)

    def left(request: gr.Request) -> None:
        user = request.session_hash or ""
        shared.latest.stop(user)
        shared.pictures.forget(user)

    stop.click(stopped, None, shared.status, queue=False, show_progress="hidden", api_visibility="private")
    blocks.unload(left)


def _serial(event: Event) -> int:
    serial = event.data.get("serial")
    return serial if isinstance(serial, int) else 0
