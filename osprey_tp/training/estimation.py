"""What a training run needs, in plain arithmetic: batches from lengths, memory of weights and optimiser, steps, time.

What takes more than arithmetic, the FLOPs and the activations of a step, is acted out in `estimation_rehearsal`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal, get_args

from osprey_tp.tiling import TilePlan, Tiling
from osprey_tp.training.sampler import EpochSampler

GIB = 2**30

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bf16 FLOP/s of GPUs (SXM), from NVIDIA's data sheets; a name is looked for in what the driver calls the GPU."""

Sharding = Literal["none", "1", "2", "3", "3 offload"]
"""What processes share out: nothing (no DeepSpeed), or what DeepSpeed's ZeRO stage of that number does; `3 offload`
also keeps weights and optimiser in the machine's own memory."""

SHARDINGS: tuple[Sharding, ...] = get_args(Sharding)

BYTES_A_4_BIT_WEIGHT = 0.5 + (8 / 64 + 32 / (64 * 256)) / 8
"""NF4 with double quantisation: a scale of 8 bits for 64 weights, and one of 32 bits for 256 scales ("QLoRA:
Efficient Finetuning of Quantized LLMs", section 3)."""

_FLOAT32 = 4
_MOMENTS = 8
_MASTER_COPY = 4
_STEP_GRADIENTS = 4


@dataclass(frozen=True)
class SampleShape:
    """One sample as far as it costs anything.

    Attributes:
        grid: Rows and columns of tiles of its picture; None without a picture.
        regions: Regions that its conversation speaks of.
        tokens: All tokens: visual ones, regions, text.
    """

    grid: tuple[int, int] | None
    regions: int
    tokens: int

    def visual_tokens(self, tiling: Tiling) -> int:
        """Tokens of the picture, separators included."""
        return 0 if self.grid is None else plan_of_grid(tiling, self.grid).num_visual_tokens

    def plan(self, tiling: Tiling) -> TilePlan | None:
        """How its picture is cut, which is taken to have one pixel a tile."""
        return None if self.grid is None else plan_of_grid(tiling, self.grid)


@dataclass(frozen=True)
class Distribution:
    """How a number spreads over samples."""

    mean: float
    median: float
    p95: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution:
        """The distribution of at least one value; quantiles are values that occur."""
        ordered = sorted(values)
        return cls(fmean(ordered), _quantile(ordered, 0.5), _quantile(ordered, 0.95), ordered[-1])


def plan_of_grid(tiling: Tiling, grid: tuple[int, int]) -> TilePlan:
    """The plan of a picture that is cut into so many rows and columns, one pixel a tile."""
    return TilePlan(tiling, *grid, *grid)


def largest_grid(tiling: Tiling) -> tuple[int, int]:
    """The tile grid (rows, columns) that makes most visual tokens."""
    return max(tiling.grids, key=lambda grid: plan_of_grid(tiling, grid).num_visual_tokens)


def typical_batch(samples: Sequence[SampleShape], size: int, *, grouped: bool = False) -> list[SampleShape]:
    """A batch that costs what batches cost on average.

    Args:
        samples: Samples of the data, at least one.
        size: Samples in the batch.
        grouped: Whether batches are made of samples of alike length.

    Returns:
        The samples at the k/(size+1) quantiles of length, where the k-th shortest of a random batch is expected; where
        batches are grouped, the sample nearest to the mean length, `size` times.
    """
    if grouped:
        mean = fmean(sample.tokens for sample in samples)
        return [min(samples, key=lambda sample: abs(sample.tokens - mean))] * size
    ordered = sorted(samples, key=lambda sample: sample.tokens)
    return [_quantile(ordered, (place + 1) / (size + 1)) for place in range(size)]


def longest_batch(samples: Sequence[SampleShape], size: int) -> list[SampleShape]:
    """The batch that costs most: the longest sample throughout, one token less in the last, so that it is padded."""
    longest = max(samples, key=lambda sample: sample.tokens)
    shorter = replace(longest, tokens=max(1, longest.tokens - 1))
    return [longest] * (size - 1) + [shorter if size > 1 else longest]


def optimizer_steps(samples: int, samples_a_step: int, epochs: float, max_steps: int = -1) -> int:
    """Optimiser steps of a run; every epoch completes its last step as `EpochSampler` does."""
    if max_steps > 0:
        return max_steps
    return math.ceil(epochs * (EpochSampler(samples, samples_a_step).padded // samples_a_step))


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters.

    Attributes:
        parameters: All of them, adapters included.
        trainable: Those that train.
        largest_layer: Of the module that holds most by itself; ZeRO-3 gathers it in one piece.
        quantised: Those held in 4 bits.
    """

    parameters: int
    trainable: int
    largest_layer: int
    quantised: int = 0

    @property
    def frozen(self) -> int:
        """Those that neither train nor are held in 4 bits."""
        return self.parameters - self.trainable - self.quantised


@dataclass(frozen=True)
class StateMemory:
    """Bytes that one process holds between two steps, whatever the batch.

    Attributes:
        weights: On the GPU.
        gradients: On the GPU.
        optimizer: On the GPU.
        host: In the memory of the machine.
    """

    weights: float
    gradients: float
    optimizer: float
    host: float = 0.0

    @property
    def total(self) -> float:
        """On the GPU."""
        return self.weights + self.gradients + self.optimizer


def state_memory(
    size: ModelSize, sharding: Sharding, processes: int, *, compute_bytes: int, frozen_bytes: int
) -> StateMemory:
    """Memory of weights, gradients and AdamW.

    Without DeepSpeed all that trains is float32, with two moments; several processes also hold the copy of the
    gradients that DistributedDataParallel sends. DeepSpeed holds weights and gradients in the dtype of computation; its
    optimiser has float32 weights, two moments and, during the step, float32 gradients ("ZeRO: Memory Optimizations
    Toward Training Trillion Parameter Models", section 3.1, and `estimate_zero2_model_states_mem_needs` of DeepSpeed).
    Stage 1 shares out the optimiser, 2 the gradients too, 3 the weights too, of which the largest layer and its
    gradient are whole while they are used. Communication buckets are not counted.

    Args:
        size: Of the model.
        sharding: What the processes share out.
        processes: How many.
        compute_bytes: Of a number as it is computed with: 2 for bf16 and fp16, 4 for fp32.
        frozen_bytes: Of a frozen weight without DeepSpeed.

    Raises:
        ValueError: for 4-bit weights that ZeRO-3 would have to share out.
    """
    quantised = BYTES_A_4_BIT_WEIGHT * size.quantised
    if sharding == "none":
        copies = 1 if processes == 1 else 2
        return StateMemory(
            weights=_FLOAT32 * size.trainable + frozen_bytes * size.frozen + quantised,
            gradients=copies * _FLOAT32 * size.trainable,
            optimizer=_MOMENTS * size.trainable,
        )
    if size.quantised and sharding.startswith("3"):
        raise ValueError("ZeRO-3 does not share out 4-bit weights; take ZeRO-2 for QLoRA")
    weights = compute_bytes * (size.parameters - size.quantised) + quantised
    gradients = compute_bytes * size.trainable
    optimizer = (_MASTER_COPY + _MOMENTS + _STEP_GRADIENTS) * size.trainable / processes
    if sharding == "1":
        return StateMemory(weights, gradients, optimizer)
    if sharding == "2":
        return StateMemory(weights, gradients / processes, optimizer)
    largest = compute_bytes * size.largest_layer
    its_gradient = compute_bytes * min(size.largest_layer, size.trainable)
    if sharding == "3":
        return StateMemory(weights / processes + largest, gradients / processes + its_gradient, optimizer)
    return StateMemory(largest, its_gradient, 0.0, host=weights / processes + optimizer)


def _quantile(ordered: Sequence, share: float) -> Any:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
