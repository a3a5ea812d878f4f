"""Many questions about pictures, answered together against one copy of each picture's keys and values.

```
picture 1  [ prefix: system text, visual tokens ][ opening ][ question A ]─► answer      one row
                                                          └─[ question B ]─► answer      one row
picture 2  [ prefix ............................][ opening ][ question C ]─► answer      one row
```

1. `SharedPrefix`: the language model reads a picture's part of the prompt once; its keys and values are kept.
2. What the questions of a call have in common before their first region, the opening, is read once a picture
   (`Stem`). Only what is left of a question is read for every row: `<mask>` and what follows.
3. All rows, of whichever pictures, are one batch. A token attends to its stem, of which there is one copy, and to the
   tokens of its own row (`osprey_tp.shared_attention` adds the two up exactly). One more row costs its own tokens, in
   time and in memory.
4. Every step gives each row its most likely next token. Rows that have ended leave the batch, and questions that wait
   enter it (continuous batching), so that it stays full within the limits on rows and on tokens.

A token so sees three things, in the order of the prompt:

```
             level 0: prefix          level 1: opening         own tokens: RowCache, columns ─►
row 0  A   ┐                        ┐                          [ . . <mask> what follows | answer ]
row 1  B   ┴ keys of picture 1      ┴ keys of its opening      [ . . . . <mask> follows  | answer ]
row 2  C   ─ keys of picture 2      ─ keys of its opening      [ <mask> what follows     | answer ]
```

Rows stand in the order of their pictures, so that the rows of a picture are neighbours and a level is a list of keys
with the number of rows that each serves. All rows end at the same column of the cache (`osprey_tp.row_cache`), so that
a step appends one column to all; `seen` says which columns hold a token of the row. Positions are those that a token
would have in a prompt of its own.

An answer is the one that `generate` gives greedily to the whole prompt alone. The tests compare the two, and both with
a loop that reads the whole prompt anew for every token, over random pictures, regions, questions and batches.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache

from osprey_tp.modeling import OspreyTPFeatures, OspreyTPForConditionalGeneration
from osprey_tp.row_cache import RowCache
from osprey_tp.shared_attention import SHARED_ATTENTION, KeyGroup, SharedKeys

MOST_ROWS = 64
"""Questions answered at a time, unless the caller says otherwise."""

MOST_LIVE_TOKENS = 1 << 14
"""Of questions and answers that are in the batch at a time, answers counted at full length; one question is always."""


def use_shared_attention(model: OspreyTPForConditionalGeneration) -> bool:
    """Let the language model attend to shared keys, if it can; says whether it does.

    It can if all its layers see all tokens, and its attention is `sdpa`, to which the shared kind is equal otherwise.
    """
    decoder = model.model.language_model
    config = decoder.config
    if config._attn_implementation == SHARED_ATTENTION:
        return True
    sees_all = all(kind == "full_attention" for kind in getattr(config, "layer_types", None) or ())
    plain = getattr(config, "attn_logit_softcapping", None) is None and not getattr(config, "sliding_window", None)
    if config._attn_implementation != "sdpa" or not (sees_all and plain):
        return False
    decoder.set_attn_implementation(SHARED_ATTENTION)
    return True


class SharedPrefix:
    """The keys and values of a prompt prefix.

    Args:
        model: Reads the prefix.
        prefix: (N,), token ids.
        visual_tokens: What stands at the `<image>` placeholders of the prefix, one tensor a picture.
    """

    @torch.no_grad()
    def __init__(self, model: OspreyTPForConditionalGeneration, prefix: Tensor, visual_tokens: list[Tensor]) -> None:
        self.ids = prefix
        self.length = len(prefix)
        self.cache = DynamicCache(config=model.config.text_config)
        embeddings = model.model.embed_prompt(
            prefix[None].to(model.device), OspreyTPFeatures(pooler_output=visual_tokens)
        )
        model.model.language_model(inputs_embeds=embeddings, past_key_values=self.cache, use_cache=True)
        self.keys = KeyGroup.of(self.cache)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.keys.layers)

    def copies(self, count: int) -> DynamicCache:
        """A cache of its own for so many prompts, to be written to."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(count)
        return cache


@dataclass(frozen=True)
class Continuation:
    """A prompt that goes on from a prefix.

    Attributes:
        prefix: Of the picture.
        suffix: (n,) token ids behind it, at least one.
        region_tokens: (r, D), what stands at the `<mask>` placeholders of the suffix; None for none.
    """

    prefix: SharedPrefix
    suffix: Tensor
    region_tokens: Tensor | None = None


@dataclass(frozen=True)
class Stem:
    """What several rows have in common: a prefix, and the opening behind it.

    Attributes:
        prefix: Keys of the prefix.
        opening: Keys of the opening, which may have no tokens.
    """

    prefix: KeyGroup
    opening: KeyGroup

    @classmethod
    def read(cls, model: OspreyTPForConditionalGeneration, prefix: SharedPrefix, suffixes: Sequence[Tensor]) -> Stem:
        """Read what `suffixes` (n_i,) have in common before their first region, where there are several."""
        count = _in_common(suffixes, model.config.region_token_id) if len(suffixes) > 1 else 0
        if not count:
            return cls(prefix.keys, prefix.keys.last(0))
        cache = DynamicCache(config=model.config.text_config)
        embeddings = model.model.embed_prompt(suffixes[0][None, :count].to(model.device), None)
        seen = torch.ones(1, count, dtype=torch.bool, device=model.device)
        read_rows(model, embeddings, seen, torch.tensor([prefix.length]), cache, [SharedKeys.of([prefix.keys], [1])])
        return cls(prefix.keys, KeyGroup.of(cache))

    @property
    def length(self) -> int:
        """Tokens of both."""
        return self.prefix.length + self.opening.length


def _in_common(suffixes: Sequence[Tensor], region_token: int) -> int:
    """Tokens at the beginning that all suffixes have in common, of which none is a region and none a suffix's last."""
    shortest = min(len(suffix) for suffix in suffixes) - 1
    rows = torch.stack([suffix[:shortest] for suffix in suffixes])  # (suffixes, shortest)
    differs = (rows != rows[0]).any(dim=0) | (rows[0] == region_token)
    return int((differs.cumsum(dim=0) == 0).sum())


def levels_of(stems: Sequence[Stem], rows: Sequence[int]) -> list[SharedKeys]:
    """The keys of stems as levels of the attention, each stem with the number of rows that it serves."""
    levels = [SharedKeys.of([stem.prefix for stem in stems], rows)]
    if any(stem.opening.length for stem in stems):
        levels.append(SharedKeys.of([stem.opening for stem in stems], rows))
    return levels


def read_rows(
    model: OspreyTPForConditionalGeneration,
    embeddings: Tensor,
    seen: Tensor,
    first_positions: Tensor,
    cache: Cache,
    levels: Sequence[SharedKeys],
) -> Tensor:
    """Read the first tokens of rows, which stand directly behind shared keys.

    Args:
        model: Uses the shared attention.
        embeddings: (B, n, D).
        seen: (B, n), false where a row is padded.
        first_positions: (B,), the position of each row's first token.
        cache: Is written to.
        levels: The shared keys.

    Returns:
        (B, n, D), the last hidden states.
    """
    order = torch.arange(embeddings.shape[1], device=embeddings.device)
    mask = (order <= order[:, None]) & seen[:, None]  # (B, n, n)
    # padding, which nobody sees, sees itself, since attention to nothing is no number
    mask = mask | torch.eye(len(order), dtype=torch.bool, device=embeddings.device)
    positions = first_positions.to(embeddings.device)[:, None] + (seen.cumsum(dim=1) - 1).clamp_min(0)
    return decode(model, embeddings, positions, mask[:, None], cache, levels)


def decode(
    model: OspreyTPForConditionalGeneration,
    embeddings: Tensor,
    positions: Tensor,
    mask: Tensor,
    cache: Cache,
    levels: Sequence[SharedKeys],
) -> Tensor:
    """Last hidden states (B, n, D) of tokens behind shared keys and their rows' own tokens.

    Args:
        model: Uses the shared attention.
        embeddings: (B, n, D).
        positions: (B, n).
        mask: (B, 1, n, N), true where a token sees an own token of its row, those in the cache first.
        cache: Is written to.
        levels: The shared keys.
    """
    return model.model.language_model(
        inputs_embeds=embeddings,
        position_ids=positions,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
        shared_keys=levels,
    ).last_hidden_state


@torch.no_grad()
def continue_greedily(
    model: OspreyTPForConditionalGeneration,
    continuations: Sequence[Continuation],
    max_new_tokens: int,
    end_ids: Sequence[int],
    most_rows: int = MOST_ROWS,
) -> list[list[int]]:
    """The most likely next token again and again, for every continuation.

    Args:
        model: Uses the shared attention (`use_shared_attention`).
        continuations: Of any prefixes, in any order.
        max_new_tokens: Longest answer.
        end_ids: An answer ends with any of these.
        most_rows: Continuations in the batch at a time.

    Returns:
        The new ids of each continuation, the end id included.
    """
    answers: list[list[int]] = [[] for _ in continuations]
    ends = set(end_ids)
    waiting = deque(_rows(model, continuations))
    batch = _Batch(model)
    while max_new_tokens > 0 and (waiting or batch.rows):
        if waiting and 2 * len(batch.rows) <= most_rows:  # half empty
            batch.enter(_entering(waiting, batch, most_rows, max_new_tokens))
        for row, token in zip(batch.rows, batch.next_tokens(), strict=True):
            if row.going:
                answers[row.index].append(token)
                row.going = token not in ends and len(answers[row.index]) < max_new_tokens
        going = sum(row.going for row in batch.rows)
        # leaving copies what stays: it waits until a quarter has ended, or others can enter
        if 4 * going <= 3 * len(batch.rows) or (waiting and 2 * going <= most_rows):
            batch.drop_ended()
        if batch.rows:
            batch.advance()
    return answers


@dataclass
class _Row:
    """A continuation on its way.

    Attributes:
        index: Among all continuations.
        suffix: (n,) token ids behind the stem.
        region_tokens: As of `Continuation`.
        stem: It stands on.
        going: Whether its answer has not ended.
    """

    index: int
    suffix: Tensor
    region_tokens: Tensor | None
    stem: Stem
    going: bool = True


def _rows(model: OspreyTPForConditionalGeneration, continuations: Sequence[Continuation]) -> Iterator[_Row]:
    """The continuations on their stems, those of a prefix one after the other."""
    of_prefix: dict[int, list[int]] = {}
    for index, continuation in enumerate(continuations):
        of_prefix.setdefault(id(continuation.prefix), []).append(index)
    for indices in of_prefix.values():
        suffixes = [continuations[index].suffix for index in indices]
        stem = Stem.read(model, continuations[indices[0]].prefix, suffixes)
        for index, suffix in zip(indices, suffixes, strict=True):
            yield _Row(index, suffix[stem.opening.length :], continuations[index].region_tokens, stem)


def _entering(waiting: deque[_Row], batch: _Batch, most_rows: int, max_new_tokens: int) -> list[_Row]:
    """The next rows that the limits on rows and tokens allow, at least one if the batch has none."""
    tokens = sum(len(row.suffix) + max_new_tokens for row in batch.rows)
    entering: list[_Row] = []
    while waiting and len(batch.rows) + len(entering) < most_rows:
        tokens += len(waiting[0].suffix) + max_new_tokens
        if tokens > MOST_LIVE_TOKENS and (batch.rows or entering):
            break
        entering.append(waiting.popleft())
    return entering


class _Batch:
    """Rows that are answered together: `enter`, then `next_tokens`, `drop_ended` and `advance` for every token.

    Attributes:
        rows: In the order of their stems.
    """

    def __init__(self, model: OspreyTPForConditionalGeneration) -> None:
        self._model = model
        self.rows: list[_Row] = []
        self._cache = RowCache(model.config.text_config)
        self._levels: list[SharedKeys] = []
        self._seen = torch.empty(0, 0, dtype=torch.bool, device=model.device)  # (B, columns of the cache)
        self._positions = torch.empty(0, dtype=torch.long, device=model.device)  # (B,), of the next token
        self._last = torch.empty(0)  # (B, D), state of the last token
        self._new = torch.empty(0)  # (B,), the next token

    def enter(self, rows: Sequence[_Row]) -> None:
        """Read the suffixes of rows and take them into the batch, behind those that are there."""
        if not rows:
            return
        device = self._model.device
        ids = pad_sequence([row.suffix for row in rows], batch_first=True, padding_side="left").to(device)
        lengths = torch.tensor([len(row.suffix) for row in rows], device=device)
        first = torch.tensor([row.stem.length for row in rows], device=device)
        seen = torch.arange(ids.shape[1], 0, -1, device=device) <= lengths[:, None]  # (rows, n), padded on the left
        regions = [row.region_tokens for row in rows if row.region_tokens is not None]
        features = OspreyTPFeatures(pooler_output=[], region_tokens=torch.cat(regions) if regions else None)
        cache = RowCache(self._model.config.text_config)
        embeddings = self._model.model.embed_prompt(ids, features)
        states = read_rows(self._model, embeddings, seen, first, cache, _levels_of_rows(rows))
        if self.rows:
            self._cache.append(cache)
            columns = max(seen.shape[1], self._seen.shape[1])
            self._seen = torch.cat([functional.pad(part, (columns - part.shape[1], 0)) for part in (self._seen, seen)])
            self._positions = torch.cat([self._positions, first + lengths])
            self._last = torch.cat([self._last, states[:, -1]])
        else:
            self._cache, self._seen, self._positions, self._last = cache, seen, first + lengths, states[:, -1].clone()
        self.rows = [*self.rows, *rows]
        self._levels = _levels_of_rows(self.rows)

    def next_tokens(self) -> list[int]:
        """The most likely next token of every row."""
        self._new = self._model.lm_head(self._last).argmax(dim=-1)
        tokens: list[int] = self._new.tolist()
        return tokens

    def drop_ended(self) -> None:
        """Let the rows leave that have ended."""
        going = [place for place, row in enumerate(self.rows) if row.going]
        self.rows = [self.rows[place] for place in going]
        if not going:
            return
        kept = torch.tensor(going, device=self._model.device)
        seen = self._seen[kept]
        columns = int(seen.any(dim=0).sum())  # rows end together, so the columns that none of them sees come first
        self._cache.keep(kept, columns)
        self._seen, self._positions, self._new = seen[:, -columns:], self._positions[kept], self._new[kept]
        self._levels = _levels_of_rows(self.rows)

    def advance(self) -> None:
        """Read the next token of every row."""
        self._seen = functional.pad(self._seen, (0, 1), value=True)
        embeddings = self._model.model.embed_generated(self._new[:, None])
        states = decode(
            self._model, embeddings, self._positions[:, None], self._seen[:, None, None], self._cache, self._levels
        )
        self._last = states[:, 0]
        self._positions = self._positions + 1


def _levels_of_rows(rows: Sequence[_Row]) -> list[SharedKeys]:
    """The stems of rows; rows of a stem are neighbours."""
    neighbours = [list(group) for _, group in groupby(rows, key=lambda row: id(row.stem))]
    return levels_of([group[0].stem for group in neighbours], [len(group) for group in neighbours])
