"""The tab that lists everything in the picture: found by the segmenter or in the user's file, described in batches."""

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from app.canvas import uploaded_file
from app.coco_files import read_coco, write_coco
from app.downloads import build_download, download_value
from app.everything import COLUMNS, MOST_REGIONS, EverythingFound, describe, rows
from app.found import Chosen, Found, choose
from app.overlay import DrawnRegion, Overlay
from app.page import Changes, Event, Shared, overlay_value, visibility
from app.questions import CATEGORY, DETAILED, SHORT
from app.state import Selection, Shown
from app.status import Status
from app.tables import build_table, picked_number, table_html
from osprey_tp.drawing import draw_regions, region_colour

KINDS = (CATEGORY, SHORT, DETAILED)
MOST_EVER = 256
LARGEST_FILE = 64_000_000  # bytes
PNG_OPACITY = 0.3
PNG_COMPRESSION = 3  # of zlib: half the time of the default, a tenth more bytes

ALL_SHOWN = Status("ready", "All regions are shown. Hover a row to see its region, click it to see that alone.")


@dataclass(frozen=True)
class Listed:
    """What the table shows: the regions of the picture at `path`, and how they were asked about."""

    path: str = ""
    regions: tuple[Found, ...] = ()
    kind: str = CATEGORY

    def of(self, selection: Selection) -> "Listed":
        """Itself if the picture is still open, else nothing."""
        return self if self.path and self.path == selection.path else Listed()


@dataclass(frozen=True)
class EverythingTab:
    """Components of the tab, what it shows, and what is known of the open pictures."""

    shared: Shared
    found: EverythingFound
    kind: gr.Radio
    most: gr.Slider
    least: gr.Slider
    progress: gr.HTML
    table: gr.HTML
    download: gr.HTML
    files: gr.Row
    listed: gr.State

    @property
    def outputs(self) -> list[Any]:
        """All that a run changes."""
        return [self.shared.overlay, self.progress, self.table, self.files, self.listed]

    def showing(self, selection: Selection, listed: Listed, status: Status | None = None) -> dict[Any, Any]:
        """The regions in the table and over the picture."""
        picture = selection.picture
        table = rows(listed.regions, picture.height, picture.width) if picture else []
        changes = {
            self.shared.overlay: overlay_value(selection, everything_overlay(listed.of(selection))),
            self.table: table_html(COLUMNS, table),
            self.files: gr.update(visible=visibility(bool(table))),
            self.listed: listed,
        }
        return changes | ({self.shared.status: str(status)} if status else {})


def build_everything(shared: Shared, opened: gr.Tab) -> EverythingTab:
    """Builds the tab inside `opened` and connects it."""
    kind = gr.Radio(KINDS, value=CATEGORY, label="What to say about every region", elem_id="everything-kind")
    with gr.Row(elem_id="everything-runs"):
        run = gr.Button("Describe everything", variant="primary", elem_id="everything", min_width=150)
        upload = gr.UploadButton("Use my masks …", file_types=[".json"], elem_id="own-masks", min_width=150)
    gr.HTML(
        '<p class="explained">Masks of your own come in a COCO JSON file: polygons or run-length encodings, in the '
        "picture's own size.</p>",
        apply_default_css=False,
    )
    with gr.Accordion("Which regions", open=False, elem_id="everything-which"):
        most = gr.Slider(1, MOST_EVER, value=MOST_REGIONS, step=1, label="At most", elem_id="everything-most")
        least = gr.Slider(
            0, 5, value=0, step=0.05, label="Smallest, in % of the picture", info="0 leaves none out.", elem_id="least"
        )
    progress = gr.HTML("", elem_id="everything-progress", apply_default_css=False)
    table = build_table("everything-table")
    with gr.Row(visible=visibility(False), elem_id="everything-files") as files:
        to_json = gr.Button("Download COCO JSON", size="sm", elem_id="to-json", min_width=120)
        to_png = gr.Button("Download annotated PNG", size="sm", elem_id="to-png", min_width=120)
    download = build_download()
    tab = EverythingTab(
        shared, EverythingFound(), kind, most, least, progress, table, download, files, gr.State(Listed())
    )
    _connect_runs(tab, run, upload)
    _connect_table(tab, opened)
    _connect_downloads(tab, to_json, to_png)
    return tab


def everything_overlay(listed: Listed, number: int | None = None) -> Overlay:
    """All regions listed, the large ones below the small ones; with a number, counted from 1, that one alone."""
    order = sorted(range(len(listed.regions)), key=lambda index: -listed.regions[index].area)
    order = order if number is None else [number - 1]
    drawn = []
    for index in order:
        region = listed.regions[index]
        drawn.append(DrawnRegion(str(index + 1), region.shape.outline, region_colour(index), 0.7, region.label))
    return Overlay(tuple(drawn))


def progress_html(done: int, total: int) -> str:
    """A bar; without a total, one that only shows that something goes on."""
    told = f'aria-valuemin="0" aria-valuemax="{total}" aria-valuenow="{done}"' if total else ""
    width = f"{100 * done / total:.1f}%" if total else "100%"
    kind = "progress" if total else "progress unknown"
    return f'<div class="{kind}" role="progressbar" {told}><i style="width: {width}"></i></div>'


def _connect_runs(tab: EverythingTab, run: gr.Button, upload: gr.UploadButton) -> None:
    shared = tab.shared
    inputs = [shared.selection, tab.kind]

    def describe_all(event: Event, selection: Selection, kind: str, most: float, least: float) -> Iterator[Changes]:
        picture = _require_picture(selection)
        empty = tab.showing(selection, Listed(), Status("busy", "Finding everything …"))
        yield empty | {tab.progress: progress_html(0, 0)}
        regions = tab.found.of(shared.pictures.get(event.user, picture.path), int(most))
        if not regions:
            raise ValueError("nothing was found in this picture; click objects, or use masks of your own")
        chosen = choose(regions, least / 100 * picture.height * picture.width)
        yield from _described(tab, event, selection, chosen, kind)

    def describe_own(
        event: Event, selection: Selection, kind: str, file: Mapping[str, Any] | None
    ) -> Iterator[Changes]:
        picture = _require_picture(selection)
        path, name = uploaded_file({"name": (file or {}).get("orig_name")} | dict(file or {}))
        yield {shared.status: str(Status("busy", f"Reading {name} …")), tab.progress: progress_html(0, 0)}
        if Path(path).stat().st_size > LARGEST_FILE:
            raise ValueError(
                f"{name} is larger than {LARGEST_FILE // 1_000_000} MB; keep only the masks of this picture"
            )
        regions = read_coco(Path(path).read_bytes(), Path(picture.path).name, picture.height, picture.width)
        yield from _described(tab, event, selection, choose(regions), kind)

    shared.connect(run.click, describe_all, [*inputs, tab.most, tab.least], tab.outputs)
    shared.connect(upload.upload, describe_own, [*inputs, upload], tab.outputs)


def _described(tab: EverythingTab, event: Event, selection: Selection, chosen: Chosen, kind: str) -> Iterator[Changes]:
    if kind not in KINDS:
        raise ValueError(f"no question {kind!r} about every region; choose from {', '.join(KINDS)}")
    if not chosen.regions:
        raise ValueError(f"no region is left: {chosen}")
    path, total, started = selection.path, len(chosen.regions), time.monotonic()
    session = tab.shared.pictures.get(event.user, path).session
    for step in describe(session, chosen.regions, kind):
        listed = Listed(path, step.regions, kind)
        status = Status("busy", f"Described {step.described} of {total} regions …")
        yield tab.showing(selection, listed, status) | {tab.progress: progress_html(step.described, total)}
    status = Status("done", f"{chosen} described in {time.monotonic() - started:.1f} s. Hover a row to see its region.")
    yield {tab.shared.status: str(status)}


def _connect_table(tab: EverythingTab, opened: gr.Tab) -> None:
    shared = tab.shared
    seen = [shared.selection, tab.listed]

    def pick(event: Event, selection: Selection, listed: Listed) -> Iterator[Changes]:
        number, shown = picked_number(event.data), listed.of(selection)
        if not 1 <= number <= len(shown.regions):
            yield {shared.overlay: overlay_value(selection, everything_overlay(shown)), shared.status: str(ALL_SHOWN)}
            return
        told = shown.regions[number - 1].label or "nothing is said of it yet"
        overlay = overlay_value(selection, everything_overlay(shown, number))
        yield {shared.overlay: overlay, shared.status: str(Status("ready", f"Region {number}: {told}"))}

    def redraw(selection: Selection, listed: Listed) -> str:
        return overlay_value(selection, everything_overlay(listed.of(selection)))

    def clear(event: Event, selection: Selection, listed: Listed) -> Iterator[Changes]:
        if listed.regions and not listed.of(selection).regions:
            changes = tab.showing(selection, Listed())
            del changes[shared.overlay]  # which shows the new picture already
            yield changes
        else:
            yield {shared.status: gr.skip()}

    shared.connect(tab.table.pick, pick, seen, [shared.overlay], needs_model=False)
    opened.select(redraw, seen, shared.overlay, queue=False, show_progress="hidden", api_visibility="private")
    shared.connect(shared.opened.change, clear, seen, tab.outputs, needs_model=False)


def _connect_downloads(tab: EverythingTab, to_json: gr.Button, to_png: gr.Button) -> None:
    shared = tab.shared
    inputs = [shared.selection, tab.listed]

    def make_json(event: Event, selection: Selection, listed: Listed) -> Iterator[Changes]:
        picture, regions = _require_listed(selection, listed)
        name = Path(picture.path).name
        about = f"Regions of {name}, described by osprey_tp ({listed.kind.lower()})"
        content = write_coco(regions, name, picture.height, picture.width, about)
        yield {tab.download: download_value(content.encode(), f"{Path(name).stem}-regions.json")}

    def make_png(event: Event, selection: Selection, listed: Listed) -> Iterator[Changes]:
        picture, regions = _require_listed(selection, listed)
        yield {shared.status: str(Status("busy", "Drawing the regions …"))}
        image = shared.pictures.get(event.user, picture.path).image
        drawn = annotated(image, regions)
        file = io.BytesIO()
        drawn.save(file, "PNG", compress_level=PNG_COMPRESSION)
        name = f"{Path(picture.path).stem}-regions.png"
        status = Status("done", f"{name}: {len(regions)} regions on {picture.width}x{picture.height} pixels.")
        yield {tab.download: download_value(file.getvalue(), name), shared.status: str(status)}

    shared.connect(to_json.click, make_json, inputs, [tab.download], needs_model=False)
    shared.connect(to_png.click, make_png, inputs, [tab.download], needs_model=False)


def annotated(image: Any, regions: Sequence[Found]) -> Any:
    """The picture at its own resolution with all regions and their numbers drawn on it."""
    names = [str(number) for number in range(1, len(regions) + 1)]
    return draw_regions(image, (region.shape.mask for region in regions), names, opacity=PNG_OPACITY)


def _require_picture(selection: Selection) -> Shown:
    if selection.picture is None:
        raise ValueError("open a picture first")
    return selection.picture


def _require_listed(selection: Selection, listed: Listed) -> tuple[Shown, tuple[Found, ...]]:
    picture, regions = _require_picture(selection), listed.of(selection).regions
    if not regions:
        raise ValueError("describe everything first: there is no region to download")
    return picture, regions
