"""A key-value cache of rows that come and go.

```
          columns ─►               room for more
row 0   [ 0 0 a b c d ]          [ . . . . ]      update: columns behind all rows, in place
row 1   [ 0 e f g h i ]          [ . . . . ]      keep: some rows and their last columns, in new buffers
row 2   [ j k l m n o ]          [ . . . . ]      append: rows of another cache below, in new buffers
```

Every row ends at the same column, so that one more token of all rows is one more column; a row that is shorter than the
longest begins later, and what stands before it is zero. Columns are written in place into buffers with room for more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM = 32
"""Columns that a buffer has beyond those it needs when it is made."""


class RowCache(Cache):
    """Keys and values of every decoder layer for some rows.

    Args:
        config: Of the decoder.
    """

    layers: list[Any]

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(layers=[_RowLayer() for _ in range(config.num_hidden_layers)])

    def keep(self, rows: Tensor, columns: int) -> None:
        """Keep the rows of these indices, and their last `columns` columns."""
        for layer in self.layers:
            layer.replace([(layer.keys[rows, :, -columns:], layer.values[rows, :, -columns:])])

    def append(self, other: RowCache) -> None:
        """Put the rows of another cache behind the own ones; the other one is empty afterwards."""
        for layer, added in zip(self.layers, other.layers, strict=True):
            layer.replace([(layer.keys, layer.values), (added.keys, added.values)])
            added.reset()


class _RowLayer(DynamicLayer):
    """Keys and values (B, key heads, columns, d), which are the first columns of buffers."""

    keys: Tensor
    values: Tensor
    _key_buffer: Tensor
    _value_buffer: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write columns (B, key heads, n, d) behind those there are; all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.replace([(key_states, value_states)])
            return self.keys, self.values
        written = self.keys.shape[2]
        columns = written + key_states.shape[2]
        if columns > self._key_buffer.shape[2]:
            self.replace([(self.keys, self.values)], room=max(ROOM, columns // 4))
        self._key_buffer[:, :, written:columns] = key_states
        self._value_buffer[:, :, written:columns] = value_states
        self.keys, self.values = self._key_buffer[:, :, :columns], self._value_buffer[:, :, :columns]
        return self.keys, self.values

    def replace(self, parts: Sequence[tuple[Tensor, Tensor]], room: int = ROOM) -> None:
        """Hold the rows of all parts from now on, in buffers of their own; a shorter part has zeros before it."""
        self.keys, self._key_buffer = _stacked([keys for keys, _ in parts], room)
        self.values, self._value_buffer = _stacked([values for _, values in parts], room)


def _stacked(parts: Sequence[Tensor], room: int) -> tuple[Tensor, Tensor]:
    """Tensors (B_i, key heads, N_i, d) as the rows of one, ending together, and its buffer with room for more."""
    rows, columns = sum(len(part) for part in parts), max(part.shape[2] for part in parts)
    _, heads, _, width = parts[0].shape
    buffer = parts[0].new_empty(rows, heads, columns + room, width)
    first = 0
    for part in parts:
        place = buffer[first : first + len(part)]
        place[:, :, : columns - part.shape[2]] = 0
        place[:, :, columns - part.shape[2] : columns] = part
        first += len(part)
    return buffer[:, :, :columns], buffer
