"""Weights written in shards, as safetensors."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from osprey_tp.weights import Outline


def write_shards(
    folder: Path,
    weights: Mapping[str, Outline],
    make: Callable[[str], Tensor],
    max_shard_size: int | str,
) -> int:
    """Write weights as safetensors, one file or shards with their index, holding one shard in memory.

    Args:
        folder: Where `model*.safetensors` are written.
        weights: Shape and dtype by name, in the order in which they are made and shards are filled.
        make: Makes the weight of a name.
        max_shard_size: In bytes, or as in `5GB`.

    Returns:
        Bytes of all weights.
    """
    outlines = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in weights.items()}
    split = split_torch_state_dict_into_shards(outlines, max_shard_size=max_shard_size)
    total = int(split.metadata["total_size"])
    with tqdm(total=total, unit="B", unit_scale=True, desc="weights", disable=None) as progress:
        for name, held in split.filename_to_tensors.items():
            shard = OrderedDict((weight, make(weight).contiguous()) for weight in held)
            save_file(shard, folder / name, metadata={"format": "pt"})
            progress.update(sum(weight.nbytes for weight in shard.values()))
            shard.clear()
    if split.is_sharded:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
        text = json.dumps(index, indent=1) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return total
