"""A conversation about the picture: what each turn says and which regions it introduces. Kept by the user's page."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from app.state import Kept, Region
from osprey_tp.prompts import IMAGE_TOKEN, REGION_TOKEN, region_introduction

LONGEST_MESSAGE = 2000  # characters
MOST_EXCHANGES = 50
_REGION_NAME = re.compile(r"\bregion\d+\b", re.IGNORECASE)


@dataclass(frozen=True)
class Exchange:
    """A message and its answer. `introduced` are the regions that the message shows for the first time; `finished`
    tells whether the answer came to its end.
    """

    message: str
    introduced: tuple[Region, ...] = ()
    answer: str = ""
    finished: bool = False


@dataclass(frozen=True)
class Chat:
    """The exchanges so far; the last of them may be waiting for its answer."""

    exchanges: tuple[Exchange, ...] = ()

    @property
    def regions(self) -> tuple[Region, ...]:
        """All that were introduced, in order; removed ones too, since earlier turns speak of them."""
        return tuple(region for exchange in self.exchanges for region in exchange.introduced)

    @property
    def turns(self) -> list[tuple[str, str]]:
        """(role, text) pairs for `ImageSession.converse`, up to the last message; `regions` go with them."""
        turns: list[tuple[str, str]] = []
        for exchange in self.exchanges:
            turns.append(("user", _introduction(exchange.introduced) + exchange.message))
            turns.append(("assistant", _without_placeholders(exchange.answer)))
        return turns[:-1]

    def asking(self, message: str, kept: Kept) -> "Chat":
        """The same with one more message, which introduces the kept regions that are new. Messages that got no answer
        are left out. Raises `ValueError` if the message cannot be sent.
        """
        message = message.strip()
        if not message:
            raise ValueError("write a message first")
        if len(message) > LONGEST_MESSAGE:
            raise ValueError(f"the message has {len(message)} characters, the limit is {LONGEST_MESSAGE}")
        if REGION_TOKEN in message or IMAGE_TOKEN in message:
            raise ValueError(f"name regions as region1, region2, ... instead of {REGION_TOKEN} or {IMAGE_TOKEN}")
        answered = Chat(tuple(exchange for exchange in self.exchanges if exchange.answer))
        if len(answered.exchanges) >= MOST_EXCHANGES:
            raise ValueError(f"this conversation has {MOST_EXCHANGES} answers, which is the limit; begin a new one")
        known = answered.regions
        new = tuple(region for region in kept.regions if region.number not in {other.number for other in known})
        _require_known_names(message, [*known, *new])
        return Chat((*answered.exchanges, Exchange(message, new)))

    def answered(self, answer: str, *, finished: bool) -> "Chat":
        """The same with the last message's answer, as far as it is known."""
        *earlier, last = self.exchanges
        return Chat((*earlier, replace(last, answer=answer, finished=finished)))

    def regenerating(self) -> "Chat":
        """The same with the last message waiting for an answer again. Raises `ValueError` if there is none."""
        if not self.exchanges:
            raise ValueError("there is no answer to make again: send a message first")
        return self.answered("", finished=False)


def _introduction(regions: Sequence[Region]) -> str:
    """The sentences that show regions to the model: one for each run of consecutive numbers."""
    runs = groupby(enumerate(region.number for region in regions), key=lambda item: item[1] - item[0])
    numbers = [[number for _, number in run] for _, run in runs]
    return "".join(region_introduction(len(run), first=run[0] - 1) for run in numbers)


def _without_placeholders(answer: str) -> str:
    """An answer as a later turn quotes it: a model may write what stands for pictures and regions elsewhere."""
    return answer.replace(REGION_TOKEN, "").replace(IMAGE_TOKEN, "")


def _require_known_names(message: str, regions: Sequence[Region]) -> None:
    names = [region.name for region in regions]
    unknown = [name for name in _REGION_NAME.findall(message) if name.lower() not in names]
    if unknown:
        raise ValueError(f"the message names {unknown[0]}, but the regions are: {', '.join(names) or 'none yet'}")
