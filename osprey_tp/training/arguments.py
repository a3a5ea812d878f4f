"""Settings of a training run: a YAML file, then `key=value` overrides; a key that does not exist is an error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from osprey_tp.outside import parse_yaml
from osprey_tp.training.adapters import AdapterSettings
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
        learning_rates: Peak learning rate by part, above `learning_rate`. A part that the stage freezes trains if it is
            named here; null freezes one that the stage trains.
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
        geometry: Fields of `OspreyTPConfig` by name (`max_tiles`, `scale_factor`, `feature_layers`, `preset`, ...),
            where no `model` is given; a model folder keeps its own.
        model_template: Chat template that the model keeps, where no `model` is given; null for the tokenizer's own.
        initial_parts: Files of weights of single parts, read into the start model: what `scripts.export_parts` wrote
            or a published `mm_projector.bin`.
        adapter: Train adapters of the language model in place of its weights (`osprey_tp.training.adapters`).
        template: Chat template that renders the conversations, in place of the stage's.
        frozen_precision: Dtype in which frozen weights are held, without DeepSpeed; `bf16` goes with `precision` bf16.
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
    learning_rates: Mapping[str, float | None] = field(default_factory=dict)
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
    geometry: Mapping[str, Any] = field(default_factory=dict)
    model_template: str | None = "vicuna_v1"
    initial_parts: tuple[str, ...] = ()
    adapter: AdapterSettings | None = None
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
        self._check_geometry()
        if not self.data:
            raise ValueError("data names no record folder; give at least one")
        if self.frozen_precision == "bf16" and self.precision != "bf16":
            raise ValueError(f"frozen_precision=bf16 goes with precision=bf16, not {self.precision}")
        self._check_watching()
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the steps, from 0 to below 1, got {self.warmup}")
        trained = self.resolved_stage.learning_rates
        if self.adapter is not None and "language_model" not in trained:
            raise ValueError(
                f"adapter is set, but stage {self.stage} freezes the language model; remove it, or give "
                "learning_rates.language_model=..."
            )

    def _check_geometry(self) -> None:
        """The names in `geometry` are fields of the model's configuration, and there is a model to put together."""
        if not self.geometry:
            return
        if self.model is not None:
            raise ValueError(
                f"geometry sets {', '.join(self.geometry)}, but {self.model} has its own; give language_model=... and "
                "vision_tower=... with model=null, or remove it"
            )
        from osprey_tp.configuration import choices_of_a_model

        _require_known(self.geometry, choices_of_a_model(), "geometry.")

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
        """The declared stage with this run's learning rates and template.

        Raises:
            ValueError: for a learning rate of a part that does not exist.
        """
        stage = STAGES[self.stage]
        everywhere = {} if self.learning_rate is None else dict.fromkeys(stage.learning_rates, self.learning_rate)
        stage = stage.with_learning_rates({**everywhere, **self.learning_rates})
        return stage if self.template is None else replace(stage, template=self.template)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as they are saved beside the model and read again by `load_settings`."""
        return {name: _plain(value) for name, value in asdict(self).items()}


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
    return parse_yaml(text, where)


def _plain(value: Any) -> Any:
    """The value with lists in place of tuples, which YAML has not."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _build(values: Mapping[str, Any], kind: type = RunSettings, prefix: str = "") -> Any:
    """Settings of the dataclass `kind` from plain values; `prefix` leads to them, such as `adapter.`."""
    types = get_type_hints(kind)
    _require_known(values, [f.name for f in fields(kind)], prefix)
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    missing = [prefix + name for name in needed if values.get(name) is None]
    if missing:
        raise ValueError(f"settings lack {', '.join(missing)}; add {missing[0]}=... or put it into the file")
    return kind(**{name: _convert(prefix + name, value, types[name]) for name, value in values.items()})


def _require_known(names: Iterable[Any], known: Iterable[str], prefix: str) -> None:
    """Raise ValueError, with the nearest known name, for a name that is not among `known`."""
    full = [prefix + name for name in known]
    for name in (f"{prefix}{name}" for name in names):
        if name not in full:
            nearest = difflib.get_close_matches(name, full, n=1, cutoff=0.0)[0]
            raise ValueError(f"unknown setting {name!r}; the nearest known one is {nearest!r}")


def _convert(name: str, value: Any, kind: Any) -> Any:
    """The value as the field's type; YAML reads `1e-3` as text, so numbers are converted from text too."""
    nested = next((inner for inner in get_args(kind) if isinstance(inner, type) and is_dataclass(inner)), None)
    if nested is not None and value is not None:
        if not isinstance(value, Mapping):
            names = ", ".join(f.name for f in fields(nested))
            raise ValueError(f"{name} must hold named values ({names}), got {value!r}")
        return _build(value, nested, f"{name}.")
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
    if kind is Any:
        return value
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
