"""The estimate of a whole run: its parts put together from settings, sizes and the shapes of samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from osprey_tp.configuration import OspreyTPConfig
from osprey_tp.training.arguments import RunSettings
from osprey_tp.training.estimation import (
    SHARDINGS,
    Distribution,
    ModelSize,
    SampleShape,
    Sharding,
    StateMemory,
    longest_batch,
    optimizer_steps,
    state_memory,
    typical_batch,
)
from osprey_tp.training.estimation_rehearsal import Precision, Rehearsal, StepCost
from osprey_tp.training.sampler import EpochSampler
from osprey_tp.training.stages import PartSummary

REHEARSALS = 5
"""Passes that `estimate` acts out."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of one process, in bytes.

    Attributes:
        sharding: What processes share out.
        states: Weights, gradients, optimiser.
        activations: Most that a pass over the longest batch takes beside them, activations kept.
        checkpointed: The same with gradient checkpointing.
    """

    sharding: Sharding
    states: StateMemory
    activations: int
    checkpointed: int


@dataclass(frozen=True)
class FlopEstimate:
    """FLOPs of one optimiser step of all processes.

    Attributes:
        forward: Of the forward passes.
        backward: Of the backward passes, without what frozen parts spare.
        recomputation: Of what gradient checkpointing computes again; 0 without it.
    """

    forward: float
    backward: float
    recomputation: float

    @property
    def model(self) -> float:
        """What the model needs, however it is computed."""
        return self.forward + self.backward

    @property
    def total(self) -> float:
        """All that is computed."""
        return self.model + self.recomputation


@dataclass(frozen=True)
class RunEstimate:
    """What a run needs.

    Attributes:
        parts: Parameters of every module, and whether they train.
        size: Numbers of parameters in all.
        tokens: Of a sample.
        visual_tokens: Of a sample.
        samples: In an epoch.
        samples_a_step: Of all processes together.
        steps: Of the optimiser.
        epochs: That these steps make.
        processes: How many.
        longest_batch: Samples and tokens of each in the batch for which memory is told.
        logits_bytes: Of one float32 copy of the logits of that batch.
        memory: One entry for every way of sharing out.
        flops: Of an optimiser step.
    """

    parts: list[PartSummary]
    size: ModelSize
    tokens: Distribution
    visual_tokens: Distribution
    samples: int
    samples_a_step: int
    steps: int
    epochs: float
    processes: int
    longest_batch: tuple[int, int]
    logits_bytes: int
    memory: list[MemoryEstimate]
    flops: FlopEstimate

    def seconds(self, flops_per_second: float) -> float:
        """Time of the run where every process computes that many FLOPs a second."""
        return self.steps * self.flops.total / (self.processes * flops_per_second)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; bytes and FLOPs as they are."""
        return asdict(self)


def estimate(
    settings: RunSettings,
    config: OspreyTPConfig,
    shapes: Sequence[SampleShape],
    samples: int,
    processes: int,
    progress: Iterator[Any] | None = None,
) -> RunEstimate:
    """Put the estimate together; a step is acted out `REHEARSALS` times, which takes seconds at 7B.

    Args:
        settings: The run.
        config: Of its model.
        shapes: Samples of its data, at least one, drawn as the run sees them.
        samples: In an epoch.
        processes: That run together, each on a GPU of its own.
        progress: Advanced once before every pass that is acted out.
    """
    passes = _Passes(settings, config, iter(range(REHEARSALS)) if progress is None else progress)
    longest = longest_batch(shapes, settings.batch_size)
    typical = typical_batch(shapes, settings.batch_size, grouped=settings.group_by_length)
    trainer = Precision.of_trainer(settings.precision, settings.frozen_precision)
    deepspeed = Precision.of_deepspeed(settings.precision)
    kept, checkpointed = passes.costs(trainer, longest)
    usual = kept if typical == longest else passes.cost(trainer, typical, checkpointing=False)
    parts, size = passes.parts(), passes.size()
    costs = {trainer: (kept, checkpointed)}
    if deepspeed != trainer:
        costs[deepspeed] = passes.costs(deepspeed, longest)
    recomputed = (checkpointed.flops - kept.flops) / kept.forward_flops if settings.gradient_checkpointing else 0.0
    passes_a_step = settings.gradient_accumulation * processes
    samples_a_step = settings.batch_size * passes_a_step
    steps = optimizer_steps(samples, samples_a_step, settings.epochs, settings.max_steps)
    return RunEstimate(
        parts=parts,
        size=size,
        tokens=Distribution.of([shape.tokens for shape in shapes]),
        visual_tokens=Distribution.of([shape.visual_tokens(config.tiling) for shape in shapes]),
        samples=samples,
        samples_a_step=samples_a_step,
        steps=steps,
        epochs=steps * samples_a_step / EpochSampler(samples, samples_a_step).padded,
        processes=processes,
        longest_batch=(len(longest), longest[0].tokens),
        logits_bytes=4 * len(longest) * longest[0].tokens * config.text_config.vocab_size,
        memory=_memory(settings, size, processes, costs, trainer, deepspeed),
        flops=FlopEstimate(
            forward=usual.forward_flops * passes_a_step,
            backward=usual.backward_flops * passes_a_step,
            recomputation=recomputed * usual.forward_flops * passes_a_step,
        ),
    )


class _Passes:
    """Acts passes out, and keeps the model of the precision that was asked for last."""

    def __init__(self, settings: RunSettings, config: OspreyTPConfig, progress: Iterator[Any]) -> None:
        self.settings = settings
        self.config = config
        self.adapter = settings.adapter
        self._progress = progress
        self._rehearsal: Rehearsal | None = None

    def cost(self, precision: Precision, batch: Sequence[SampleShape], checkpointing: bool) -> StepCost:
        """What a pass costs."""
        next(self._progress, None)
        if self._rehearsal is None or self._rehearsal.precision != precision:
            self._rehearsal = Rehearsal.of(
                self.config,
                self.settings.resolved_stage,
                precision,
                adapter=self.adapter,
                attention=self.settings.attention,
            )
        return self._rehearsal.step(batch, checkpointing=checkpointing)

    def costs(self, precision: Precision, batch: Sequence[SampleShape]) -> tuple[StepCost, StepCost]:
        """What a pass costs with activations kept, and with gradient checkpointing."""
        return self.cost(precision, batch, checkpointing=False), self.cost(precision, batch, checkpointing=True)

    def size(self) -> ModelSize:
        """Of the model, once a pass has been acted out."""
        assert self._rehearsal is not None
        return self._rehearsal.size(quantised=self.adapter is not None and self.adapter.kind == "qlora")

    def parts(self) -> list[PartSummary]:
        """Of the model, once a pass has been acted out."""
        assert self._rehearsal is not None
        return self._rehearsal.parts


def _memory(
    settings: RunSettings,
    size: ModelSize,
    processes: int,
    costs: Mapping[Precision, tuple[StepCost, StepCost]],
    trainer: Precision,
    deepspeed: Precision,
) -> list[MemoryEstimate]:
    rows = []
    for sharding in SHARDINGS:
        if size.quantised and sharding.startswith("3"):
            continue
        precision = trainer if sharding == "none" else deepspeed
        states = state_memory(
            size,
            sharding,
            processes,
            compute_bytes=deepspeed.trained.itemsize,
            frozen_bytes=trainer.frozen.itemsize,
        )
        kept, checkpointed = costs[precision]
        rows.append(MemoryEstimate(sharding, states, kept.peak_bytes, checkpointed.peak_bytes))
    return rows
