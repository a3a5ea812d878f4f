"""Many candidate answers as one tree of tokens, so that what they share is read once.

```
"a red ring"    question ─ a ─ red ─ ring ─ end          one node a token, packed into one sequence of the batch:
"a red star" ─►                  └── star ─ end     ─►   a node attends to the picture's cached prefix and to the
"blue"                  └─ blue ─ end                    nodes above it, and stands at the position it has alone
```

The question with its `<mask>` is the trunk. The tree depends on question and texts alone: one serves every region of
every picture. Attention is exact, so the log-likelihoods are those of reading every text by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from osprey_tp.modeling import OspreyTPFeatures, OspreyTPForConditionalGeneration
from osprey_tp.processing import IGNORED_LABEL, OspreyTPProcessor
from osprey_tp.shared_attention import SHARED_ATTENTION
from osprey_tp.tiling import TilePlan

MOST_TOKENS = 1024
"""Tokens of a part; longer trees are cut, and each part repeats the trunk."""

_MASKED_ATTENTION = ("eager", "sdpa", SHARED_ATTENTION)


@dataclass(frozen=True)
class TreePart:
    """Some of the texts of a tree.

    Attributes:
        texts: (T,) which texts, as places in the list the tree was made from.
        tokens: (N,) token ids, parents before their children.
        parents: (N,) the node above each, -1 for the first token after the picture.
        depths: (N,) number of nodes above each.
        answers: T lists of nodes: the tokens of each text that are its answer, the end token among them.
    """

    texts: tuple[int, ...]
    tokens: np.ndarray
    parents: np.ndarray
    depths: np.ndarray
    answers: tuple[tuple[int, ...], ...]

    @cached_property
    def ancestors(self) -> np.ndarray:
        """(N, N) boolean: [i, j] whether node j is i or above it."""
        seen = np.eye(len(self.tokens), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


@dataclass(frozen=True)
class AnswerTree:
    """The candidate answers to one question.

    Attributes:
        parts: together all texts, each in one part.
        lengths: (texts,) tokens of each answer, the end token among them.
    """

    parts: tuple[TreePart, ...]
    lengths: np.ndarray

    @classmethod
    def build(
        cls, rows: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], most: int = MOST_TOKENS
    ) -> AnswerTree:
        """The tree of token rows.

        Args:
            rows: what stands after the picture's last token in every prompt: question, then answer.
            labels: as `rows`, `IGNORED_LABEL` where a token is not part of the answer.
            most: tokens of a part, unless one text alone is longer.
        """
        order = sorted(range(len(rows)), key=lambda index: list(rows[index]))
        parts, growing = [], _GrowingPart()
        for index in order:
            if growing.texts and len(growing.tokens) + growing.new_nodes(rows[index]) > most:
                parts.append(growing.finish())
                growing = _GrowingPart()
            growing.add(index, rows[index], labels[index])
        if growing.texts:
            parts.append(growing.finish())
        lengths = np.array([sum(label != IGNORED_LABEL for label in row) for row in labels], dtype=np.int64)
        return cls(tuple(parts), lengths)


class _GrowingPart:
    def __init__(self) -> None:
        self.children: dict[tuple[int, int], int] = {}
        self.texts: list[int] = []
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self.answers: list[tuple[int, ...]] = []

    def new_nodes(self, row: Sequence[int]) -> int:
        node, known = -1, 0
        for token in row:
            child = self.children.get((node, token))
            if child is None:
                break
            node, known = child, known + 1
        return len(row) - known

    def add(self, index: int, row: Sequence[int], labels: Sequence[int]) -> None:
        node, answer = -1, []
        for depth, (token, label) in enumerate(zip(row, labels, strict=True)):
            child = self.children.setdefault((node, token), len(self.tokens))
            if child == len(self.tokens):
                self.tokens.append(token)
                self.parents.append(node)
                self.depths.append(depth)
            node = child
            if label != IGNORED_LABEL:
                answer.append(node)
        self.texts.append(index)
        self.answers.append(tuple(answer))

    def finish(self) -> TreePart:
        return TreePart(
            tuple(self.texts),
            np.array(self.tokens, dtype=np.int64),
            np.array(self.parents, dtype=np.int64),
            np.array(self.depths, dtype=np.int64),
            tuple(self.answers),
        )


def answer_tree(processor: OspreyTPProcessor, overview: str, question: str, texts: tuple[str, ...]) -> AnswerTree:
    """The tree of the answers `texts` to a question about one region, whichever picture it is asked of.

    Args:
        processor: Writes the prompts.
        overview: The sentence between the picture and the question.
        question: Holds one `<mask>`.
        texts: Candidate answers.
    """
    tiling = processor.image_processor.tiling
    plan = TilePlan(tiling, tiling.tile_size, tiling.tile_size, rows=1, cols=1)
    picture = {"type": "image", "image": plan, "regions": [{"box": [0, 0, tiling.tile_size, tiling.tile_size]}]}
    opening: dict[str, Any] = {"role": "user", "content": [picture, {"type": "text", "text": overview + question}]}
    conversations = [[opening, {"role": "assistant", "content": text}] for text in texts]
    batch = processor.prepare(conversations, return_labels=True)
    rows, labels = [], []
    for ids, kept, of_row in zip(batch["input_ids"], batch["attention_mask"].bool(), batch["labels"], strict=True):
        end = int((ids == processor.image_token_id).nonzero()[-1]) + 1
        rows.append(ids[end:][kept[end:]].tolist())
        labels.append(of_row[end:][kept[end:]].tolist())
    return AnswerTree.build(rows, labels)


def can_pack(model: OspreyTPForConditionalGeneration, prefix: DynamicCache) -> bool:
    """Whether the language model takes a mask of its own for every token: not with flash attention or a window."""
    attention = model.config.text_config._attn_implementation
    return attention in _MASKED_ATTENTION and all(type(layer) is DynamicLayer for layer in prefix.layers)


def packed_log_likelihoods(
    model: OspreyTPForConditionalGeneration, prefix: DynamicCache, tree: AnswerTree, region_tokens: Tensor
) -> np.ndarray:
    """Log-likelihood of every text of a tree about every region.

    Args:
        model: Takes masks of its own (`can_pack`).
        prefix: Cache of the prompt up to the picture's last token; it stays as it is.
        tree: Of the texts.
        region_tokens: (regions, D).

    Returns:
        (regions, texts) float64, natural logarithm, summed over the tokens of the answer.
    """
    scores = np.zeros((len(region_tokens), len(tree.lengths)))
    for packed in _batches(len(region_tokens), tree.parts):
        parts = [part for _, part in packed]
        places = [
            region for region, part in packed for _ in range(int((part.tokens == model.config.region_token_id).sum()))
        ]
        hidden = model.model(
            **_packed_inputs(parts, prefix.get_seq_length(), model.dtype, model.device),
            past_key_values=_extended(prefix),
            use_cache=True,
            mm_encoder_outputs={"image": OspreyTPFeatures(pooler_output=[], region_tokens=region_tokens[places])},
        ).last_hidden_state[0]
        sizes = [len(part.tokens) for part in parts]
        for (region, part), states in zip(packed, hidden.split(sizes), strict=True):
            scores[region, list(part.texts)] = _answer_log_likelihoods(part, states, model.lm_head)
    return scores


def _batches(regions: int, parts: Sequence[TreePart]) -> Iterator[list[tuple[int, TreePart]]]:
    """Every part for every region, as many at a time as `MOST_TOKENS` allows."""
    packed: list[tuple[int, TreePart]] = []
    for region in range(regions):
        for part in parts:
            if packed and sum(len(one.tokens) for _, one in packed) + len(part.tokens) > MOST_TOKENS:
                yield packed
                packed = []
            packed.append((region, part))
    if packed:
        yield packed


def _extended(cache: DynamicCache) -> DynamicCache:
    """A cache that can grow while `cache` stays as it is; what both hold is not copied."""
    grown = copy.copy(cache)
    grown.layers = [copy.copy(layer) for layer in cache.layers]
    return grown


def _packed_inputs(
    parts: Sequence[TreePart], prefix_length: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Model inputs that read several parts after a cached prefix, each as if it were alone.

    Returns:
        input_ids and position_ids (1, N) over the nodes of all parts, attention_mask (1, 1, N, prefix + N), additive.
    """
    total, first = sum(len(part.tokens) for part in parts), 0
    seen = np.zeros((total, prefix_length + total), dtype=bool)
    seen[:, :prefix_length] = True
    for part in parts:
        last = first + len(part.tokens)
        seen[first:last, prefix_length + first : prefix_length + last] = part.ancestors
        first = last
    mask = torch.zeros(seen.shape, dtype=dtype, device=device)
    mask.masked_fill_(torch.from_numpy(~seen).to(device), torch.finfo(dtype).min)
    tokens = torch.from_numpy(np.concatenate([part.tokens for part in parts]))
    positions = torch.from_numpy(prefix_length + np.concatenate([part.depths for part in parts]))
    return {
        "input_ids": tokens[None].to(device),
        "position_ids": positions[None].to(device),
        "attention_mask": mask[None, None],
    }


def _answer_log_likelihoods(part: TreePart, states: Tensor, head: Any) -> np.ndarray:
    """(T,) log-likelihood of every text of a part, from the last hidden states (N, D) of its nodes.

    The words after a node are looked at once, however many texts go on from there.
    """
    nodes = np.array(sorted({node for answer in part.answers for node in answer}))
    parents, rows = np.unique(part.parents[nodes], return_inverse=True)
    logits = head(states[torch.from_numpy(parents).to(states.device)]).float()  # (parents, V)
    row = torch.from_numpy(rows).to(states.device)
    chosen = logits[row, torch.from_numpy(part.tokens[nodes]).to(states.device)]
    of_node = np.zeros(len(part.tokens))
    of_node[nodes] = (chosen.double() - logits.logsumexp(-1).double()[row]).cpu().numpy()
    return np.array([of_node[list(answer)].sum() for answer in part.answers])
