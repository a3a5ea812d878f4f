"""Attention of many rows to keys that they have in common, which are held once.

```
row 0: [ picture ][ question A ][ answer ... ]        level 0: keys of the picture, one group of all rows
row 1: [ picture ][ question A ][ answer ... ]        level 1: keys of the questions, one group for each
row 2: [ picture ][ question B ][ answer ... ]        own keys: every row's own
```

A query attends to each level and to its own keys by themselves; every part gives an output and the logarithm of the sum
of the exponentials of its scores. Weighted by these, the outputs add up to softmax attention over all keys together
(as in FlashAttention, "FlashAttention: Fast and Memory-Efficient Exact Attention", section 3.1, where the parts are
blocks). No key of a level is copied, and a level that many rows share is read once for all of them: the queries of all
rows of a group are one long sequence, which needs no mask.

A part is computed by PyTorch's fused kernel where one takes the case, which holds no scores; `plain_attention` is the
same by definition, a block of queries at a time, and serves all other cases.

`SHARED_ATTENTION` is the name under which transformers finds this attention. Without shared keys it is `sdpa`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SHARED_ATTENTION = "sdpa_with_shared_keys"

MOST_SCORES = 1 << 22
"""Scores that `plain_attention` holds at a time, whatever the number of rows and keys."""

_FUSED_DTYPES = {"cpu": (torch.float32, torch.float64, torch.bfloat16), "cuda": (torch.float16, torch.bfloat16)}
_WIDEST_HEAD = 256
"""Of the fused kernel on a GPU; a head's width must also be a multiple of 8."""


@dataclass(frozen=True)
class KeyGroup:
    """Keys and values of tokens in a row, (key heads, N, head width) each, of every decoder layer."""

    layers: Sequence[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, cache: Cache, row: int = 0) -> KeyGroup:
        """What a decoder has written to one row of a cache; not copied."""
        written: Sequence[Any] = cache.layers
        return cls([(layer.keys[row], layer.values[row]) for layer in written])

    @property
    def length(self) -> int:
        """Tokens N."""
        return self.layers[0][0].shape[1]

    def last(self, count: int) -> KeyGroup:
        """The last tokens alone; not copied."""
        first = self.length - count
        return KeyGroup([(keys[:, first:], values[:, first:]) for keys, values in self.layers])


@dataclass(frozen=True)
class SharedKeys:
    """Keys and values of tokens that stand before the own tokens of several rows.

    Attributes:
        layers: Keys and values of every decoder layer, each (key heads, N, head width) for every group.
        lengths: Tokens of each group; keys beyond are padding. A group may have none.
        rows: Rows that each group serves, in order; their sum is the number of rows.
    """

    layers: Sequence[tuple[Sequence[Tensor] | Tensor, Sequence[Tensor] | Tensor]]
    lengths: tuple[int, ...]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, groups: Sequence[KeyGroup], rows: Sequence[int]) -> SharedKeys:
        """A level of groups, each with the number of rows that it serves."""
        layers = [
            ([keys for keys, _ in of_layer], [values for _, values in of_layer])
            for of_layer in zip(*(group.layers for group in groups), strict=True)
        ]
        return cls(layers, tuple(group.length for group in groups), tuple(rows))


def attend_with_shared_keys(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    shared_keys: Sequence[SharedKeys] = (),
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it.

    Args:
        module: Attention layer; has `layer_idx`.
        query: (B, heads, n, d).
        key: (B, key heads, N, d), of the rows' own tokens.
        value: As `key`.
        attention_mask: (B, 1, n, N), true where a query may see an own key; needed where `shared_keys` are given.
        scaling: Factor of the scores.
        shared_keys: Levels of keys before the rows' own.
        kwargs: Passed to `sdpa` where there are no shared keys.

    Returns:
        (B, n, heads, d), and no weights.
    """
    if not shared_keys:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    assert attention_mask is not None
    parts = [_attend_to_own(query, key, value, attention_mask, scaling)]
    for level in shared_keys:
        keys, values = level.layers[int(module.layer_idx)]  # type: ignore[arg-type]
        parts.append(_attend_to_level(query, keys, values, level, scaling))
    return _merge(parts).to(query.dtype), None


def _attend_to_own(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Output (B, n, heads, d) and log-sum (B, n, heads) of the rows' own keys."""
    heads_a_key_head = query.shape[1] // key.shape[1]
    if heads_a_key_head > 1:
        key, value = (states.repeat_interleave(heads_a_key_head, dim=1) for states in (key, value))
    output, log_sum = attention_part(query, key, value, mask, scaling)
    return output.transpose(1, 2), log_sum.transpose(1, 2)


def _attend_to_level(
    query: Tensor, keys: Sequence[Tensor] | Tensor, values: Sequence[Tensor] | Tensor, level: SharedKeys, scaling: float
) -> tuple[Tensor, Tensor]:
    """Output (B, n, heads, d) and log-sum (B, n, heads) of one level."""
    parts, first = [], 0
    for group, (length, rows) in enumerate(zip(level.lengths, level.rows, strict=True)):
        of_group = query[first : first + rows].transpose(1, 2)  # (rows, n, heads, d)
        first += rows
        parts.append(
            _attend_to_group(of_group, keys[group][None, :, :length], values[group][None, :, :length], scaling)
        )
    if len(parts) == 1:
        return parts[0]
    outputs, log_sums = zip(*parts, strict=True)
    return torch.cat(outputs), torch.cat(log_sums)


def _attend_to_group(query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Output (rows, n, heads, d) and log-sum (rows, n, heads) of queries (rows, n, heads, d) that see the same keys.

    Keys and values are (1, key heads, N, d). The queries of all rows, and of all heads of a key head, are one sequence.
    """
    rows, queries, heads, _ = query.shape
    if not keys.shape[2]:
        log_sum = query.new_full((rows, queries, heads), -torch.inf, dtype=_accumulated(query.dtype))
        return torch.zeros_like(query), log_sum
    together = query.flatten(0, 1).unflatten(1, (keys.shape[1], -1))  # (rows·n, key heads, heads a key head, d)
    together = together.permute(1, 0, 2, 3).flatten(1, 2)[None]  # (1, key heads, rows·n·heads a key head, d)
    output, log_sum = attention_part(together, keys, values, None, scaling)
    output = output[0].unflatten(1, (rows * queries, -1)).transpose(0, 1).flatten(1, 2)  # (rows·n, heads, d)
    log_sum = log_sum[0].unflatten(1, (rows * queries, -1)).transpose(0, 1).flatten(1, 2)  # (rows·n, heads)
    return output.unflatten(0, (rows, queries)), log_sum.unflatten(0, (rows, queries))


def attention_part(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """Softmax attention and the logarithm of the sum of the exponentials of its scores.

    Args:
        query: (B, heads, n, d).
        key: (B, heads, N, d).
        value: As `key`.
        mask: (B, 1, n, N), true where a query sees a key; every query sees one.
        scaling: Factor of the scores.

    Returns:
        (B, heads, n, d), and (B, heads, n), which is float32, or float64 for queries in float64.
    """
    kind = query.device.type
    if query.dtype in _FUSED_DTYPES.get(kind, ()):
        if kind == "cpu":
            added = None
            if mask is not None:
                added = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
            output, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, attn_mask=added, scale=scaling
            )
            return output, log_sum
        if mask is None and query.shape[-1] % 8 == 0 and query.shape[-1] <= _WIDEST_HEAD:
            output, log_sum, *_ = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scaling)
            return output, log_sum
    return plain_attention(query, key, value, mask, scaling)


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """`attention_part` by its definition, in float32 or float64, a block of queries at a time."""
    batch, heads, queries, _ = query.shape
    block = max(1, MOST_SCORES // (batch * heads * key.shape[2]))
    outputs, log_sums = [], []
    for start in range(0, queries, block):
        scores = (query[:, :, start : start + block] @ key.transpose(2, 3)).to(_accumulated(query.dtype)) * scaling
        if mask is not None:
            scores = scores.masked_fill_(~mask[:, :, start : start + block], -torch.inf)
        highest = scores.amax(dim=-1, keepdim=True)
        weights = scores.sub_(highest).exp_()
        total = weights.sum(dim=-1, keepdim=True)
        outputs.append((weights.to(value.dtype) @ value).to(total.dtype) / total)
        log_sums.append((highest + total.log()).squeeze(-1))
    return torch.cat(outputs, dim=2).to(query.dtype), torch.cat(log_sums, dim=2)


def _accumulated(dtype: torch.dtype) -> torch.dtype:
    """What sums are computed in."""
    return torch.promote_types(dtype, torch.float32)


def _merge(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention over the keys of all parts together, (B, n, heads, d) in the dtype of the log-sums."""
    total = torch.stack([log_sum for _, log_sum in parts]).logsumexp(dim=0)
    merged = torch.zeros(parts[0][0].shape, dtype=total.dtype, device=total.device)
    for output, log_sum in parts:
        merged.addcmul_(output.to(total.dtype), (log_sum - total).exp_()[..., None])
    return merged


AttentionInterface.register(SHARED_ATTENTION, attend_with_shared_keys)
AttentionMaskInterface.register(SHARED_ATTENTION, sdpa_mask)
