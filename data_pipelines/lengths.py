"""How long samples are for a model, told without opening a picture.

The processor renders the conversation as it does for training, but is handed the `TilePlan` of a picture that is tiled
alike and has one pixel a tile. The number of tokens depends on the grid of tiles and on the texts alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines.conversations import conversation_of
from data_pipelines.prompts import PromptStyle
from data_pipelines.records import RegionRecord
from osprey_tp.tiling import TilePlan

if TYPE_CHECKING:
    from osprey_tp.processing import OspreyTPProcessor


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of one sample.

    Attributes:
        total: All of them; what takes memory and time.
        visual: Those of the picture, separators included.
        regions: Those of the regions that the conversation speaks of, `tokens_per_region` each.
        answers: Those that are learned: answers with their end tokens. 0 if the chat template cannot tell answers
            apart, and for a question that is left open.
    """

    total: int
    visual: int
    regions: int
    answers: int

    @property
    def text(self) -> int:
        """What is neither picture nor region."""
        return self.total - self.visual - self.regions


@dataclass(frozen=True)
class Wording:
    """How records are worded when they are measured or shown; the arguments of `conversation_of`."""

    prompt_style: PromptStyle = "clean"
    epoch: int = 0
    max_regions: int | None = None
    paraphrase: bool = True

    def conversation(self, record: RegionRecord, image: Any) -> list[dict[str, Any]]:
        """The record's messages, as `conversation_of` makes them."""
        return conversation_of(
            record,
            image,
            prompt_style=self.prompt_style,
            epoch=self.epoch,
            max_regions=self.max_regions,
            paraphrase=self.paraphrase,
        )


FIRST_WORDING = Wording()
"""Clean, as in the first epoch."""


def sample_length(record: RegionRecord, processor: OspreyTPProcessor, wording: Wording = FIRST_WORDING) -> TokenCounts:
    """Tokens of the sample that `wording` makes of a record; equal to those that `processor.prepare` yields.

    The masks of the regions are not looked at.

    Raises:
        ValueError: if the record makes no conversation, or one that the processor does not take.
    """
    plan = processor.image_processor.tiling.plan(record.height, record.width) if record.has_image else None
    return conversation_length(wording.conversation(record, plan), processor)


def conversation_length(conversation: Sequence[dict[str, Any]], processor: OspreyTPProcessor) -> TokenCounts:
    """As `sample_length`, of messages whose pictures are given as `TilePlan`.

    Raises:
        ValueError: if the processor does not take the conversation.
    """
    return counts_of(render(conversation, processor), processor)


def counts_of(batch: Mapping[str, Any], processor: OspreyTPProcessor) -> TokenCounts:
    """Tokens of the one conversation that `render` made a batch of."""
    tokens = batch["input_ids"][0]
    return TokenCounts(
        total=len(tokens),
        visual=int((tokens == processor.image_token_id).sum()),
        regions=int((tokens == processor.region_token_id).sum()),
        answers=int((batch["labels"] >= 0).sum()) if "labels" in batch else 0,
    )


def render(conversation: Sequence[dict[str, Any]], processor: OspreyTPProcessor) -> dict[str, Any]:
    """`processor.prepare` of one conversation whose pictures are given as `TilePlan`, without looking at its masks.

    Returns:
        As `prepare`; with `labels` unless it ends with a question or no answer can be told apart.

    Raises:
        ValueError: if the processor does not take the conversation.
    """
    stood_in = [_with_stand_ins(message) for message in conversation]
    if conversation[-1]["role"] != "assistant":
        return dict(processor.prepare([stood_in], add_generation_prompt=True))
    try:
        return dict(processor.prepare([stood_in], return_labels=True))
    except ValueError:
        return dict(processor.prepare([stood_in]))


def _with_stand_ins(message: dict[str, Any]) -> dict[str, Any]:
    if isinstance(message["content"], str):
        return message
    return {**message, "content": [_stand_in(item) if item["type"] == "image" else item for item in message["content"]]}


def _stand_in(picture: dict[str, Any]) -> dict[str, Any]:
    """The picture with one pixel a tile, all of which every region covers."""
    plan = picture["image"]
    small = TilePlan(plan.tiling, plan.rows, plan.cols, plan.rows, plan.cols)
    covered = np.ones((plan.rows, plan.cols), dtype=bool)
    return {"type": "image", "image": small, "regions": [covered] * len(picture["regions"])}


@lru_cache(maxsize=4)
def load_processor(model: Path, template: str | None = None) -> OspreyTPProcessor:
    """The processor of a model folder, once in every process.

    Args:
        model: Folder that training or conversion wrote.
        template: Name of a chat template in place of its own, such as `plain` for stage 1.

    Raises:
        FileNotFoundError: if the folder or the processor in it is missing.
        ValueError: if the template is unknown.
    """
    if not (model / "processor_config.json").is_file():
        raise FileNotFoundError(f"{model} holds no processor_config.json; name a folder that training wrote")
    from osprey_tp.processing import OspreyTPProcessor, chat_template

    processor: OspreyTPProcessor = OspreyTPProcessor.from_pretrained(model)
    if template is not None:
        processor.chat_template = chat_template(template)
    return processor


def longest_sample(model: Path) -> int:
    """Most tokens that a model takes: positions of its language model, or less if its tokenizer says so.

    Raises:
        FileNotFoundError: if the folder holds no model.
    """
    if not (model / "config.json").is_file():
        raise FileNotFoundError(f"{model} holds no config.json; name a folder that training wrote")
    from osprey_tp.configuration import OspreyTPConfig

    return load_processor(model).longest_sample(OspreyTPConfig.from_pretrained(model))
