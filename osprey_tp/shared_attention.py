"""Attention of many rows to keys that they have in common, which are held once.

```
row 0: [ picture ][ question A ][ answer ... ]        level 0: keys of the picture, one group of all rows
row 1: [ picture ][ question A ][ answer ... ]        level 1: keys of the questions, one group for each
row 2: [ picture ][ question B ][ answer ... ]        own keys: every row's own
```

A query attends to each level and to its own keys by themselves; every part gives an output and the logarithm of the sum
of the exponentials of its scores. Weighted by these, the outputs add up to softmax attention over all keys together
(as in FlashAttention, "FlashAttention: Fast and Memory-Efficient Exact Attention", section 3.1, where the parts are
blocks). No key of a level is copied, and a level that many rows share is read once for all of them.

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

MOST_SCORES = 1 << 25
"""Scores that are held at a time, whatever the number of rows and keys."""


@dataclass(frozen=True)
class SharedKeys:
    """Keys and values of tokens that stand before the own tokens of several rows.

    Attributes:
        layers: Keys and values of every decoder layer, (groups, key heads, N, head width) each.
        lengths: Tokens of each group; keys beyond are padding.
        rows: Rows that each group serves, in order; their sum is the number of rows.
    """

    layers: Sequence[tuple[Tensor, Tensor]]
    lengths: tuple[int, ...]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, cache: Cache, lengths: Sequence[int], rows: Sequence[int]) -> SharedKeys:
        """What a decoder has written to `cache`, one row a group, padded on the right."""
        written: Sequence[Any] = cache.layers
        layers = [(layer.keys, layer.values) for layer in written]
        return cls(layers, tuple(lengths), tuple(rows))

    def serving(self, rows: Sequence[int]) -> SharedKeys:
        """The same keys for other numbers of rows."""
        return SharedKeys(self.layers, self.lengths, tuple(rows))


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
    grouped = query.unflatten(1, (key.shape[1], -1)) * scaling  # (B, key heads, heads a key head, n, d)
    parts = [_attend(grouped, key, value, attention_mask)]
    for level in shared_keys:
        keys, values = level.layers[int(module.layer_idx)]  # type: ignore[arg-type]
        parts.append(_attend_to_level(grouped, keys, values, level))
    output = _merge(parts).flatten(1, 2).to(query.dtype)  # (B, heads, n, d)
    return output.transpose(1, 2).contiguous(), None


def _attend_to_level(query: Tensor, keys: Tensor, values: Tensor, level: SharedKeys) -> tuple[Tensor, Tensor]:
    """Output (B, key heads, heads a key head, n, d) and log-sum (B, key heads, heads a key head, n) of one level."""
    outputs, log_sums, first = [], [], 0
    for group, (length, rows) in enumerate(zip(level.lengths, level.rows, strict=True)):
        of_group = query[first : first + rows]  # (rows, key heads, heads a key head, n, d)
        together = of_group.permute(1, 2, 0, 3, 4).flatten(2, 3)[None]  # (1, key heads, heads a key head, rows·n, d)
        output, log_sum = _attend(together, keys[group, None, :, :length], values[group, None, :, :length])
        outputs.append(output[0].unflatten(2, (rows, -1)).permute(2, 0, 1, 3, 4))
        log_sums.append(log_sum[0].unflatten(2, (rows, -1)).permute(2, 0, 1, 3))
        first += rows
    return torch.cat(outputs), torch.cat(log_sums)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Softmax attention and the log-sum of its scores, in float32, a block of queries at a time.

    Args:
        query: (B, key heads, heads a key head, n, d), scaled.
        key: (B, key heads, N, d).
        value: As `key`.
        mask: (B, 1, n, N), true where a query sees a key; every query sees one.

    Returns:
        (B, key heads, heads a key head, n, d) and (B, key heads, heads a key head, n).
    """
    batch, key_heads, heads, queries, _ = query.shape
    block = max(1, MOST_SCORES // (batch * key_heads * heads * key.shape[2]))
    transposed = key.transpose(2, 3)[:, :, None]
    outputs, log_sums = [], []
    for start in range(0, queries, block):
        scores = (query[..., start : start + block, :] @ transposed).float()
        if mask is not None:
            scores = scores.masked_fill(~mask[:, :, None, start : start + block], -torch.inf)
        log_sum = scores.logsumexp(dim=-1)
        weights = scores.sub_(log_sum[..., None]).exp_().to(value.dtype)
        outputs.append((weights @ value[:, :, None]).float())
        log_sums.append(log_sum)
    return torch.cat(outputs, dim=3), torch.cat(log_sums, dim=3)


def _merge(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention over the keys of all parts together."""
    total = torch.stack([log_sum for _, log_sum in parts]).logsumexp(dim=0)
    merged = torch.zeros_like(parts[0][0])
    for output, log_sum in parts:
        merged.addcmul_(output, (log_sum - total).exp_()[..., None])
    return merged


AttentionInterface.register(SHARED_ATTENTION, attend_with_shared_keys)
AttentionMaskInterface.register(SHARED_ATTENTION, sdpa_mask)
