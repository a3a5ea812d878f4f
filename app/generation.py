"""One answer with all that a client of an interface may ask for: sampling, seed, stop texts, token counts."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from osprey_tp.sessions import ImageSession


class ContextLengthError(ValueError):
    """The prompt leaves no room for an answer."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is made.

    Attributes:
        max_new_tokens: Limit of the answer.
        temperature: 0 takes the likeliest token each time.
        top_p: Share of the likelihood that the tokens sampled from have at least.
        seed: The same one gives the same answer; None a new one each time.
        stop: Texts before which the answer ends.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass
class Outcome:
    """How the making of an answer went; complete when its last piece is there."""

    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0


def generate(
    session: ImageSession,
    turns: Sequence[tuple[str, str]],
    regions: Sequence[Any],
    sampling: Sampling,
    outcome: Outcome,
    context: int | None = None,
) -> Iterator[str]:
    """The answer to the last turn, piece by piece, without blanks around it. Model work.

    Args:
        session: Of the picture.
        turns: As of `ImageSession.converse`.
        regions: As of `ImageSession.converse`.
        sampling: How to make the answer.
        outcome: Is filled in.
        context: Tokens that prompt and answer may have together.

    Raises:
        ContextLengthError: if the prompt alone has as many.
        ValueError: as `ImageSession.converse`.
    """
    tokens = _TokenLimit(sampling.max_new_tokens, context, outcome)
    options: dict[str, Any] = {"logits_processor": LogitsProcessorList([tokens])}
    if sampling.temperature > 0:
        options |= {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    text = _Text(sampling.stop)
    # One token more than wanted: asking for it tells that the answer was not at its end.
    with (
        _random_numbers(sampling.seed),
        closing(session.converse(turns, regions, max_new_tokens=sampling.max_new_tokens + 1, **options)) as pieces,  # type: ignore[type-var]
    ):
        try:
            for piece in pieces:
                yield from text.add(piece)
                if text.stopped:
                    return
        except _LimitReachedError:
            outcome.finish_reason = "length"
        yield from text.end()
        if text.stopped:
            outcome.finish_reason = "stop"


class _LimitReachedError(Exception):
    """The answer has as many tokens as it may."""


class _TokenLimit(LogitsProcessor):
    """Counts tokens as they are made, and ends an answer that is too long."""

    def __init__(self, limit: int, context: int | None, outcome: Outcome) -> None:
        self._limit, self._context, self._outcome = limit, context, outcome

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(1, n) the ids so far, (1, vocabulary) what comes next; called before every token."""
        length = input_ids.shape[1]
        if not self._outcome.prompt_tokens:
            self._outcome.prompt_tokens = length
            if self._context is not None:
                if length >= self._context:
                    raise ContextLengthError(
                        f"the prompt has {length} tokens, the model reads and writes at most {self._context}; "
                        "shorten the conversation"
                    )
                self._limit = min(self._limit, self._context - length)
        if length - self._outcome.prompt_tokens >= self._limit:
            raise _LimitReachedError
        self._outcome.completion_tokens = length - self._outcome.prompt_tokens + 1
        return scores


class _Text:
    """Gives out text as far as it is certain: not what may begin a stop text, nor blanks at either end."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self._begun = False
        self.stopped = False

    def add(self, piece: str) -> Iterator[str]:
        """What a new piece makes certain."""
        self._held += piece
        places = [place for place in (self._held.find(stop) for stop in self._stop) if place >= 0]
        if places:
            self.stopped = True
            self._held = self._held[: min(places)].rstrip()
            yield from self._give(len(self._held))
        else:
            certain = self._held[: len(self._held) - self._length_of_a_beginning()]
            yield from self._give(len(certain.rstrip()))

    def end(self) -> Iterator[str]:
        """What is left."""
        self._held = self._held.rstrip()
        yield from self._give(len(self._held))

    def _give(self, length: int) -> Iterator[str]:
        given, self._held = self._held[:length], self._held[length:]
        given = given if self._begun else given.lstrip()
        if given:
            self._begun = True
            yield given

    def _length_of_a_beginning(self) -> int:
        """Characters at the end of the text that may be the beginning of a stop text."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0


@contextmanager
def _random_numbers(seed: int | None) -> Iterator[None]:
    """Random numbers of one answer's own; afterwards those of others go on as if nothing had been."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if seed is None:
            torch.seed()
        else:
            torch.manual_seed(seed)
        yield
