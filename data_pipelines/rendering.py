"""A record as people can read what a model reads: the texts in pieces, with the places of picture and regions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from data_pipelines.checks import region_numbers
from data_pipelines.lengths import TokenCounts, Wording, counts_of, render
from data_pipelines.records import RegionRecord
from osprey_tp.outside import of_record
from osprey_tp.prompts import REGION_TOKEN
from osprey_tp.tiling import TilePlan

if TYPE_CHECKING:
    from osprey_tp.processing import OspreyTPProcessor

PieceKind = Literal["text", "special", "picture", "region"]


@dataclass(frozen=True)
class Piece:
    """Tokens in a row that are of one kind.

    Attributes:
        kind: What they are; `special` is a mark of the chat template or the tokenizer.
        text: What they decode to.
        tokens: How many they are.
        region: Number of the region, from 1; 0 for other kinds.
        learned: Whether the model learns to say them.
    """

    kind: PieceKind
    text: str
    tokens: int = 0
    region: int = 0
    learned: bool = False


@dataclass(frozen=True)
class Message:
    """What one side says."""

    role: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Prompt:
    """A whole sample as the model takes it.

    Attributes:
        pieces: All tokens, in their order.
        counts: How many there are of each kind.
        plan: How the picture is tiled; None for text alone.
        is_open: Whether it ends with a question that the model is to answer.
    """

    pieces: tuple[Piece, ...]
    counts: TokenCounts
    plan: TilePlan | None
    is_open: bool


def messages_of(record: RegionRecord, wording: Wording) -> list[Message]:
    """The conversation as messages, without a model's template.

    Raises:
        ValueError: naming the record, if it makes no conversation.
    """
    conversation = wording.conversation(record, None)
    regions = iter(region_numbers(record, conversation))
    messages = []
    for message in conversation:
        content = message["content"]
        text = content if isinstance(content, str) else "".join(item.get("text", "") for item in content)
        parts = filter(None, re.split(f"({re.escape(REGION_TOKEN)})", text))
        pieces = [
            Piece("region", part, region=next(regions)) if part == REGION_TOKEN else Piece("text", part)
            for part in parts
        ]
        messages.append(Message(message["role"], tuple(pieces)))
    return messages


def prompt_of(record: RegionRecord, processor: OspreyTPProcessor, wording: Wording) -> Prompt:
    """The sample as the processor renders it for training, or up to the answer if the record leaves it open.

    Raises:
        ValueError: naming the record, if it makes no conversation or the processor does not take it.
    """
    plan = processor.image_processor.tiling.plan(record.height, record.width) if record.has_image else None
    conversation = wording.conversation(record, plan)
    try:
        batch = render(conversation, processor)
    except ValueError as error:
        raise ValueError(f"{error} {of_record(record.id)}") from error
    tokens = batch["input_ids"][0].tolist()
    learned = (batch["labels"][0] >= 0).tolist() if "labels" in batch else [False] * len(tokens)
    pieces = tuple(_pieces(tokens, learned, processor, iter(region_numbers(record, conversation))))
    return Prompt(pieces, counts_of(batch, processor), plan, conversation[-1]["role"] != "assistant")


def _pieces(
    tokens: Sequence[int], learned: Sequence[bool], processor: OspreyTPProcessor, regions: Iterator[int]
) -> Iterator[Piece]:
    """Runs of tokens of one kind. The text of a run is what it adds to the text before it."""
    added = processor.tokenizer.added_tokens_decoder.items()
    kinds: dict[Any, PieceKind] = {token: "special" for token, mark in added if mark.special}
    kinds |= {processor.image_token_id: "picture", processor.region_token_id: "region"}
    decoded, place = "", 0
    keys = [(kinds.get(token, "text"), is_learned) for token, is_learned in zip(tokens, learned, strict=True)]
    for (kind, is_learned), run in groupby(range(len(tokens)), key=keys.__getitem__):
        end = place + len(list(run))
        of_region = processor.tokens_per_region
        for last in range(place + of_region, end + 1, of_region) if kind == "region" else [end]:
            text = processor.tokenizer.decode(tokens[:last])
            number = next(regions) if kind == "region" else 0
            yield Piece(kind, text[len(decoded) :], last - place, number, is_learned)
            decoded, place = text, last
