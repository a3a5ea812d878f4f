"""The tab that finds what an expression means: the best-matching regions light up."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app.everything_tab import EverythingTab, Listed, progress_html
from app.find import LONGEST_EXPRESSION, Match, best_matches, find, overlap_kept
from app.found import Found, choose
from app.overlay import DrawnRegion, Overlay
from app.page import Changes, Event, Shared, overlay_value
from app.state import Kept, Selection, Shape
from app.status import Status
from app.tables import Row, build_table, picked_number, table_html
from osprey_tp.drawing import region_colour

COLUMNS = ("Rank", "Region", "Share (%)", "Evidence", "Log-likelihood")
LISTED_MATCHES = 20
FAINTEST = 0.15
"""Strength of a fill below which nobody sees it."""


@dataclass(frozen=True)
class Candidate:
    """A region that may be meant; `name` is a kept region's, or its number among everything; `said` its description."""

    shape: Shape
    name: str
    said: str = ""


@dataclass(frozen=True)
class Finding:
    """What was found for an expression in the picture at `path`: matches of its candidates, best first."""

    path: str = ""
    candidates: tuple[Candidate, ...] = ()
    matches: tuple[Match, ...] = ()

    def of(self, selection: Selection) -> "Finding":
        """Itself if the picture is still open, else nothing."""
        return self if self.path and self.path == selection.path else Finding()


@dataclass(frozen=True)
class FindTab:
    """Components of the tab, and what it shows."""

    shared: Shared
    everything: EverythingTab
    expression: gr.Textbox
    progress: gr.HTML
    table: gr.HTML
    finding: gr.State

    @property
    def outputs(self) -> list[Any]:
        """All that a search changes."""
        return [self.shared.overlay, self.progress, self.table, self.finding]

    def showing(self, selection: Selection, finding: Finding) -> dict[Any, Any]:
        """The matches in the table and over the picture."""
        return {
            self.shared.overlay: overlay_value(selection, finding_overlay(finding)),
            self.table: table_html(COLUMNS, match_rows(finding)),
            self.finding: finding,
        }


def build_find(shared: Shared, everything: EverythingTab, opened: gr.Tab) -> FindTab:
    """Builds the tab inside `opened` and connects it. The candidates are those of the tab `everything`."""
    with gr.Row(elem_id="find-row"):
        expression = gr.Textbox(
            label="What to look for",
            placeholder="the red cup on the left",
            max_length=LONGEST_EXPRESSION,
            lines=1,
            elem_id="expression",
            scale=4,
        )
    search = gr.Button("Find", variant="primary", elem_id="find")
    progress = gr.HTML("", elem_id="find-progress", apply_default_css=False)
    table = build_table("find-table")
    gr.HTML(
        '<p class="explained">Every region found, and every region you keep, is asked for a short description. '
        "The <b>share</b> compares how likely your words are as the answer; all shares add up to 100 %. The "
        "<b>evidence</b> is how much likelier, in nats, the region makes your words than the whole picture does.</p>",
        apply_default_css=False,
    )
    tab = FindTab(shared, everything, expression, progress, table, gr.State(Finding()))
    _connect(tab, search, opened)
    return tab


def match_rows(finding: Finding) -> list[Row]:
    """The best matches as rows of `COLUMNS`."""
    return [
        Row(
            (
                rank,
                " · ".join(filter(None, (finding.candidates[match.index].name, finding.candidates[match.index].said))),
                round(100 * match.share, 1),
                round(match.evidence, 2),
                round(match.log_likelihood, 2),
            ),
            drawn_name(finding, match),
        )
        for rank, match in enumerate(finding.matches[:LISTED_MATCHES], start=1)
    ]


def drawn_name(finding: Finding, match: Match) -> str:
    """What the overlay calls a match."""
    return f"{finding.candidates[match.index].name} {match.share:.0%}"


def finding_overlay(finding: Finding, rank: int | None = None) -> Overlay:
    """The best matches, the better the stronger; with a rank, counted from 1, that match alone."""
    shown = list(enumerate(best_matches(finding.matches), start=1))
    if rank is not None:
        shown = [(rank, finding.matches[rank - 1])]
    drawn = []
    for number, match in reversed(shown):
        candidate = finding.candidates[match.index]
        strength = max(FAINTEST, match.strength) if rank is None else 1.0
        note = f"rank {number}, {match.share:.1%}, {match.evidence:+.2f} nats"
        drawn.append(
            DrawnRegion(
                drawn_name(finding, match),
                candidate.shape.outline,
                region_colour(number - 1),
                strength,
                note,
            )
        )
    return Overlay(tuple(drawn))


def _connect(tab: FindTab, search: gr.Button, opened: gr.Tab) -> None:
    shared = tab.shared
    seen = [shared.selection, tab.finding]

    def run(
        event: Event, selection: Selection, kept: Kept, listed: Listed, most: float, expression: str
    ) -> Iterator[Changes]:
        if selection.picture is None:
            raise ValueError("open a picture first")
        shown, started = selection.picture, time.monotonic()
        picture = shared.pictures.get(event.user, shown.path)
        regions = listed.of(selection).regions
        told = "Comparing the regions …" if regions else "Finding everything in the picture first …"
        status = Status("busy", told)
        yield tab.showing(selection, Finding()) | {shared.status: str(status), tab.progress: progress_html(0, 0)}
        regions = regions or choose(tab.everything.found.of(picture, int(most))).regions
        candidates = candidates_of(regions, kept)
        rles = [candidate.shape.rle for candidate in candidates]
        matches = find(picture.session, expression, rles, shown.height, shown.width)
        finding = Finding(shown.path, tuple(candidates), tuple(matches))
        seconds = time.monotonic() - started
        told = f"Compared {len(candidates)} regions in {seconds:.1f} s; the best has {matches[0].share:.0%}."
        yield tab.showing(selection, finding) | {shared.status: str(Status("done", told))}

    def pick(event: Event, selection: Selection, finding: Finding) -> Iterator[Changes]:
        rank, shown = picked_number(event.data), finding.of(selection)
        overlay = finding_overlay(shown, rank if 1 <= rank <= len(shown.matches) else None)
        yield {shared.overlay: overlay_value(selection, overlay)}

    def redraw(selection: Selection, finding: Finding) -> str:
        return overlay_value(selection, finding_overlay(finding.of(selection)))

    def clear(event: Event, selection: Selection, finding: Finding) -> Iterator[Changes]:
        if finding.matches and not finding.of(selection).matches:
            changes = tab.showing(selection, Finding())
            del changes[shared.overlay]  # which shows the new picture already
            yield changes
        else:
            yield {shared.status: gr.skip()}

    inputs = [shared.selection, shared.regions, tab.everything.listed, tab.everything.most, tab.expression]
    for trigger in (search.click, tab.expression.submit):
        shared.connect(trigger, run, inputs, tab.outputs)
    shared.connect(tab.table.pick, pick, seen, [shared.overlay], needs_model=False)
    opened.select(redraw, seen, shared.overlay, queue=False, show_progress="hidden", api_visibility="private")
    shared.connect(shared.opened.change, clear, seen, tab.outputs, needs_model=False)


def candidates_of(found: Sequence[Found], kept: Kept) -> list[Candidate]:
    """The regions kept, and those found that are none of them."""
    own = [Candidate(region.shape, region.name) for region in kept.regions]
    same = overlap_kept(found, [region.shape.rle for region in kept.regions])
    numbered = enumerate(zip(found, same, strict=True), start=1)
    return [
        *own,
        *(Candidate(region.shape, f"{number}", region.label) for number, (region, is_kept) in numbered if not is_kept),
    ]
