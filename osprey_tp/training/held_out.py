"""Scores of samples that a run does not train on: their loss, and whether short answers come out exactly.

```
places 0 .. n-1 of the held-out data ─► dealt to the processes in turn
    ─► batches with answers    ─► loss, weighted by the tokens that would be taught
    ─► batches up to the last answer ─► greedy generation ─► compared with the answer
```
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig

from osprey_tp.processing import IGNORED_LABEL
from osprey_tp.training.collator import RECORD_IDS, ConversationCollator

if TYPE_CHECKING:
    from osprey_tp.processing import OspreyTPProcessor

SHOWN = 8
"""Samples whose answers are shown."""

SHOWN_TOKENS = 64
"""Most tokens of an answer that is shown."""

SHORT_ANSWER_TOKENS = 12
"""An answer of at most so many tokens is short, and compared."""

SLACK = 4
"""Tokens that a generated short answer may be longer than the longest short one."""

Scores = dict[str, float]


@dataclass(frozen=True)
class Answered:
    """A sample with the model's answer to its last question.

    Attributes:
        id: Of the record.
        conversation: With the picture and the answer that is held to be right.
        answer: The model's.
        is_right: Whether they are equal but for case, spaces and the final stop; None if the right one is not short.
    """

    id: str
    conversation: list[dict[str, Any]]
    answer: str
    is_right: bool | None


@dataclass(frozen=True)
class HeldOut:
    """What is scored, and how the result is shown.

    Attributes:
        samples: `{"id", "conversation"}` by (0, place); the same at every call. Each conversation ends with an answer.
        count: How many places are scored, from the first.
        show: Called in the first process after each scoring, with the scores of all steps so far and the first samples.
    """

    samples: Any
    count: int
    show: Callable[[Sequence[Scores], Sequence[Answered]], None]

    def sample(self, place: int) -> dict[str, Any]:
        """The sample at this place of the fixed order."""
        found: dict[str, Any] = self.samples[(0, place)]
        return found


@dataclass(frozen=True)
class Processes:
    """This process among all of them.

    Attributes:
        rank: Number of this one.
        count: How many there are.
        in_step: Whether a process that runs the model must wait for the others, as under ZeRO-3.
        gather: Puts the lists of all processes one behind the other.
    """

    rank: int = 0
    count: int = 1
    in_step: bool = False
    gather: Callable[[list[Any]], list[Any]] = field(default=lambda values: values)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, without gradients; afterwards modes and random states are what they were."""
    modes = [(module, module.training) for module in model.modules()]
    python, numbers = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    model.eval()
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        for module, training in modes:
            module.training = training


def normalised(answer: str) -> str:
    """An answer without what does not matter: case, spaces, the final stop."""
    return " ".join(answer.casefold().split()).removesuffix(".").rstrip()


class HeldOutScorer:
    """Scores held-out samples on all processes together.

    Under ZeRO-3 every process must run the same modules equally often, though it has other samples, or fewer. So every
    batch carries one and the same filler, which has a picture and regions if any sample has, and which counts nowhere;
    a process that has run out of samples runs the filler alone.

    Args:
        model: Not wrapped by DistributedDataParallel: no gradients are exchanged here.
        processor: Renders conversations as training does.
        held_out: The samples.
        batch_size: Of each process.
        prepare: Brings a batch to the device.
        processes: This process among all.
        on_batch: Called before each batch.
    """

    def __init__(
        self,
        model: Any,
        processor: OspreyTPProcessor,
        held_out: HeldOut,
        batch_size: int,
        prepare: Callable[[dict[str, Any]], dict[str, Any]],
        processes: Processes = Processes(),  # frozen
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.collate = ConversationCollator(processor)
        self.held_out = held_out
        self.batch_size = batch_size
        self.prepare = prepare
        self.processes = processes
        self.on_batch = on_batch
        self._filler: list[dict[str, Any]] | None = None
        self._last_tokens: set[int] = set()

    def score(self) -> tuple[Scores, dict[int, tuple[str, bool | None]]]:
        """Score all samples.

        Returns:
            loss, tokens it was taken over, samples, short_answers, and exact_match, their share that came out
            exactly, unless there are none; then (answer, whether it is right) of the first `SHOWN` places.

        Raises:
            ValueError: naming the record, if a sample cannot be rendered.
        """
        rank, world = self.processes.rank, self.processes.count
        own = list(range(self.held_out.count))[rank::world]
        loss, tokens, short = self._loss(own)
        answers = self._answers([place for place in own if place < SHOWN], SHOWN_TOKENS)
        answers |= self._answers([place for place in short if place >= SHOWN], SHORT_ANSWER_TOKENS + SLACK)
        judged = {
            place: (answer, normalised(answer) == short[place] if place in short else None)
            for place, answer in answers.items()
        }
        parts = self.processes.gather([(loss, tokens, judged)])
        return _scores_of(parts, self.held_out.count)

    def _loss(self, places: list[int]) -> tuple[float, int, dict[int, str]]:
        """Sum of the losses of all taught tokens, how many they are, and the short answers, normalised, by place."""
        total, taught, short = 0.0, 0, {}
        for own, samples in self._batches(places):
            batch = self.collate(samples)
            batch.pop(RECORD_IDS)
            batch["labels"][len(own) :] = IGNORED_LABEL
            count = int((batch["labels"][:, 1:] != IGNORED_LABEL).sum())
            loss = self.model(**self.prepare(batch)).loss
            if count:
                total, taught = total + float(loss) * count, taught + count
            for row, place in enumerate(own):
                reference = samples[row]["conversation"][-1]["content"]
                self._last_tokens.add(int(batch["input_ids"][row][batch["labels"][row] != IGNORED_LABEL][-1]))
                if len(self.processor.tokenizer.encode(reference, add_special_tokens=False)) <= SHORT_ANSWER_TOKENS:
                    short[place] = normalised(reference)
        return total, taught, short

    def _answers(self, places: list[int], longest: int) -> dict[int, str]:
        """Greedy answers to the last questions, by place."""
        answers: dict[int, str] = {}
        for own, samples in self._batches(places):
            questions = [sample["conversation"][:-1] for sample in samples]
            batch = self.prepare(dict(self.processor.prepare(questions, add_generation_prompt=True)))
            generated = self.model.generate(**batch, generation_config=self._greedy(longest))
            texts = self.processor.decode_answers(generated, batch["input_ids"].shape[1])
            answers |= dict(zip(own, texts, strict=False))
        return answers

    def _batches(self, places: list[int]) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
        """Batches of samples with their places; in step, as many as the process with most, and a filler in each."""
        chunks = [places[first : first + self.batch_size] for first in range(0, len(places), self.batch_size)]
        if self.processes.in_step:
            most = max(self.processes.gather([len(chunks)]))
            chunks += [[] for _ in range(most - len(chunks))]
        for chunk in chunks:
            self.on_batch()
            yield chunk, [self.held_out.sample(place) for place in chunk] + self._fillers()

    def _fillers(self) -> list[dict[str, Any]]:
        if not self.processes.in_step:
            return []
        if self._filler is None:
            self._filler = [self._sample_that_uses_most_parts()]
        return self._filler

    def _sample_that_uses_most_parts(self) -> dict[str, Any]:
        """The first sample with a picture and regions; else the first with a picture; else the first."""
        best = self.held_out.sample(0)
        for place in range(1, self.held_out.count):
            if _parts_used(best) == len(("picture", "regions")):
                break
            best = max(best, self.held_out.sample(place), key=_parts_used)
        return best

    def _greedy(self, longest: int) -> GenerationConfig:
        """Greedy generation up to the end token, which the chat template may choose: the last one that is taught."""
        tokenizer, ends = self.processor.tokenizer, self.model.generation_config.eos_token_id
        ends = {ends if ends is not None else tokenizer.eos_token_id} if not isinstance(ends, list) else set(ends)
        if len(self._last_tokens) == 1:
            ends |= self._last_tokens
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=longest,
            eos_token_id=sorted(ends),
            pad_token_id=tokenizer.pad_token_id,
        )


def _parts_used(sample: Mapping[str, Any]) -> int:
    """How many of picture and regions a sample has."""
    contents = [message["content"] for message in sample["conversation"]]
    pictures = [item for content in contents if not isinstance(content, str) for item in content if "image" in item]
    return bool(pictures) + any(picture.get("regions") for picture in pictures)


def _scores_of(
    parts: Sequence[tuple[float, int, dict[int, tuple[str, bool | None]]]], count: int
) -> tuple[Scores, dict[int, tuple[str, bool | None]]]:
    tokens = sum(part[1] for part in parts)
    answers = {place: answer for part in parts for place, answer in part[2].items()}
    right = [is_right for _, is_right in answers.values() if is_right is not None]
    scores: Scores = {
        "loss": sum(part[0] for part in parts) / tokens,
        "tokens": tokens,
        "samples": count,
        "short_answers": len(right),
    }
    if right:
        scores["exact_match"] = sum(right) / len(right)
    return scores, {place: answer for place, answer in sorted(answers.items()) if place < SHOWN}
