"""The three training stages as declared data, and their application to a model.

| stage | trains                                      | published learning rate | chat template              |
|-------|---------------------------------------------|-------------------------|----------------------------|
| 1     | projector                                   | 1e-3                    | `plain`                    |
| 2     | region encoder                              | 5e-4                    | the model's (`vicuna_v1`)  |
| 3     | projector, region encoder, language model   | 2e-5                    | the model's (`vicuna_v1`)  |

The vision tower is frozen in all of them. A part that the stage does not name is frozen, unless the run's
`learning_rates` name it; nothing else decides what trains. Where the language model has adapters, they train at its
rate and its own weights stay.
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
        may_begin_new: Parts that the start model need not have weights for.
    """

    number: int
    title: str
    learning_rates: Mapping[str, float]
    template: str | None
    may_begin_new: tuple[str, ...] = ()

    def with_learning_rates(self, changed: Mapping[str, float | None]) -> Stage:
        """The same stage with other learning rates: a part named here trains, one whose rate is None is frozen.

        Raises:
            ValueError: for a part that does not exist, a rate that is not positive, and where nothing is left to train.
        """
        unknown = [part for part in changed if part not in PARTS]
        if unknown:
            raise ValueError(f"learning_rates names {unknown[0]}, which is no part; parts are {', '.join(PARTS)}")
        rates = {**self.learning_rates, **changed}
        trained = {part: rate for part in PARTS if (rate := rates.get(part)) is not None}
        for part, rate in trained.items():
            if not rate > 0:
                raise ValueError(f"the learning rate of {part} is {rate:g}; it must be positive, or null to freeze it")
        if not trained:
            raise ValueError(f"learning_rates freezes every part of stage {self.number}; leave one to train")
        return replace(self, learning_rates=MappingProxyType(trained))


STAGES: Mapping[int, Stage] = MappingProxyType(
    {
        1: Stage(
            1,
            "image-text alignment",
            MappingProxyType({"projector": 1e-3}),
            template="plain",
            may_begin_new=("projector", "region_encoder"),
        ),
        2: Stage(
            2,
            "mask-text alignment",
            MappingProxyType({"region_encoder": 5e-4}),
            template=None,
            may_begin_new=("region_encoder",),
        ),
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
        part: One of `PARTS`; the head, `lm_head`, and the language model's `adapters` have lines of their own.
        parameters: Number of parameters; 0 for a head that is tied to the word embeddings.
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
    """The parameters of `part`, adapters included; those that two of its modules share (a tied head) count once."""
    unique = {id(p): p for module in modules_of(model, part) for p in module.parameters()}
    return list(unique.values())


def trained_parameters_of(model: OspreyTPForConditionalGeneration, part: str) -> list[nn.Parameter]:
    """The parameters of `part` that train, once `apply_stage` has said which."""
    return [parameter for parameter in parameters_of(model, part) if parameter.requires_grad]


def apply_stage(model: OspreyTPForConditionalGeneration, stage: Stage) -> list[PartSummary]:
    """Set what trains and what is frozen, and return the table that says so.

    Every parameter of the model must belong to one of `PARTS`, so that none trains or stays frozen by accident.

    Raises:
        ValueError: naming the first parameters that belong to no part.
    """
    _require_all_parts_known(model)
    summary = []
    lines = _lines_of_table(model)
    adapted = "adapters" in lines
    for line, parameters in lines.items():
        part = "language_model" if line in ("adapters", "lm_head") else line
        rate = None if adapted and line in ("language_model", "lm_head") else stage.learning_rates.get(part)
        for parameter in parameters:
            parameter.requires_grad_(rate is not None)
        summary.append(
            PartSummary(
                part=line,
                parameters=sum(map(_count, parameters)),
                trainable=rate is not None,
                dtype="/".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})),
                learning_rate=rate,
            )
        )
    return summary


def _count(parameter: nn.Parameter) -> int:
    """Number of values, whole where ZeRO-3 divides the parameter or two of its values share a byte."""
    packed = getattr(parameter, "quant_state", None)
    return packed.shape.numel() if packed is not None else getattr(parameter, "ds_numel", parameter.numel())


def _lines_of_table(model: OspreyTPForConditionalGeneration) -> dict[str, list[nn.Parameter]]:
    """Every parameter of the model, once, by its line of the table."""
    lines: dict[str, list[nn.Parameter]] = {part: [] for part in (*PARTS, "lm_head")}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            lines.setdefault("adapters", []).append(parameter)
        else:
            lines["lm_head" if name.startswith("lm_head.") else name.split(".")[1]].append(parameter)
    return lines


def keep_frozen_tower_in_evaluation_mode(model: OspreyTPForConditionalGeneration) -> None:
    """Put a frozen vision tower in evaluation mode, so that no running statistics or dropout act in it."""
    tower = model.model.vision_tower
    if not any(p.requires_grad for p in tower.parameters()):
        tower.eval()


def format_table(summary: Iterable[PartSummary]) -> str:
    """The table of `apply_stage` as aligned text."""
    lines = [f"{'module':<16}{'parameters':>16}  {'trains':<8}{'dtype':<15}learning rate"]
    for row in summary:
        rate = "-" if row.learning_rate is None else f"{row.learning_rate:g}"
        trains = "yes" if row.trainable else "no"
        parameters = f"{row.parameters:,}" if row.dtype else "tied"
        lines.append(f"{row.part:<16}{parameters:>16}  {trains:<8}{row.dtype:<15}{rate}")
    return "\n".join(lines)


def _require_all_parts_known(model: OspreyTPForConditionalGeneration) -> None:
    known = {id(p) for part in PARTS for p in parameters_of(model, part)}
    unknown = [name for name, parameter in model.named_parameters() if id(parameter) not in known]
    if unknown:
        raise ValueError(
            f"{len(unknown)} parameters belong to none of the parts {', '.join(PARTS)}, among them "
            f"{', '.join(unknown[:3])}; add their module to osprey_tp.training.stages"
        )
