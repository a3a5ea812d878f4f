"""Conversations and answers as HTML: everything escaped, names of regions in their colours."""

import html
import re
from collections.abc import Mapping

from app.chat import Chat, Exchange
from app.overlay import css_colour
from app.state import Kept, Region
from osprey_tp.drawing import Colour
from osprey_tp.prompts import REGION_TOKEN, region_name

SELECTION = "selection"
"""What the page's script calls a region of the overlay without a name."""

_REGION_NAME = re.compile(r"\b(region\d+)\b", re.IGNORECASE)


def marked(text: str, colours: Mapping[str, Colour], aliases: Mapping[str, str] | None = None) -> str:
    """Escaped text; names among `colours` carry their colour, and hovering or focusing them shows the region that is
    drawn under the same name, or under the one that `aliases` give.
    """
    told = []
    for index, piece in enumerate(_REGION_NAME.split(text)):
        name = piece.lower()
        if index % 2 and name in colours:
            told.append(region_tag((aliases or {}).get(name, name), piece, colours[name]))
        else:
            told.append(html.escape(piece))
    return "".join(told)


def region_tag(name: str, text: str, colour: Colour) -> str:
    """Text that stands for a region of the overlay."""
    return (
        f'<span class="region" tabindex="0" data-region="{html.escape(name)}" '
        f'style="--colour: {css_colour(colour)}">{html.escape(text)}</span>'
    )


def chat_html(chat: Chat, kept: Kept) -> str:
    """The whole conversation."""
    if not chat.exchanges:
        return (
            '<div class="log empty" role="log">Keep one or more regions, then ask about them by name: '
            "<em>What is region1 doing to region2?</em> Without regions, ask about the whole picture.</div>"
        )
    colours = {region.name: region.colour for region in (*chat.regions, *kept.regions)}
    return f'<div class="log" role="log">{"".join(_exchange(exchange, colours) for exchange in chat.exchanges)}</div>'


def answer_html(question: str, text: str, colour: Colour | None = None) -> str:
    """A question about the selected region and its answer; `region1` in them is the selection."""
    if not question:
        return '<div class="answer empty">The answer about the selected region appears here.</div>'
    colours = {region_name(0): colour} if colour else {}
    told = marked(text, colours, {region_name(0): SELECTION})
    asked = _asked(question, colour)
    return f'<div class="answer"><div class="question">{asked}</div><div class="text">{told}</div></div>'


def _asked(question: str, colour: Colour | None) -> str:
    """A question with words in place of what stands for the region in the prompt."""
    before, placeholder, after = question.replace(region_name(0) + REGION_TOKEN, REGION_TOKEN).partition(REGION_TOKEN)
    region = region_tag(SELECTION, "this region", colour) if colour and placeholder else html.escape(placeholder)
    return html.escape(before) + region + html.escape(after)


def regions_html(kept: Kept) -> str:
    """The kept regions, each with a button that removes it."""
    if not kept.regions:
        return '<div class="regions empty">No regions kept yet.</div>'
    return f'<div class="regions" role="list">{"".join(map(_chip, kept.regions))}</div>'


def _chip(region: Region) -> str:
    return (
        f'<span class="chip" role="listitem">{region_tag(region.name, region.name, region.colour)}'
        f'<button type="button" data-remove="{region.number}" aria-label="Remove {region.name}">×</button></span>'
    )


def _exchange(exchange: Exchange, colours: Mapping[str, Colour]) -> str:
    note = ""
    if exchange.introduced:
        names = ", ".join(region_tag(region.name, region.name, region.colour) for region in exchange.introduced)
        note = f'<div class="note">shows {names}</div>'
    state = "" if exchange.finished else " unfinished"
    return (
        f'<div class="turn user">{marked(exchange.message, colours)}{note}</div>'
        f'<div class="turn model{state}">{marked(exchange.answer, colours)}</div>'
    )
