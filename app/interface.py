"""The page: one tab, on Gradio. What its events do is in `app.controller`."""

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageOps

from app.controller import CLICK_MODES, KEEP, SELECT, START, Controller, Status, Update
from app.pictures import Describer
from app.questions import CATEGORY, FREE, LONGEST_QUESTION, QUESTION_KINDS
from app.state import Selection
from osprey_tp.images import load_image
from osprey_tp.segmenters import Segmenter

TITLE = "osprey_tp"
EXAMPLE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MAX_EXAMPLES = 24
THUMBNAIL_SIDE = 240  # pixels
KEPT_FILES = (3600, 24 * 3600)  # every how many seconds uploads older than how many are deleted

THEME = gr.themes.Default(
    primary_hue="teal",
    neutral_hue="slate",
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"],
    font_mono=["ui-monospace", "Consolas", "monospace"],
)
STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Page:
    """The components that events read and change."""

    picture: gr.Image
    selection: gr.State
    request: gr.State
    status: gr.HTML
    question: gr.HTML
    answer: gr.Textbox
    masks: gr.Radio
    mode: gr.Radio
    kind: gr.Radio
    own: gr.Textbox

    @property
    def outputs(self) -> list[Any]:
        """In the order of `changes`."""
        return [self.picture, self.selection, self.masks, self.status, self.question, self.answer, self.request]


def build_interface(
    describer: Describer,
    segmenter: Segmenter,
    examples: Sequence[Path] = (),
    *,
    model_name: str = "",
    device: str = "cpu",
) -> gr.Blocks:
    """The app around a loaded model and segmenter; `app.server` serves it. `examples` are picture files to pick from."""
    controller = Controller(describer, segmenter)
    facts = {"Model": model_name, "Segmenter": segmenter.description, "Device": device}
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=KEPT_FILES) as blocks:
        gr.HTML(_header(facts), elem_id="header")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=420):
                picture = _picture()
                gallery = _examples(examples)
            with gr.Column(scale=2, min_width=360):
                status = gr.HTML(_status(START), elem_id="status", padding=False)
                mode, undo, clear, masks = _clicks()
                kind, own, ask = _questions()
                answer = _answer()
                question = gr.HTML("", elem_id="question", padding=False)
        page = Page(picture, gr.State(Selection()), gr.State(None), status, question, answer, masks, mode, kind, own)
        _connect(controller, page, examples, gallery, undo, clear, ask)

        def left(request: gr.Request) -> None:
            controller.leave(_user(request))

        blocks.unload(left)
    return blocks


def find_examples(folder: Path) -> list[Path]:
    """The first pictures of a folder by name. Raises `ValueError` if there is no such folder or no picture in it."""
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXAMPLE_SUFFIXES and path.is_file())
    if not found:
        raise ValueError(f"no picture in {folder}: expected files ending in {', '.join(EXAMPLE_SUFFIXES)}")
    return found[:MAX_EXAMPLES]


def _picture() -> gr.Image:
    return gr.Image(
        label="Picture",
        show_label=False,
        sources=["upload", "clipboard"],
        height=560,
        format="jpeg",
        buttons=["fullscreen"],
        placeholder="Drop a picture here or click to upload",
        elem_id="picture",
    )


def _clicks() -> tuple[gr.Radio, gr.Button, gr.Button, gr.Radio]:
    with gr.Group():
        mode = gr.Radio(CLICK_MODES, value=SELECT, label="A click in the picture will", elem_id="mode")
        masks = gr.Radio([], label="Masks found", visible=False, elem_id="masks")
    with gr.Row(elem_id="tools"):
        undo = gr.Button("Undo last point", elem_id="undo", size="sm")
        clear = gr.Button("Clear selection", elem_id="clear", size="sm")
    return mode, undo, clear, masks


def _questions() -> tuple[gr.Radio, gr.Textbox, gr.Button]:
    with gr.Group():
        kind = gr.Radio(QUESTION_KINDS, value=CATEGORY, label="Question", elem_id="kind")
        own = gr.Textbox(
            label="Your question",
            placeholder="What is <mask> used for?",
            info="Write <mask> where the region belongs. Without it, the region is introduced first, as region1.",
            visible=False,
            max_length=LONGEST_QUESTION,
            elem_id="own",
        )
    ask = gr.Button("Ask", variant="primary", elem_id="ask")
    return kind, own, ask


def _answer() -> gr.Textbox:
    return gr.Textbox(
        label="Answer",
        lines=3,
        max_lines=14,
        interactive=False,
        buttons=["copy"],
        placeholder="The answer appears here.",
        elem_id="answer",
    )


def _examples(examples: Sequence[Path]) -> gr.Gallery | None:
    if not examples:
        return None
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


def _connect(
    controller: Controller,
    page: Page,
    examples: Sequence[Path],
    gallery: gr.Gallery | None,
    undo: gr.Button,
    clear: gr.Button,
    ask: gr.Button,
) -> None:
    """Every event is one run of the controller. Events that need an answer set `request`, whose change starts it."""
    asking = [page.kind, page.own]

    def opened(file: dict[str, Any], request: gr.Request) -> Iterator[list[Any]]:
        yield from _run(controller.open(_user(request), file["path"]))

    def closed(request: gr.Request) -> Iterator[list[Any]]:
        yield from _run(iter([controller.close(_user(request))]))

    def picked(event: gr.SelectData, request: gr.Request) -> Iterator[list[Any]]:
        yield from _run(controller.open(_user(request), str(examples[event.index])))

    def clicked(
        event: gr.SelectData,
        file: dict[str, Any],
        selection: Selection,
        mode: str,
        kind: str,
        own: str,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        width, height = _shown_size(file["path"])
        x, y = (event.index[0] + 0.5) / width, (event.index[1] + 0.5) / height
        yield from _run(controller.click(_user(request), selection, x, y, mode, kind, own))

    def undone(selection: Selection, kind: str, own: str, request: gr.Request) -> Iterator[list[Any]]:
        yield from _run(controller.undo(_user(request), selection, kind, own))

    def cleared(selection: Selection, request: gr.Request) -> Iterator[list[Any]]:
        yield from _run(controller.clear(_user(request), selection))

    def chosen(selection: Selection, mask: int, kind: str, own: str, request: gr.Request) -> Iterator[list[Any]]:
        yield from _run(controller.choose(_user(request), selection, mask, kind, own))

    def asked(selection: Selection, kind: str, own: str, request: gr.Request) -> Iterator[list[Any]]:
        yield from _run(controller.ask(_user(request), selection, kind, own))

    def kind_changed(selection: Selection, kind: str, own: str, request: gr.Request) -> Iterator[list[Any]]:
        wanted = selection.mask is not None and kind != FREE
        yield from _run(controller.ask(_user(request), selection, kind, own) if wanted else iter(()))

    def answered(selection: Selection, asked_for: Any, request: gr.Request) -> Iterator[list[Any]]:
        yield from _run(controller.answer(_user(request), selection, asked_for))

    def connect(trigger: Callable[..., Any], event: Callable[..., Any], inputs: list[Any], **options: Any) -> None:
        """One run at a time over all users; the others wait in the queue."""
        trigger(
            event,
            inputs,
            page.outputs,
            preprocess=False,  # files arrive as paths: the app reads them itself and says what is wrong with them
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=1,
            **options,
        )

    connect(page.request.change, answered, [page.selection, page.request], trigger_mode="multiple")
    connect(page.picture.upload, opened, [page.picture])
    connect(page.picture.clear, closed, [])
    click_inputs = [page.picture, page.selection, page.mode, *asking]
    connect(
        page.picture.select, clicked, click_inputs, trigger_mode="multiple"
    )  # "always_last" repeats the first click
    connect(undo.click, undone, [page.selection, *asking])
    connect(clear.click, cleared, [page.selection])
    connect(page.masks.input, chosen, [page.selection, page.masks, *asking])
    connect(ask.click, asked, [page.selection, *asking])
    connect(page.own.submit, asked, [page.selection, *asking])
    connect(page.kind.input, kind_changed, [page.selection, *asking])
    if gallery is not None:
        connect(gallery.select, picked, [])
        # An example that stays selected could not be picked again.
        gallery.select(lambda: gr.update(selected_index=None), None, gallery, queue=False, api_visibility="private")
    page.kind.change(
        lambda kind: gr.update(visible=kind == FREE), page.kind, page.own, queue=False, api_visibility="private"
    )


def changes(update: Update) -> list[Any]:
    """An update as values for `Page.outputs`."""
    masks: Any = gr.skip()
    if isinstance(update.selection, Selection):
        count = len(update.selection.candidates)
        choices = [(f"Mask {index + 1}", index) for index in range(count)]
        masks = gr.update(choices=choices, value=update.selection.chosen if count else None, visible=count > 1)
    return [
        _or_skip(update.picture),
        _or_skip(update.selection),
        masks,
        _status(update.status) if isinstance(update.status, Status) else gr.skip(),
        _question(update.question) if isinstance(update.question, str) else gr.skip(),
        _or_skip(update.answer),
        _or_skip(update.request),
    ]


def _run(updates: Iterator[Update]) -> Iterator[list[Any]]:
    """Updates as values; at least one, since Gradio empties the outputs of an event that yields none."""
    yield changes(next(updates, Update()))
    yield from map(changes, updates)


def _or_skip(value: Any) -> Any:
    return gr.skip() if value is KEEP else value


def _user(request: gr.Request) -> str:
    return request.session_hash or ""


def _shown_size(path: str) -> tuple[int, int]:
    """(width, height) of a picture as the browser shows it, turned upright."""
    with Image.open(path) as image:
        turned = image.getexif().get(0x0112, 1) >= 5
        return (image.height, image.width) if turned else image.size


def _header(facts: dict[str, str]) -> str:
    chips = "".join(
        f'<span class="chip"><b>{html.escape(name)}</b> {html.escape(fact)}</span>'
        for name, fact in facts.items()
        if fact
    )
    return f'<h1>{TITLE}</h1><p>Click any object and ask about it.</p><div class="chips">{chips}</div>'


def _status(status: Status) -> str:
    return f'<div class="status {status.kind}" role="status">{html.escape(status.text)}</div>'


def _question(text: str) -> str:
    return f"<span>Asked:</span> {html.escape(text)}" if text else ""
