"""The tab that asks: about the selected region, and in a conversation about all regions kept."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app.canvas import serial_of
from app.chat import LONGEST_MESSAGE, Chat
from app.controller import KEEP, Answer, Asking, Controller, Update, View
from app.marking import answer_html, chat_html, regions_html
from app.page import Changes, Event, Shared, overlay_value, visibility
from app.questions import CATEGORY, FREE, LONGEST_QUESTION, QUESTION_KINDS
from app.state import Kept, Selection, selection_overlay
from osprey_tp.drawing import region_colour

NOTHING = View(Selection(), Kept())
MOST_TOKENS = 1024
HIGHEST_TEMPERATURE = 1.5
REMOVE_REGION = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-remove]");
  if (button) trigger("remove", { number: Number(button.dataset.remove) });
});
"""


@dataclass(frozen=True)
class RegionList:
    """The kept regions below the picture, and the button that keeps the selected one."""

    chips: gr.HTML
    keep: gr.Button


@dataclass(frozen=True)
class AskTab:
    """Components of the tab, and the states that only it uses: the answer, the conversation."""

    shared: Shared
    listed: RegionList
    tabs: gr.Tabs
    masks: gr.Radio
    kind: gr.Radio
    own: gr.Textbox
    ask: gr.Button
    answer: gr.HTML
    conversation: gr.HTML
    message: gr.Textbox
    send: gr.Button
    regenerate: gr.Button
    begin_anew: gr.Button
    temperature: gr.Slider
    longest: gr.Slider
    chat: gr.State

    @property
    def asking(self) -> list[Any]:
        """Inputs of `_asking`."""
        return [self.kind, self.own, self.temperature, self.longest]

    @property
    def outputs(self) -> list[Any]:
        """All that `changes` may change."""
        shared, listed = self.shared, self.listed
        states = [shared.selection, shared.regions, shared.opened, self.chat]
        return [*states, shared.overlay, listed.chips, self.masks, self.answer, self.conversation, self.tabs]

    def changes(self, update: Update, view: View) -> Changes:
        """An update as values of components; `view` is what is seen of the picture by now."""
        shared = self.shared
        changes: dict[Any, Any] = {}
        if isinstance(update.view, View):
            selection, kept = view.selection, view.kept
            changes |= {
                shared.selection: selection,
                shared.regions: kept,
                shared.opened: selection.path,
                shared.overlay: overlay_value(selection, selection_overlay(selection, kept)),
                self.listed.chips: regions_html(kept),
                self.masks: _mask_choices(selection),
            }
        if update.status is not KEEP:
            changes[shared.status] = str(update.status)
        if isinstance(update.answer, Answer):
            colour = region_colour(view.kept.last)
            changes[self.answer] = answer_html(update.answer.question, update.answer.text, colour)
        if isinstance(update.chat, Chat):
            changes |= {self.chat: update.chat, self.conversation: chat_html(update.chat, view.kept)}
        return changes

    def follow(self, updates: Iterator[Update], view: View = NOTHING) -> Iterator[Changes]:
        """Updates as changes, one by one. `view` is what is seen before."""
        for update in updates:
            view = update.view if isinstance(update.view, View) else view
            changes = self.changes(update, view)
            if changes:
                yield changes


def build_region_list() -> RegionList:
    """Below the picture, whatever tab is open."""
    with gr.Row(elem_id="kept"):
        keep = gr.Button("+ Keep region", size="sm", elem_id="keep", min_width=120, scale=0)
        chips = gr.HTML(regions_html(Kept()), elem_id="regions", js_on_load=REMOVE_REGION, apply_default_css=False)
    return RegionList(chips, keep)


def build_ask(shared: Shared, controller: Controller, listed: RegionList, tabs: gr.Tabs) -> AskTab:
    """Builds the tab inside the `gr.Tab` that is open, and connects it and the picture with the controller."""
    with gr.Group():
        masks = gr.Radio([], label="Masks found", visible=visibility(False), elem_id="masks")
        kind = gr.Radio(QUESTION_KINDS, value=CATEGORY, label="About the selected region", elem_id="kind")
        own = gr.Textbox(
            label="Your question",
            placeholder="What is <mask> used for?",
            info="Write <mask> where the region belongs. Without it, the region is introduced first, as region1.",
            visible=visibility(False),
            max_length=LONGEST_QUESTION,
            elem_id="own",
        )
    ask = gr.Button("Ask", variant="primary", size="md", elem_id="ask")
    answer = gr.HTML(answer_html("", ""), elem_id="answer", apply_default_css=False)
    gr.HTML("<h2>Conversation</h2>", elem_classes="heading", apply_default_css=False)
    conversation = gr.HTML(chat_html(Chat(), Kept()), elem_id="chat", apply_default_css=False)
    with gr.Row(elem_id="talk"):
        message = gr.Textbox(
            placeholder="What is region1 doing to region2?",
            label="Message",
            show_label=False,
            max_length=LONGEST_MESSAGE,
            lines=1,
            container=False,
            scale=1,
            min_width=160,
            elem_id="message",
        )
        send = gr.Button("Send", variant="primary", size="md", elem_id="send", min_width=80, scale=0)
    with gr.Row():
        regenerate = gr.Button("Regenerate", size="sm", elem_id="regenerate", min_width=80)
        begin_anew = gr.Button("New chat", size="sm", elem_id="new-chat", min_width=80)
    with gr.Accordion("How it answers", open=False, elem_id="sampling"):
        temperature = gr.Slider(
            0, HIGHEST_TEMPERATURE, value=0, step=0.1, label="Temperature", info="0 always gives the likeliest answer."
        )
        longest = gr.Slider(8, MOST_TOKENS, value=512, step=8, label="Longest answer, in tokens")
    controls = (
        masks,
        kind,
        own,
        ask,
        answer,
        conversation,
        message,
        send,
        regenerate,
        begin_anew,
        temperature,
        longest,
    )
    tab = AskTab(shared, listed, tabs, *controls, gr.State(Chat()))
    _connect_picture(tab, controller)
    _connect_questions(tab, controller)
    _connect_conversation(tab, controller)
    return tab


def redraw(selection: Selection, kept: Kept) -> str:
    """What the overlay shows while this tab is open."""
    return overlay_value(selection, selection_overlay(selection, kept))


def _connect_picture(tab: AskTab, controller: Controller) -> None:
    shared = tab.shared
    seen = [shared.selection, shared.regions]

    def select(event: Event, selection: Selection, kept: Kept, *asking: Any) -> Iterator[Changes]:
        updates = controller.select(event.user, selection, kept, event.data, serial_of(event.data), _asking(*asking))
        for changes in tab.follow(updates, View(selection, kept)):
            yield {**changes, tab.tabs: gr.update(selected="ask")}

    def choose(event: Event, selection: Selection, kept: Kept, index: int, *asking: Any) -> Iterator[Changes]:
        updates = controller.choose(event.user, selection, kept, index, _asking(*asking))
        yield from tab.follow(updates, View(selection, kept))

    def keep(event: Event, selection: Selection, kept: Kept) -> Iterator[Changes]:
        yield from tab.follow(controller.keep(selection, kept), View(selection, kept))

    def remove(event: Event, selection: Selection, kept: Kept) -> Iterator[Changes]:
        number = event.data.get("number")
        updates = controller.remove(selection, kept, number if isinstance(number, int) else 0)
        yield from tab.follow(updates, View(selection, kept))

    shared.connect(shared.overlay.prompt, select, [*seen, *tab.asking], tab.outputs)
    shared.connect(tab.masks.input, choose, [*seen, tab.masks, *tab.asking], tab.outputs)
    shared.connect(tab.listed.keep.click, keep, seen, tab.outputs, needs_model=False)
    shared.connect(tab.listed.chips.remove, remove, seen, tab.outputs, needs_model=False)


def _connect_questions(tab: AskTab, controller: Controller) -> None:
    shared = tab.shared
    inputs = [shared.selection, shared.regions, *tab.asking]

    def ask(event: Event, selection: Selection, kept: Kept, *asking: Any) -> Iterator[Changes]:
        updates = controller.ask(event.user, selection, _asking(*asking))
        yield from tab.follow(updates, View(selection, kept))

    def ask_other(event: Event, selection: Selection, kept: Kept, kind: str, *asking: Any) -> Iterator[Changes]:
        shown = {tab.own: gr.update(visible=visibility(kind == FREE))}
        yield shown
        if selection.shape is not None and kind != FREE:
            yield from ask(event, selection, kept, kind, *asking)

    shared.connect(tab.ask.click, ask, inputs, tab.outputs)
    shared.connect(tab.own.submit, ask, inputs, tab.outputs)
    shared.connect(tab.kind.input, ask_other, inputs, [*tab.outputs, tab.own])


def _connect_conversation(tab: AskTab, controller: Controller) -> None:
    shared = tab.shared
    seen = [shared.selection, shared.regions, tab.chat]

    def send(
        event: Event, selection: Selection, kept: Kept, chat: Chat, message: str, *asking: Any
    ) -> Iterator[Changes]:
        updates = controller.send(event.user, selection, kept, chat, message, _asking(*asking))
        for changes in tab.follow(updates, View(selection, kept)):
            yield {**changes, tab.message: ""}

    def regenerate(event: Event, selection: Selection, kept: Kept, chat: Chat, *asking: Any) -> Iterator[Changes]:
        updates = controller.regenerate(event.user, selection, chat, _asking(*asking))
        yield from tab.follow(updates, View(selection, kept))

    def begin_anew(event: Event, selection: Selection, kept: Kept) -> Iterator[Changes]:
        shared.latest.stop(event.user)
        yield from tab.follow(iter([Update(chat=Chat())]), View(selection, kept))

    for trigger in (tab.send.click, tab.message.submit):
        shared.connect(trigger, send, [*seen, tab.message, *tab.asking], [*tab.outputs, tab.message])
    shared.connect(tab.regenerate.click, regenerate, [*seen, *tab.asking], tab.outputs)
    shared.connect(tab.begin_anew.click, begin_anew, seen[:2], tab.outputs, needs_model=False)


def _asking(kind: str, own: str, temperature: float, longest: float) -> Asking:
    """Raises `ValueError` if a number is not among those that the page offers."""
    if not (0 <= temperature <= HIGHEST_TEMPERATURE and 1 <= longest <= MOST_TOKENS):
        raise ValueError(
            f"temperature {temperature} and {longest} tokens are not possible; choose 0 to {HIGHEST_TEMPERATURE} and "
            f"1 to {MOST_TOKENS}"
        )
    return Asking(kind, own, float(temperature), int(longest))


def _mask_choices(selection: Selection) -> Any:
    choices = [(f"{index + 1} · {shape.score:.0%}", index) for index, shape in enumerate(selection.candidates)]
    if len(choices) < 2:
        return gr.update(choices=[], value=None, visible=visibility(False))
    return gr.update(choices=choices, value=selection.chosen, visible=visibility(True))
