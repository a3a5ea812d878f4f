"""The three training stages as declared data, and their application to a model.

| stage | trains                                      | published learning rate | chat template              |
|-------|---------------------------------------------|-------------------------|----------------------------|
| 1     | projector                                   | 1e-3                    | `plain`                    |
| 2     | region encoder                              | 5e-4                    | the model's (`vicuna_v1`)  |
| 3     | projector, region encoder, language model   | 2e-5                    | the model's (`vicuna_v1`)  |

The vision tower is frozen in all of them. A part that no stage names is frozen; nothing else decides what trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from osprey_tp.modeling import OspreyTPForConditionalGeneration

PARTS: tuple[str, ...] = ("vision_tower", "projector", "region_encoder", "language_model")
"""The parts of a model that a stage trains or freezes; the output head belongs to the language model."""


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        number: 1, 2 or 3.
        title: What the stage is for, in words.
        learning_rates: Peak learning rate of every part that trains. Parts that are missing here are frozen.
        template: Name of the chat template that renders the conversations; None for the one in the model folder, which
            is `vicuna_v1` for Vicuna.
    """

    number: int
    title: str
    learning_rates: Mapping[str, float]
    template: str | None

    def with_learning_rates(self, changed: Mapping[str, float]) -> Stage:
        """The same stage with other learning rates for some of the parts that it trains.

        Raises:
            ValueError: for a part that the stage freezes.
        """
        frozen = sorted(set(changed) - set(self.learning_rates))
        if frozen:
            raise ValueError(
                f"learning_rates names {', '.join(frozen)}, which stage {self.number} does not train; "
                f"it trains {', '.join(self.learning_rates)}"
            )
        return replace(self, learning_rates=MappingProxyType({**self.learning_rates, **changed}))


STAGES: Mapping[int, Stage] = MappingProxyType(
    {
        1: Stage(1, "image-text alignment", MappingProxyType({"projector": 1e-3}), template="plain"),
        2: Stage(2, "mask-text alignment", MappingProxyType({"region_encoder": 5e-4}), template=None),
        3: Stage(
            3,
            "instruction tuning",
            MappingProxyType({"projector": 2e-5, "region_encoder": 2e-5, "language_model": 2e-5}),
            template=None,
        ),
    }
)


@dataclass(frozen=True)
class PartSummary:
    """One line of the table that says what a run trains.

    Attributes:
        part: One of `PARTS`.
        parameters: Number of parameters.
        trainable: Whether they train.
        dtype: Their dtype, such as `float32`.
        learning_rate: Peak learning rate, None if frozen.
    """

    part: str
    parameters: int
    trainable: bool
    dtype: str
    learning_rate: float | None


def modules_of(model: OspreyTPForConditionalGeneration, part: str) -> tuple[nn.Module, ...]:
    """The modules that make up `part`, one of `PARTS`."""
    modules: tuple[nn.Module, ...] = (getattr(model.model, part),)
    return (*modules, model.lm_head) if part == "language_model" else modules


def parameters_of(model: OspreyTPForConditionalGeneration, part: str) -> list[nn.Parameter]:
    """The parameters of `part`; those that two of its modules share (a tied head) count once."""
    unique = {id(p): p for module in modules_of(model, part) for p in module.parameters()}
    return list(unique.values())


def apply_stage(model: OspreyTPForConditionalGeneration, stage: Stage) -> list[PartSummary]:
    """Set what trains and what is frozen, and return the table that says so.

    Every parameter of the model must belong to one of `PARTS`, so that none trains or stays frozen by accident.

    Raises:
        ValueError: naming the first parameters that belong to no part.
    """
    _require_all_parts_known(model)
    summary = []
    for part in PARTS:
        parameters = parameters_of(model, part)
        trainable = part in stage.learning_rates
        for parameter in parameters:
            parameter.requires_grad_(trainable)
        summary.append(
            PartSummary(
                part=part,
                parameters=sum(p.numel() for p in parameters),
                trainable=trainable,
                dtype="/".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})),
                learning_rate=stage.learning_rates.get(part),
            )
        )
    return summary


def keep_frozen_tower_in_evaluation_mode(model: OspreyTPForConditionalGeneration) -> None:
    """Put a frozen vision tower in evaluation mode, so that no running statistics or dropout act in it."""
    tower = model.model.vision_tower
    if not any(p.requires_grad for p in tower.parameters()):
        tower.eval()


def format_table(summary: Iterable[PartSummary]) -> str:
    """The table of `apply_stage` as aligned text."""
    lines = [f"{'part':<16}{'parameters':>16}  {'trains':<8}{'dtype':<12}learning rate"]
    for row in summary:
        rate = "-" if row.learning_rate is None else f"{row.learning_rate:g}"
        trains = "yes" if row.trainable else "no"
        lines.append(f"{row.part:<16}{row.parameters:>16,}  {trains:<8}{row.dtype:<12}{rate}")
    return "\n".join(lines)


def _require_all_parts_known(model: OspreyTPForConditionalGeneration) -> None:
    known = {id(p) for part in PARTS for p in parameters_of(model, part)}
    unknown = [name for name, parameter in model.named_parameters() if id(parameter) not in known]
    if unknown:
        raise ValueError(
            f"{len(unknown)} parameters belong to none of the parts {', '.join(PARTS)}, among them "
            f"{', '.join(unknown[:3])}; add their module to osprey_tp.training.stages"
        )
