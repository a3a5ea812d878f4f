"""An answer piece by piece: `generate` runs in a thread of its own, its reader decides how long."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from osprey_tp.modeling import OspreyTPForConditionalGeneration


def stream_answer(
    model: OspreyTPForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, inputs: Mapping[str, Any]
) -> Iterator[str]:
    """Generate from `inputs` (arguments of `generate` for one prompt) and yield the text as it comes.

    Closing the iterator ends the generation. What goes wrong in the generating thread is raised in the reader's.
    """
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    stop = _StopWhenAsked()
    failure: list[BaseException] = []

    def generate() -> None:
        try:
            model.generate(**inputs, streamer=streamer, stopping_criteria=StoppingCriteriaList([stop]))  # type: ignore[misc]
        except BaseException as error:
            failure.append(error)
            streamer.end()

    thread = threading.Thread(target=generate, daemon=True)
    thread.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        stop.asked.set()
        thread.join()
    if failure:
        raise failure[0]


class _StopWhenAsked(StoppingCriteria):
    """Ends a generation whose reader has gone away."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.asked.is_set(), device=input_ids.device)
