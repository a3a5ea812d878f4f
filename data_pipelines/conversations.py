"""From a record to the conversation that the processor takes.

```
record.regions, record.turns ─► exchanges (question, answer) ─► chosen and ordered by the seed
    ─► <region2> becomes <mask>, or region2 where a region is spoken of more than once ─► messages
```
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines.prompts import PromptForm, PromptStyle, prompt_form
from data_pipelines.records import REGION_REFERENCE, RegionRecord
from osprey_tp.prompts import REGION_TOKEN, region_introduction, region_name

Conversation = list[dict[str, Any]]


@dataclass(frozen=True)
class Exchange:
    """A question and its answer, referring to regions as `<region1>`, `<region2>`, ..."""

    question: str
    answer: str

    @property
    def asked_regions(self) -> list[int]:
        """Numbers, from 1, of the regions that the question refers to, in its order; repeated as it repeats them."""
        return [int(number) for number in REGION_REFERENCE.findall(self.question)]

    @property
    def all_regions(self) -> list[int]:
        """As `asked_regions`, of question and answer."""
        return [int(number) for number in REGION_REFERENCE.findall(self.question + self.answer)]

    @property
    def asks_own_question(self) -> bool:
        """Whether the source's own question is asked: about one region, or about the picture."""
        return not self.question or REGION_REFERENCE.fullmatch(self.question) is not None


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

    Args:
        record: Its id and `epoch` seed every choice, so that a sample can be made again.
        image: Picture in any form that the processor takes.
        prompt_style: `clean` or `published` wording (`data_pipelines.prompts`).
        epoch: Another epoch makes other choices.
        max_regions: Most regions in the conversation, if that is less than the source's own limit; at least 1.
        paraphrase: Vary the wording of the source's own questions; otherwise the first wording is always used.

    Returns:
        Messages; regions are compressed RLE in source pixels, in the order of their `<mask>` in the texts.

    Raises:
        ValueError: naming the record, if it has nothing to ask or a reference to a region that it does not have.
    """
    form = prompt_form(record.source, prompt_style)
    chooser = random.Random(f"{record.id}/{epoch}")
    limit = min((value for value in (form.max_regions, max_regions) if value is not None), default=None)
    exchanges = _chosen(_exchanges_of(record), form, chooser, limit)
    if not exchanges:
        raise ValueError(f"nothing to ask: neither regions nor turns (record {record.id})")
    beyond = [number for exchange in exchanges for number in exchange.all_regions if number > len(record.regions)]
    if beyond:
        raise ValueError(f"<region{beyond[0]}>, {len(record.regions)} regions (record {record.id})")
    wordings = _Wordings(form, chooser, paraphrase)
    if _needs_introduction(exchanges, form):
        numbers, first_text, texts = _introduced(exchanges, wordings)
    else:
        numbers, first_text, texts = _inline(exchanges, wordings)
    masks = [record.regions[number - 1].segmentation for number in numbers]
    return _messages(image, masks, form.lead + first_text, texts)


def _exchanges_of(record: RegionRecord) -> list[Exchange]:
    if not record.turns:
        return [Exchange(f"<region{number}>", region.name) for number, region in enumerate(record.regions, start=1)]
    texts = [turn.text for turn in record.turns]
    return [Exchange(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True)]


def _chosen(
    exchanges: Sequence[Exchange], form: PromptForm, chooser: random.Random, limit: int | None
) -> list[Exchange]:
    """Those exchanges that the conversation holds, in its order, over at most `limit` regions.

    The first is kept even if it speaks of more regions by itself.
    """
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
        own = [exchange for exchange in group if exchange.asks_own_question]
        others = [exchange for exchange in group if not exchange.asks_own_question]
        drawn.append(chooser.choice(own if own and (not others or chooser.random() < 0.5) else others))
    chooser.shuffle(drawn)
    return drawn


def _needs_introduction(exchanges: Sequence[Exchange], form: PromptForm) -> bool:
    """Whether regions need names: an answer speaks of one, or the dialogue comes back to one."""
    if any(REGION_REFERENCE.search(exchange.answer) for exchange in exchanges):
        return True
    asked = [number for exchange in exchanges for number in exchange.asked_regions]
    return not form.separate and len(set(asked)) < len(asked)


class _Wordings:
    """Words the source's own questions."""

    def __init__(self, form: PromptForm, chooser: random.Random, paraphrase: bool) -> None:
        self._form = form
        self._chooser = chooser
        self._paraphrase = paraphrase

    def question(self, exchange: Exchange) -> str:
        """The question with references to regions, the source's own question worded."""
        if not exchange.asks_own_question:
            return exchange.question
        bank = self._form.region_questions if exchange.question else self._form.picture_questions
        wording = self._chooser.choice(bank) if self._paraphrase else bank[0]
        return wording.replace(REGION_TOKEN, exchange.question) if exchange.question else wording


def _inline(exchanges: Sequence[Exchange], wordings: _Wordings) -> tuple[list[int], str, list[tuple[str, str]]]:
    """Every reference becomes `<mask>`. Returns numbers of the regions in that order, no introduction, the texts."""
    numbers: list[int] = []
    texts = []
    for exchange in exchanges:
        numbers.extend(exchange.asked_regions)
        texts.append((REGION_REFERENCE.sub(REGION_TOKEN, wordings.question(exchange)), exchange.answer))
    return numbers, "", texts


def _introduced(exchanges: Sequence[Exchange], wordings: _Wordings) -> tuple[list[int], str, list[tuple[str, str]]]:
    """Regions are introduced by name, `region1<mask>,region2<mask>`, numbered anew without gaps, then named."""
    numbers = sorted({number for exchange in exchanges for number in exchange.all_regions})
    names = {str(number): region_name(index) for index, number in enumerate(numbers)}

    def named(text: str) -> str:
        return REGION_REFERENCE.sub(lambda match: names[str(int(match[1]))], text)

    texts = [(named(wordings.question(exchange)), named(exchange.answer)) for exchange in exchanges]
    return numbers, region_introduction(len(numbers)), texts


def _messages(image: Any, masks: list[dict[str, Any]], opening: str, texts: list[tuple[str, str]]) -> Conversation:
    messages: Conversation = []
    for index, (question, answer) in enumerate(texts):
        content: Any = question
        if index == 0:
            picture = {"type": "image", "image": image, "regions": masks}
            content = [picture, {"type": "text", "text": opening + question}]
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": answer})
    return messages
