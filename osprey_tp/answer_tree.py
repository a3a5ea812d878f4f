"""Many candidate answers as one tree of tokens, so that what they share is read once.

```
"a red ring"    question ─ a ─ red ─ ring ─ end          one node a token, packed into rows of the batch: a node
"a red star" ─►                  └── star ─ end     ─►   attends to the picture, the question and the nodes above
"blue"                  └─ blue ─ end                    it, and stands at the position it has alone
```

The question with its `<mask>` is the trunk. It is read once for a region, and what stands before the `<mask>` once for
all; every token is read behind one copy of these keys and of the picture's (`osprey_tp.shared_prefix`). The tree
depends on question and texts alone: one serves every region of every picture. Attention is exact, so the scores are
those of reading every text by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from osprey_tp.modeling import OspreyTPFeatures, OspreyTPForConditionalGeneration
from osprey_tp.processing import IGNORED_LABEL, OspreyTPProcessor
from osprey_tp.row_cache import RowCache
from osprey_tp.shared_attention import SHARED_ATTENTION, KeyGroup, SharedKeys
from osprey_tp.shared_prefix import SharedPrefix, Stem, decode, levels_of, read_rows
from osprey_tp.tiling import TilePlan

MOST_NODES = 256
"""Tokens of a part; longer trees are cut, since a row of the batch costs the square of its tokens."""

MOST_TOKENS = 1 << 12
"""Tokens that are read at a time; a row is always."""


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
        trunk: tokens that every text begins with and that are part of no answer; the first nodes of every part.
    """

    parts: tuple[TreePart, ...]
    lengths: np.ndarray
    trunk: int

    @classmethod
    def build(
        cls, rows: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], most: int = MOST_NODES
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
        # texts in order of their tokens: what the first and the last begin with, all begin with
        first, last = order[0], order[-1]
        alike = [
            one == other and IGNORED_LABEL == of_one == of_other
            for one, other, of_one, of_other in zip(rows[first], rows[last], labels[first], labels[last], strict=False)
        ]
        return cls(tuple(parts), lengths, alike.index(False))


class _GrowingPart:
    """A part of the tree that texts are still added to.

    Attributes:
        children: the node below a node (-1 for none) that has a token, by both.
        texts, tokens, parents, depths, answers: as of `TreePart`.
    """

    def __init__(self) -> None:
        self.children: dict[tuple[int, int], int] = {}
        self.texts: list[int] = []
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self.answers: list[tuple[int, ...]] = []

    def new_nodes(self, row: Sequence[int]) -> int:
        """How many nodes a row of tokens would add."""
        node, known = -1, 0
        for token in row:
            child = self.children.get((node, token))
            if child is None:
                break
            node, known = child, known + 1
        return len(row) - known

    def add(self, index: int, row: Sequence[int], labels: Sequence[int]) -> None:
        """Walk down the row's tokens, with new nodes where there are none, and note which are the answer's."""
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
        """The part."""
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


def can_pack(model: OspreyTPForConditionalGeneration) -> bool:
    """Whether the language model attends to shared keys, and so can read a tree."""
    return model.model.language_model.config._attn_implementation == SHARED_ATTENTION


@torch.no_grad()
def tree_log_likelihoods(
    model: OspreyTPForConditionalGeneration, prefix: SharedPrefix, tree: AnswerTree, region_tokens: Tensor
) -> np.ndarray:
    """Log-likelihood of every text of a tree about every region.

    Args:
        model: Uses the shared attention (`can_pack`).
        prefix: The prompt up to the picture's last token.
        tree: Of the texts.
        region_tokens: (regions·r, D).

    Returns:
        (regions, texts) float64, natural logarithm, summed over the tokens of the answer.
    """
    trunk = torch.from_numpy(tree.parts[0].tokens[: tree.trunk])
    of_region = region_tokens.unflatten(0, (-1, int((trunk == model.config.region_token_id).sum())))
    regions = len(of_region)
    # a stem has tokens behind it: the second of two suffixes is the trunk up to its first region
    stem = Stem.read(model, prefix, [trunk] * 2)
    scores = np.zeros((regions, len(tree.lengths)))
    longest = max(len(part.tokens) for part in tree.parts)
    at_a_time = max(1, MOST_TOKENS // longest)
    for first in range(0, regions, at_a_time):
        chunk = range(first, min(first + at_a_time, regions))
        questions = _Questions.read(model, stem, trunk[stem.opening.length :], of_region[first : first + at_a_time])
        for part in tree.parts:
            states = questions.read_behind(model, part, tree.trunk)  # (regions of the chunk, nodes, D)
            for region, of_one in zip(chunk, states, strict=True):
                scores[region, list(part.texts)] = _answer_log_likelihoods(part, of_one, model.lm_head, tree.trunk)
    return scores


@dataclass(frozen=True)
class _Questions:
    """A question about several regions, read.

    Attributes:
        stem: Picture and what stands before the region.
        keys: Of what is left of the question, one group a region.
        last: (regions, D), states of the question's last token.
    """

    stem: Stem
    keys: list[KeyGroup]
    last: Tensor

    @classmethod
    def read(
        cls, model: OspreyTPForConditionalGeneration, stem: Stem, question: Tensor, region_tokens: Tensor
    ) -> _Questions:
        """Read `question` (n,), behind the stem, about regions with tokens (regions, r, D)."""
        regions = len(region_tokens)
        ids = question.expand(regions, -1).to(model.device)
        features = OspreyTPFeatures(pooler_output=[], region_tokens=region_tokens.flatten(0, 1))
        embeddings = model.model.embed_prompt(ids, features)
        seen = torch.ones_like(ids, dtype=torch.bool)
        first = torch.full((regions,), stem.length)
        cache = RowCache(model.config.text_config)
        states = read_rows(model, embeddings, seen, first, cache, levels_of([stem], [regions]))
        return cls(stem, [KeyGroup.of(cache, region) for region in range(regions)], states[:, -1])

    def read_behind(self, model: OspreyTPForConditionalGeneration, part: TreePart, trunk: int) -> Tensor:
        """States (regions, 1 + nodes, D) of the question's last token and of the nodes of a part behind the trunk."""
        regions, device = len(self.keys), model.device
        tokens = torch.from_numpy(part.tokens[trunk:]).to(device).expand(regions, -1)
        depths = torch.from_numpy(part.depths[trunk:] - trunk).to(device)
        mask = torch.from_numpy(part.ancestors[trunk:, trunk:]).to(device)
        levels = [*levels_of([self.stem], [regions]), SharedKeys.of(self.keys, [1] * regions)]
        states = decode(
            model,
            model.model.embed_prompt(tokens, None),
            (self.stem.length + self.keys[0].length + depths).expand(regions, -1),
            mask.expand(regions, 1, -1, -1),
            RowCache(model.config.text_config),
            levels,
        )
        return torch.cat([self.last[:, None], states], dim=1)


def _answer_log_likelihoods(part: TreePart, states: Tensor, head: Any, trunk: int) -> np.ndarray:
    """(T,) log-likelihood of every text of a part, from the last hidden states (1 + nodes, D) from the trunk's last on.

    The words after a node are looked at once, however many texts go on from there.
    """
    nodes = np.array(sorted({node for answer in part.answers for node in answer}))
    parents, rows = np.unique(part.parents[nodes] - (trunk - 1), return_inverse=True)
    logits = head(states[torch.from_numpy(parents).to(states.device)]).float()  # (parents, V)
    row = torch.from_numpy(rows).to(states.device)
    chosen = logits[row, torch.from_numpy(part.tokens[nodes]).to(states.device)]
    of_node = np.zeros(len(part.tokens))
    of_node[nodes] = (chosen.double() - logits.logsumexp(-1).double()[row]).cpu().numpy()
    return np.array([of_node[list(answer)].sum() for answer in part.answers])
