"""Settings of a training run: a YAML file, then `key=value` overrides; a key that does not exist is an error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from osprey_tp.training.stages import STAGES, Stage

TRACKERS = ("tensorboard", "wandb", "trackio")
"""What a run can report to."""


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides a training run. Paths are relative to the working directory.

    Attributes:
        stage: 1, 2 or 3.
        model: Model folder to start from: what the stage before wrote, or a converted checkpoint. Without it, the model
            is put together from `language_model` and `vision_tower`.
        data: Prepared record folders, read as one data set: a list, or a mapping from folder to how often each of its
            records is seen in an epoch. Or the YAML of a mixture (`data_pipelines.mixtures`), alone.
        output: Folder to write; it appears when the run is complete.
        learning_rate: Peak learning rate of every part that trains; by default the stage's published one.
        learning_rates: Peak learning rate by part, above `learning_rate`.
        epochs: Passes over the data.
        max_steps: Optimiser steps; -1 leaves it to `epochs`.
        batch_size: Samples a step on each process.
        gradient_accumulation: Steps whose gradients are summed into one optimiser step.
        warmup: Share of the optimiser steps over which the learning rate rises.
        weight_decay: Weight decay of AdamW.
        max_gradient_norm: Gradients are clipped to this norm.
        precision: `bf16`, `fp16` (autocast over float32 weights) or `fp32`.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        workers: Processes that load data beside the training process.
        prompt_style: Wording of the sources' own questions, `clean` or `published`.
        max_regions: Most regions in one conversation, where the source allows more.
        seed: Of the data order and of everything random in a run.
        log_every: Optimiser steps between two entries of the loss log.
        save_every: Optimiser steps between two checkpoints.
        keep_checkpoints: How many checkpoints to keep while the run goes on.
        resume: `auto` goes on from the newest checkpoint of an interrupted run with the same settings; `never` starts
            anew.
        device: `auto` takes an accelerator if there is one; `cpu` does not.
        deepspeed: DeepSpeed configuration file.
        language_model: Folder of a causal language model to start from, where no `model` is given.
        vision_tower: Folder of the vision transformer to start from, where no `model` is given.
        template: Chat template that renders the conversations, in place of the stage's.
        frozen_precision: Dtype in which frozen weights are held; `precision` holds them as it computes.
        attention: Attention of the language model and the tower: `sdpa`, `eager` or `flash_attention_2`.
        tf32: Let float32 products round to TF32 on GPUs that have it.
        torch_compile: Compile the model with `torch.compile`.
        liger: Take Liger's fused kernels, fused linear cross-entropy among them, for the language model.
        group_by_length: Put samples of alike length into one batch, by lengths stored beside the records.
        held_out: Prepared record folders whose samples are scored while the run goes on, named as `data`.
        held_out_samples: Most samples of `held_out` that are scored each time.
        evaluate_every: Optimiser steps between two scorings of `held_out`; the last step is always followed by one.
        spike_factor: A loss this many times its recent median stops the run; 0 lets every finite loss pass.
        on_missing_image: `stop` where a picture cannot be opened, or `skip` the sample, counted and named.
        max_skipped: Most samples that a run skips before it stops.
        report_to: Trackers: `tensorboard` (events in `tensorboard/` of the run's folder), `wandb`, `trackio`; `none`
            for none.
    """

    stage: int
    data: Mapping[str, float]
    output: str
    model: str | None = None
    learning_rate: float | None = None
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    epochs: float = 1.0
    max_steps: int = -1
    batch_size: int = 8
    gradient_accumulation: int = 1
    warmup: float = 0.03
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    gradient_checkpointing: bool = False
    workers: int = 2
    prompt_style: Literal["clean", "published"] = "clean"
    max_regions: int | None = None
    seed: int = 0
    log_every: int = 10
    save_every: int = 500
    keep_checkpoints: int = 2
    resume: Literal["auto", "never"] = "auto"
    device: Literal["auto", "cpu"] = "auto"
    deepspeed: str | None = None
    report_to: tuple[str, ...] = ("tensorboard",)
    language_model: str | None = None
    vision_tower: str | None = None
    template: str | None = None
    frozen_precision: Literal["bf16", "fp32"] = "fp32"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    tf32: bool = False
    torch_compile: bool = False
    liger: bool = False
    group_by_length: bool = False
    held_out: Mapping[str, float] = field(default_factory=dict)
    held_out_samples: int = 256
    evaluate_every: int = 500
    spike_factor: float = 0.0
    on_missing_image: Literal["stop", "skip"] = "stop"
    max_skipped: int = 100

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"stage {self.stage} does not exist; stages are {', '.join(map(str, STAGES))}")
        for name in ("batch_size", "gradient_accumulation", "log_every", "save_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.model is None and (self.language_model is None or self.vision_tower is None):
            raise ValueError("settings lack model; add model=..., or language_model=... and vision_tower=...")
        if not self.data:
            raise ValueError("data names no record folder; give at least one")
        self._check_watching()
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the steps, from 0 to below 1, got {self.warmup}")

    def _check_watching(self) -> None:
        for name in ("held_out_samples", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.spike_factor and not self.spike_factor > 1:
            raise ValueError(f"spike_factor must be above 1, or 0 to let every loss pass, got {self.spike_factor}")
        unknown = [name for name in self.report_to if name not in (*TRACKERS, "none")]
        if unknown or ("none" in self.report_to and len(self.report_to) > 1):
            raise ValueError(
                f"report_to must be some of {', '.join(TRACKERS)}, or none alone, got {', '.join(self.report_to)}"
            )

    @property
    def resolved_stage(self) -> Stage:
        """The declared stage with this run's learning rates."""
        stage = STAGES[self.stage]
        everywhere = {} if self.learning_rate is None else dict.fromkeys(stage.learning_rates, self.learning_rate)
        return stage.with_learning_rates({**everywhere, **self.learning_rates})

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as they are saved beside the model and read again by `load_settings`."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def load_settings(file: Path | None, overrides: Iterable[str] = ()) -> RunSettings:
    """Read a YAML file of settings and apply `key=value` overrides (`learning_rates.projector=1e-3` reaches inside).

    Raises:
        ValueError: for a file that is no mapping, an unknown key (the nearest one is named), a missing key, a value of
            the wrong type. One line.
        OSError: if the file cannot be read.
    """
    values: dict[str, Any] = {}
    if file is not None:
        loaded = _parse_yaml(file.read_text(encoding="utf-8"), str(file))
        if not isinstance(loaded, dict):
            raise ValueError(f"{file} must hold `key: value` lines")
        values.update(loaded)
    for override in overrides:
        _apply_override(values, override)
    return _build(values)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise ValueError(f"{override!r} is no key=value setting")
    name, _, inner = key.partition(".")
    value = _parse_yaml(text, override)
    if inner:
        existing = values.get(name) or {}
        if not isinstance(existing, dict):
            raise ValueError(f"{name} holds no named values, so {key} cannot be set")
        value = {**existing, inner: value}
    values[name] = value


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


def _build(values: Mapping[str, Any]) -> RunSettings:
    types = get_type_hints(RunSettings)
    known = [f.name for f in fields(RunSettings)]
    for name in values:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise ValueError(f"unknown setting {name!r}; the nearest known one is {nearest!r}")
    missing = [name for name in ("stage", "data", "output") if values.get(name) is None]
    if missing:
        raise ValueError(f"settings lack {', '.join(missing)}; add {missing[0]}=... or put it into the file")
    return RunSettings(**{name: _convert(name, value, types[name]) for name, value in values.items()})


def _convert(name: str, value: Any, kind: Any) -> Any:
    """The value as the field's type; YAML reads `1e-3` as text, so numbers are converted from text too."""
    try:
        return _converted(value, kind)
    except (TypeError, ValueError):
        expected = getattr(kind, "__name__", str(kind)) if not get_args(kind) else str(kind).replace("typing.", "")
        raise ValueError(f"{name} must be {expected}, got {value!r}") from None


def _named_numbers(value: Any) -> dict[Any, Any]:
    """A mapping from names to numbers; names without a number have 1."""
    if isinstance(value, Mapping):
        return dict(value)
    return dict.fromkeys([value] if isinstance(value, str) else value or (), 1.0)


def _converted(value: Any, kind: Any) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value not in inner:
            raise ValueError
        return value
    if type(None) in inner:
        return None if value is None else _converted(value, inner[0])
    if origin is tuple:
        items = [value] if isinstance(value, str) else list(value or ())
        return tuple(_converted(item, inner[0]) for item in items)
    if origin is not None:
        return {str(key): _converted(number, inner[1]) for key, number in _named_numbers(value).items()}
    if kind is bool or isinstance(value, bool):
        if kind is not bool or not isinstance(value, bool):
            raise ValueError
        return value
    if kind is int and float(value) != int(float(value)):
        raise ValueError
    return kind(float(value)) if kind is int else kind(value)
