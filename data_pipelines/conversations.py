"""From a record to the conversation that the processor takes.

```
record.regions, record.turns ─► exchanges (question, answer) ─► chosen and ordered by the seed
    ─► <region2> becomes <mask>, or region2 where regions are introduced by name ─► messages
```
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data_pipelines.prompts import PromptForm, PromptStyle, prompt_form
from data_pipelines.prompts.form import REGION_LIST
from data_pipelines.records import REGION_REFERENCE, RegionRecord
from osprey_tp.outside import of_record
from osprey_tp.prompts import REGION_TOKEN, region_introduction, region_name

Conversation = list[dict[str, Any]]

Asked = Literal["own words", "region", "name", "picture", "explanation"]
"""Who words a question: the record in its own words, or the source: about a region, about a region whose name is the
answer, about the whole picture, about the reason of the answer before."""

_SAYS_HOW_TO_ANSWER = re.compile(
    r"\b(answer|reply|respond|yes or no|(one|single) word|short phrase)\b", flags=re.IGNORECASE
)


@dataclass(frozen=True)
class Exchange:
    """A question and its answer (None: still open), referring to regions as `<region1>`, `<region2>`, ..."""

    question: str
    answer: str | None
    asked: Asked

    @property
    def asked_regions(self) -> list[int]:
        """Numbers, from 1, of the regions that the question refers to, in its order; repeated as it repeats them."""
        return [int(number) for number in REGION_REFERENCE.findall(self.question)]

    @property
    def all_regions(self) -> list[int]:
        """As `asked_regions`, of question and answer."""
        return [int(number) for number in REGION_REFERENCE.findall(self.question + (self.answer or ""))]


def conversation_of(
    record: RegionRecord,
    image: Any,
    *,
    prompt_style: PromptStyle = "clean",
    epoch: int = 0,
    max_regions: int | None = None,
    paraphrase: bool = True,
) -> Conversation:
    """The messages for `OspreyTPProcessor.prepare`: the picture with the regions that are used, questions, answers.

    A record that ends with a question keeps all its turns, and the messages end with that question, for
    `add_generation_prompt`. A record of text alone gives messages of text alone.

    Args:
        record: Its id and `epoch` seed every choice, so that a sample can be made again.
        image: Picture in any form that the processor takes; None for a record of text alone.
        prompt_style: `clean` or `published` wording (`data_pipelines.prompts`).
        epoch: Another epoch makes other choices.
        max_regions: Most regions in the conversation, if that is less than the source's own limit; at least 1.
        paraphrase: Vary the wording of the source's own questions; otherwise the first wording is always used.

    Returns:
        Messages; regions are compressed RLE in source pixels, in the order of their `<mask>` in the texts.

    Raises:
        ValueError: naming the record, if it has nothing to ask, a reference to a region that it does not have, or a
            question about a picture that it does not have.
    """
    form = prompt_form(record.source, prompt_style)
    chooser = random.Random(f"{record.id}/{epoch}")
    limit = min((value for value in (form.max_regions, max_regions) if value is not None), default=None)
    exchanges = _chosen(_exchanges_of(record, form), form, chooser, limit)
    _require_sense(exchanges, record)
    wordings = _Wordings(form, chooser, paraphrase)
    if _needs_introduction(exchanges, record, form):
        numbers, introduction, texts = _introduced(exchanges, record, form, wordings, limit)
    else:
        numbers, introduction, texts = _inline(exchanges, wordings)
    masks = [record.regions[number - 1].segmentation for number in numbers]
    messages = _messages(texts if form.angle_brackets else _without_angle_brackets(texts))
    if record.has_image:
        opening = introduction + messages[0]["content"]
        text = {"type": "text", "text": (form.lead + opening).strip()}
        messages[0]["content"] = [{"type": "image", "image": image, "regions": masks}, text]
    return messages


def _exchanges_of(record: RegionRecord, form: PromptForm) -> list[Exchange]:
    if not record.turns:
        names = [re.sub("[_:]", " ", region.name) if form.spaced_names else region.name for region in record.regions]
        return [Exchange(f"<region{number}>", name, "name") for number, name in enumerate(names, start=1)]
    questions = [turn.text for turn in record.turns[::2]]
    answers: list[str | None] = [turn.text for turn in record.turns[1::2]]
    if len(answers) < len(questions):
        answers.append(None)
    exchanges = [
        Exchange(question, answer, _asked(question)) for question, answer in zip(questions, answers, strict=True)
    ]
    if form.explanation_questions and answers[-1] is not None and record.metadata.get("rationale"):
        exchanges.append(Exchange("", record.metadata["rationale"], "explanation"))
    return exchanges


def _asked(question: str) -> Asked:
    if not question:
        return "picture"
    return "region" if REGION_REFERENCE.fullmatch(question) else "own words"


def _require_sense(exchanges: Sequence[Exchange], record: RegionRecord) -> None:
    if not exchanges:
        raise ValueError(f"nothing to ask: neither regions nor turns {of_record(record.id)}")
    for number in (number for exchange in exchanges for number in exchange.all_regions):
        if not 1 <= number <= len(record.regions):
            raise ValueError(f"<region{number}>, {len(record.regions)} regions {of_record(record.id)}")
    if not record.has_image and any(exchange.asked == "picture" for exchange in exchanges):
        raise ValueError(f"an empty question asks about the picture, and there is none {of_record(record.id)}")


def _chosen(
    exchanges: Sequence[Exchange], form: PromptForm, chooser: random.Random, limit: int | None
) -> list[Exchange]:
    """Those exchanges that the conversation holds, in its order, over at most `limit` regions.

    The first is kept even if it speaks of more regions by itself. All are kept if the last is an open question.
    """
    if exchanges and exchanges[-1].answer is None:
        return list(exchanges)
    ordered = _one_a_region(exchanges, chooser) if form.separate else list(exchanges)
    if limit is None:
        return ordered
    kept: list[Exchange] = []
    regions: set[int] = set()
    for exchange in ordered:
        grown = regions.union(exchange.all_regions)
        if kept and len(grown) > limit:
            break
        regions = grown
        kept.append(exchange)
    return kept


def _one_a_region(exchanges: Sequence[Exchange], chooser: random.Random) -> list[Exchange]:
    """One exchange for each set of regions that is asked about, in random order."""
    groups: dict[frozenset[int], list[Exchange]] = {}
    for exchange in exchanges:
        groups.setdefault(frozenset(exchange.asked_regions), []).append(exchange)
    drawn = []
    for group in groups.values():
        own = [exchange for exchange in group if exchange.asked != "own words"]
        others = [exchange for exchange in group if exchange.asked == "own words"]
        drawn.append(chooser.choice(own if own and (not others or chooser.random() < 0.5) else others))
    chooser.shuffle(drawn)
    return drawn


def _needs_introduction(exchanges: Sequence[Exchange], record: RegionRecord, form: PromptForm) -> bool:
    """Whether regions are introduced by name: see `data_pipelines.prompts.form.Introduction`."""
    if not record.regions or form.introduction == "never":
        return False
    if form.introduction == "always" or any(REGION_REFERENCE.search(exchange.answer or "") for exchange in exchanges):
        return True
    asked = [number for exchange in exchanges for number in exchange.asked_regions]
    none_said_which = not asked and any(exchange.asked == "own words" for exchange in exchanges)
    return form.introduction == "dialogue" and (len(set(asked)) < len(asked) or none_said_which)


class _Wordings:
    """Words what the record leaves to the source."""

    def __init__(self, form: PromptForm, chooser: random.Random, paraphrase: bool) -> None:
        self._form = form
        self._chooser = chooser
        self._paraphrase = paraphrase

    def question(self, exchange: Exchange) -> str:
        """The question with references to regions, the source's own question worded, and its suffix."""
        suffix = self._one_of(self._form.suffixes)
        if exchange.asked == "own words":
            question = exchange.question
        else:
            question = self._one_of(self._bank(exchange.asked)).replace(REGION_TOKEN, exchange.question)
        if not self._form.suffix_everywhere and _SAYS_HOW_TO_ANSWER.search(question):
            return question
        return question + suffix

    def introduction(self, count: int) -> str:
        """What introduces `count` regions by name."""
        if not self._form.lead_ins:
            return region_introduction(count)
        listed = ",".join(f"{region_name(index)} {REGION_TOKEN}" for index in range(count))
        return self._one_of(self._form.lead_ins).replace(REGION_LIST, listed)

    def _bank(self, asked: Asked) -> tuple[str, ...]:
        form = self._form
        return {
            "region": form.region_questions,
            "name": form.name_questions or form.region_questions,
            "picture": form.picture_questions,
            "explanation": form.explanation_questions,
        }[asked]

    def _one_of(self, bank: tuple[str, ...]) -> str:
        return self._chooser.choice(bank) if self._paraphrase else bank[0]


def _inline(exchanges: Sequence[Exchange], wordings: _Wordings) -> tuple[list[int], str, list[tuple[str, str | None]]]:
    """Every reference becomes `<mask>`. Returns numbers of the regions in that order, no introduction, the texts."""
    numbers: list[int] = []
    texts = []
    for exchange in exchanges:
        numbers.extend(exchange.asked_regions)
        texts.append((REGION_REFERENCE.sub(REGION_TOKEN, wordings.question(exchange)), exchange.answer))
    return numbers, "", texts


def _introduced(
    exchanges: Sequence[Exchange], record: RegionRecord, form: PromptForm, wordings: _Wordings, limit: int | None
) -> tuple[list[int], str, list[tuple[str, str | None]]]:
    """Regions are introduced by name and then called by it; where some are left out, they are numbered anew."""
    numbers = sorted({number for exchange in exchanges for number in exchange.all_regions})
    every = range(1, len(record.regions) + 1)
    if not numbers or (form.introduction == "always" and (limit is None or len(every) <= limit)):
        numbers = list(every[:limit])
    introduction = wordings.introduction(len(numbers))

    def name(match: re.Match[str]) -> str:
        number = int(match[1])
        called = region_name(numbers.index(number))
        if not form.class_names:
            return called
        shifted = min(number, len(record.regions) - 1)
        return f"{record.regions[shifted].name} at {called}".removeprefix(" at ")

    texts = [
        (
            REGION_REFERENCE.sub(name, wordings.question(exchange)),
            None if exchange.answer is None else REGION_REFERENCE.sub(name, exchange.answer),
        )
        for exchange in exchanges
    ]
    return numbers, introduction, texts


def _without_angle_brackets(texts: Sequence[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    table = str.maketrans("", "", "<>")
    return [
        (question.translate(table), None if answer is None else answer.translate(table)) for question, answer in texts
    ]


def _messages(texts: Sequence[tuple[str, str | None]]) -> Conversation:
    messages: Conversation = []
    for question, answer in texts:
        messages.append({"role": "user", "content": question})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    return messages
