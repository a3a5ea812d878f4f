"""Optimiser steps of a model with random weights: samples, tokens and FLOPs a second, peak memory, beside the estimate.

    python -m scripts.benchmark train-step                                    # tiny, on any machine
    python -m scripts.benchmark train-step --size vicuna-7b --batch-size 4    # a GPU: stages 2, 3 (LoRA), 3 (full)

A step is what one process of a run without DeepSpeed does: model, loss and AdamW as training has them, autocast over
float32 weights that train, frozen weights in bf16, non-reentrant gradient checkpointing, clipped gradients. The loop is
the benchmark's own, without the Trainer's; nothing is loaded or logged. Every case is estimated first, and left out
with a word where it does not fit. FLOPs of the model leave out what checkpointing computes again; utilisation is their
share of the GPU's dense bf16 peak, on a CPU of what its largest matrix product reaches.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scripts.dry_run import REGIONS, SIZES, TEXT_TOKENS, gib, tile_grid

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from osprey_tp.configuration import OspreyTPConfig
    from osprey_tp.modeling import OspreyTPForConditionalGeneration
    from osprey_tp.training.adapters import AdapterSettings
    from osprey_tp.training.estimation import SampleShape
    from osprey_tp.training.estimation_rehearsal import Precision, StepCost

CASES = ((2, "none"), (3, "lora"), (3, "none"))
"""(stage, adapter), all that is measured unless one is asked for."""

LEARNING_RATE = 1e-5
FLOOR_SIDE = 2048
"""Of the square matrices whose product is a CPU's floor."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--size", choices=SIZES, default="tiny", help="of the model (%(default)s)")
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), help="default: 2, 3 with LoRA, 3 in full")
    parser.add_argument("--adapter", choices=("none", "lora"), help="with --stage 3; lora has the rank of the settings")
    parser.add_argument("--grid", type=tile_grid, default=(2, 3), metavar="RxC", help="tiles of every picture (2x3)")
    parser.add_argument("--text-tokens", type=int, default=TEXT_TOKENS, metavar="N", help="a sample (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="samples in a step (%(default)s)")
    parser.add_argument("--steps", type=int, default=8, metavar="N", help="measured, after two (%(default)s)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of autocast (%(default)s)")
    parser.add_argument("--keep-activations", action="store_true", help="no gradient checkpointing")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="(%(default)s)")


@dataclass(frozen=True)
class _Setup:
    """What all cases share."""

    config: OspreyTPConfig
    batch: list[SampleShape]
    precision: Precision
    checkpointing: bool
    steps: int
    device: torch.device


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of every case; memory in bytes, rates a second.

    Raises:
        ValueError: for a number below 1, a grid that the model has not, an adapter where the language model does not
            train, and where nothing that was asked for fits.
    """
    setup = _setup(options)
    peak, peak_name = peak_flops(setup.device, setup.precision)
    cases = [_case(setup, stage, adapter, peak) for stage, adapter in _asked(options)]
    if all("left_out" in case for case in cases):
        raise ValueError(f"nothing fits: {cases[0]['left_out']}; take a smaller --batch-size or --grid")
    return {
        "size": options.size,
        "device": _name(setup.device),
        "peak_flops": peak,
        "peak": peak_name,
        "grid": list(options.grid),
        "batch_size": options.batch_size,
        "steps": options.steps,
        "tokens_a_sample": setup.batch[0].tokens,
        "checkpointing": setup.checkpointing,
        "precision": options.precision,
        "cases": cases,
    }


def table(result: Mapping[str, Any]) -> str:
    """The figures as aligned text, in 100 columns."""
    rows, cols = result["grid"]
    checkpointing = "checkpointed" if result["checkpointing"] else "kept"
    lines = [
        f"{result['size']}, {result['precision']}, on {result['device']}",
        f"steps of {result['batch_size']} samples of {result['tokens_a_sample']:,} tokens, {rows} x {cols} tiles, "
        f"activations {checkpointing}",
        f"utilisation is the share of {result['peak_flops'] / 1e12:,.4g} TFLOP/s, {result['peak']}",
        f"{'':<16}{'':>10}{'':>10}{'':>10}{'':>20}{'':>13}{'peak memory, GiB':>21}",
        f"{'stage':<16}{'s a step':>10}{'samples/s':>10}{'tokens/s':>10}{'model TFLOP/s':>20}{'utilisation':>13}"
        f"{'measured':>11}{'estimated':>10}",
    ]
    for case in result["cases"]:
        name = f"{case['stage']}, {case['trains']}"
        if "left_out" in case:
            lines.append(f"{name:<16}left out: {case['left_out']}")
            continue
        lines.append(
            f"{name:<16}{case['seconds_a_step']:>10.3g}{case['samples_a_second']:>10.3g}"
            f"{case['tokens_a_second']:>10,.0f}{case['model_flops_a_second'] / 1e12:>20.4g}"
            f"{case['utilisation']:>13.1%}{gib(case['peak_bytes']):>11}{gib(case['estimated_bytes']):>10}"
        )
    if result["device"].startswith("CPU"):
        lines.append("measured memory is that of the whole process, with Python and its libraries")
    return "\n".join(lines)


def peak_flops(device: torch.device, precision: Precision) -> tuple[float, str]:
    """FLOP/s that utilisation is told against, and where they are from.

    Raises:
        ValueError: for a GPU whose peak is not known.
    """
    import torch

    from osprey_tp.training.estimation import PEAK_FLOPS

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, peak in PEAK_FLOPS.items():
            if known in name:
                return peak, f"the dense bf16 peak of {known}"
        raise ValueError(f"the peak of {name} is not known; add it to PEAK_FLOPS in osprey_tp/training/estimation.py")
    matrix = torch.ones(FLOOR_SIDE, FLOOR_SIDE, dtype=precision.autocast or torch.float32)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - start)
    return 2 * FLOOR_SIDE**3 / min(seconds), f"a product of {FLOOR_SIDE} x {FLOOR_SIDE} matrices measured here"


def _setup(options: argparse.Namespace) -> _Setup:
    import torch

    from osprey_tp.training.estimation import SampleShape, plan_of_grid
    from osprey_tp.training.estimation_rehearsal import Precision
    from osprey_tp.training.estimation_start import SIZES as CONFIGURATIONS

    for name in ("batch_size", "steps", "text_tokens"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}")
    config = CONFIGURATIONS[options.size]()
    if options.grid not in config.tiling.grids:
        rows, cols = options.grid
        raise ValueError(f"the model has no grid of {rows} x {cols} tiles; it cuts into at most {config.max_tiles}")
    tokens = plan_of_grid(config.tiling, options.grid).num_visual_tokens + REGIONS + options.text_tokens
    gpu = options.device == "auto" and torch.cuda.is_available()
    return _Setup(
        config=config,
        batch=[SampleShape(options.grid, REGIONS, tokens)] * options.batch_size,
        precision=Precision.of_trainer(options.precision, options.precision),
        checkpointing=not options.keep_activations,
        steps=options.steps,
        device=torch.device("cuda" if gpu else "cpu"),
    )


def _asked(options: argparse.Namespace) -> Sequence[tuple[int, str]]:
    if options.stage is None and options.adapter is None:
        return CASES
    stage, adapter = options.stage or 3, options.adapter or "none"
    if adapter == "lora" and stage != 3:
        raise ValueError(f"stage {stage} freezes the language model, so there is nothing for --adapter lora to adapt")
    return [(stage, adapter)]


def _case(setup: _Setup, stage: int, adapter_name: str, peak: float) -> dict[str, Any]:
    """One stage, measured, or why it is left out."""
    import torch

    from osprey_tp.training.adapters import AdapterSettings

    adapter = AdapterSettings("lora") if adapter_name == "lora" else None
    cost, needed = _estimated(setup, stage, adapter)
    trains = {2: "regions", 1: "projector"}.get(stage, "LoRA" if adapter else "full")
    case = {"stage": stage, "adapter": adapter_name, "trains": trains, "estimated_bytes": needed}
    available = _available(setup.device)
    if needed > available:
        return case | {"left_out": f"needs {gib(needed)} GiB, {gib(available)} GiB are free"}
    try:
        seconds, peak_bytes, loss = _measured(setup, stage, adapter)
    except torch.OutOfMemoryError:
        return case | {"left_out": f"ran out of memory, although {gib(needed)} GiB were estimated"}
    samples = len(setup.batch)
    tokens = sum(sample.tokens for sample in setup.batch)
    return case | {
        "seconds_a_step": seconds,
        "samples_a_second": samples / seconds,
        "tokens_a_second": tokens / seconds,
        "model_flops": cost.flops,
        "model_flops_a_second": cost.flops / seconds,
        "utilisation": cost.flops / seconds / peak,
        "peak_bytes": peak_bytes,
        "loss": loss,
    }


def _estimated(setup: _Setup, stage: int, adapter: AdapterSettings | None) -> tuple[StepCost, float]:
    """FLOPs of a step with activations kept, which are those of the model, and bytes at its peak."""
    from osprey_tp.training.estimation import state_memory
    from osprey_tp.training.estimation_rehearsal import Rehearsal
    from osprey_tp.training.stages import STAGES

    rehearsal = Rehearsal.of(setup.config, STAGES[stage], setup.precision, adapter=adapter)
    kept = rehearsal.step(setup.batch, checkpointing=False)
    run = rehearsal.step(setup.batch, checkpointing=True) if setup.checkpointing else kept
    states = state_memory(rehearsal.size(), "none", 1, compute_bytes=4, frozen_bytes=setup.precision.frozen.itemsize)
    return kept, states.total + run.peak_bytes


def _measured(setup: _Setup, stage: int, adapter: AdapterSettings | None) -> tuple[float, int, float]:
    """Seconds of a step, bytes at the peak, loss of the last step."""
    import torch

    cuda = setup.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setup.device)
    model = _model(setup, stage, adapter)
    inputs = _inputs(setup)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    for _ in range(2):
        loss = _step(model, inputs, optimizer, trained, setup.precision.autocast)
    _wait(setup.device)
    start = time.perf_counter()
    for _ in range(setup.steps):
        loss = _step(model, inputs, optimizer, trained, setup.precision.autocast)
    _wait(setup.device)
    seconds = (time.perf_counter() - start) / setup.steps
    peak = torch.cuda.max_memory_allocated(setup.device) if cuda else _resident_peak()
    return seconds, peak, loss.item()


def _model(setup: _Setup, stage: int, adapter: AdapterSettings | None) -> OspreyTPForConditionalGeneration:
    """Random weights made on the device; those that train and those that do not in their own dtypes."""
    import torch

    from osprey_tp.training.estimation_rehearsal import staged_model
    from osprey_tp.training.stages import STAGES, keep_frozen_tower_in_evaluation_mode
    from osprey_tp.training.trainer import checkpoint_activations

    torch.manual_seed(0)
    precision = setup.precision
    with setup.device:
        model, _ = staged_model(setup.config, STAGES[stage], precision.frozen, adapter)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(precision.trained if parameter.requires_grad else precision.frozen)
    if setup.checkpointing:
        checkpoint_activations(model)
    model.train()
    keep_frozen_tower_in_evaluation_mode(model)
    return model


def _inputs(setup: _Setup) -> dict[str, Tensor]:
    """The batch on the device, with random pixels."""
    import torch

    from osprey_tp.training.estimation_rehearsal import batch_inputs

    inputs = batch_inputs(setup.config, setup.batch)
    inputs["pixel_values"] = torch.rand(inputs["pixel_values"].shape)
    return {name: tensor.to(setup.device) for name, tensor in inputs.items()}


def _step(
    model: OspreyTPForConditionalGeneration,
    inputs: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    trained: Sequence[Tensor],
    autocast: torch.dtype | None,
) -> Tensor:
    """One optimiser step; its loss."""
    import torch

    with torch.autocast(inputs["input_ids"].device.type, autocast, enabled=autocast is not None):
        loss = model(**inputs, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def _wait(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _available(device: torch.device) -> int:
    """Bytes that the device has free."""
    import os

    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _resident_peak() -> int:
    """Most bytes of memory that this process has had, with all that it has loaded."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _name(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
