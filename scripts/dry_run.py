"""`python -m scripts.train --dry-run`: what a run needs, before anyone rents a GPU.

The model is built without memory and a step of it is acted out on shapes alone, so no weights are needed, and no GPU.
Tokens are counted in the prepared records with the run's own processor, as far as both are there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from osprey_tp.outside import of_record

if TYPE_CHECKING:
    from data_pipelines.dataset import ConversationDataset
    from osprey_tp.configuration import OspreyTPConfig
    from osprey_tp.processing import OspreyTPProcessor
    from osprey_tp.training.arguments import RunSettings
    from osprey_tp.training.estimation import SampleShape
    from osprey_tp.training.estimation_run import MemoryEstimate, RunEstimate

LOOKED_AT = 512
"""Most records whose tokens are counted."""

TEXT_TOKENS = 256
REGIONS = 4
FLOPS_PER_SECOND = 4e14
SIZES = ("tiny", "vicuna-7b", "vicuna-13b")


@dataclass(frozen=True)
class Data:
    """What is known or supposed of the samples.

    Attributes:
        shapes: Of those that were looked at and fit the model.
        samples: In an epoch.
        too_long: How many of those looked at the model does not take.
        origin: Where the shapes come from, in words.
    """

    shapes: list[SampleShape]
    samples: int
    too_long: int
    origin: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a dry run."""
    group = parser.add_argument_group("what a run needs, told without training")
    group.add_argument("--dry-run", action="store_true", help="print parameters, memory, tokens, steps, FLOPs, time")
    group.add_argument("--json", type=Path, metavar="FILE", help="with --dry-run: file to write the figures to")
    group.add_argument("--size", choices=SIZES, help="with --dry-run: model in place of folders that are not there yet")
    group.add_argument("--samples", type=int, metavar="N", help="with --dry-run: samples in an epoch, in place of data")
    group.add_argument(
        "--grid", type=tile_grid, metavar="RxC", help="with --samples: tiles of every picture (default: the most)"
    )
    group.add_argument(
        "--text-tokens", type=int, metavar="N", help=f"with --samples: of every sample (default: {TEXT_TOKENS})"
    )
    group.add_argument("--processes", type=int, metavar="N", help="with --dry-run: GPUs (default: those launched)")
    group.add_argument(
        "--flops-per-second",
        type=float,
        metavar="F",
        help=f"with --dry-run: what a GPU reaches (default: {FLOPS_PER_SECOND:.0e}, 40%% of an H100's or H200's peak)",
    )


def require_dry_run(options: argparse.Namespace) -> None:
    """Raise ValueError where an option is given that means nothing in training."""
    names = ("json", "size", "samples", "grid", "text_tokens", "processes", "flops_per_second")
    given = [name for name in names if getattr(options, name) is not None]
    if given and not options.dry_run:
        raise ValueError(f"--{given[0].replace('_', '-')} belongs to --dry-run")


def tile_grid(text: str) -> tuple[int, int]:
    """Rows and columns of `2x3`."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no grid of tiles such as 2x3")
    return int(found[1]), int(found[2])


def dry_run(config: Path | None, overrides: Sequence[str], options: argparse.Namespace) -> None:
    """Print what the run needs, and write it down if asked.

    Raises:
        ValueError: for settings that do not exist or do not go together, and for what is missing to tell.
    """
    from tqdm import tqdm

    from osprey_tp.training.arguments import load_settings
    from osprey_tp.training.estimation_run import REHEARSALS, estimate
    from osprey_tp.training.estimation_start import start_configuration

    processes = int(os.environ.get("WORLD_SIZE", "1")) if options.processes is None else options.processes
    rate = FLOPS_PER_SECOND if options.flops_per_second is None else options.flops_per_second
    for name, value in (("--processes", processes), ("--samples", options.samples), ("--flops-per-second", rate)):
        if value is not None and not value >= 1:
            raise ValueError(f"{name} must be at least 1, not {value:g}")
    settings = load_settings(config, overrides)
    model = start_configuration(settings, options.size)
    data = samples_of(settings, model, options)
    with tqdm(range(REHEARSALS), "acting a step out", disable=None, leave=False) as bar:
        result = estimate(settings, model, data.shapes, data.samples, processes, iter(bar))
    sys.stdout.write(table(settings, result, data, rate) + "\n")
    if options.json is not None:
        values = result.as_dict() | {"seconds": result.seconds(rate), "flops_per_second": rate, "origin": data.origin}
        options.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def samples_of(settings: RunSettings, config: OspreyTPConfig, options: argparse.Namespace) -> Data:
    """Samples of the records, or supposed ones where `--samples` says how many.

    Raises:
        ValueError: if there are no records, no `--samples`, no processor, or nothing that the model takes.
    """
    if options.samples is not None:
        return _supposed(settings, config, options)
    for name in ("grid", "text_tokens"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} goes with --samples; without it the data are looked at")
    missing = [name for name in settings.data if not Path(name).exists()]
    if missing:
        raise ValueError(f"{missing[0]} is not there; prepare it, or give --samples N to suppose that many samples")
    from osprey_tp.training.estimation_start import start_processor

    processor = start_processor(settings, config)
    if processor is None:
        raise ValueError(
            f"{settings.model or settings.language_model} has no tokenizer to count the tokens of "
            f"{', '.join(settings.data)} with; name a folder that has one, or give --samples N"
        )
    from scripts.train import load_data

    dataset = load_data(settings)
    places = _spread(len(dataset))
    shapes = [_shape(dataset, place, processor, settings) for place in places]
    positions = config.text_config.max_position_embeddings
    fitting = [shape for shape in shapes if shape.tokens <= positions]
    if not fitting:
        raise ValueError(f"all of {len(shapes)} samples are longer than the {positions} tokens that the model takes")
    origin = f"{len(places):,} of {len(dataset):,} samples looked at"
    return Data(fitting, len(dataset), len(shapes) - len(fitting), origin)


def _supposed(settings: RunSettings, config: OspreyTPConfig, options: argparse.Namespace) -> Data:
    from osprey_tp.training.estimation import SampleShape, largest_grid, plan_of_grid

    grid = largest_grid(config.tiling) if options.grid is None else options.grid
    if grid not in config.tiling.grids:
        most = config.tiling.max_tiles
        raise ValueError(f"the model has no grid of {grid[0]} x {grid[1]} tiles; it cuts into at most {most}")
    text = TEXT_TOKENS if options.text_tokens is None else options.text_tokens
    if text < 1:
        raise ValueError(f"--text-tokens must be at least 1, not {text}")
    regions = 0 if settings.stage == 1 else REGIONS
    tokens = plan_of_grid(config.tiling, grid).num_visual_tokens + regions + text
    positions = config.text_config.max_position_embeddings
    if tokens > positions:
        raise ValueError(f"{tokens} tokens are more than the {positions} that the model takes; give a smaller --grid")
    origin = f"supposed: {grid[0]} x {grid[1]} tiles, {regions} regions, {text} tokens of text"
    return Data([SampleShape(grid, regions, tokens)], options.samples, 0, origin)


def _spread(samples: int) -> list[int]:
    """Places of an epoch, spread evenly."""
    looked_at = min(samples, LOOKED_AT)
    return [number * samples // looked_at for number in range(looked_at)]


def _shape(
    dataset: ConversationDataset, place: int, processor: OspreyTPProcessor, settings: RunSettings
) -> SampleShape:
    """The shape of the sample at a place of the first epoch.

    Raises:
        ValueError: naming the record, if it makes no conversation that the processor takes.
    """
    from data_pipelines.lengths import Wording, sample_length
    from osprey_tp.training.estimation import SampleShape

    folder, record, seen = dataset.record(place)
    entry = dataset.mixture.folders[dataset.folders.index(folder)]
    limits = [limit for limit in (entry.max_regions, settings.max_regions) if limit is not None]
    wording = Wording(entry.prompt_style or settings.prompt_style, seen, min(limits, default=None))
    try:
        counts = sample_length(record, processor, wording)
    except ValueError as error:
        raise ValueError(f"{error} {of_record(record.id)}") from error
    tiling = processor.image_processor.tiling
    grid = tiling.choose_grid(record.height, record.width) if record.has_image else None
    return SampleShape(grid, counts.regions // processor.tokens_per_region, counts.total)


def table(settings: RunSettings, result: RunEstimate, data: Data, rate: float) -> str:
    """The estimate for people, in 100 columns."""
    stage = settings.resolved_stage
    blocks = (
        [f"stage {stage.number}, {stage.title}"],
        _parameters(result),
        _tokens(result, data),
        _steps(settings, result),
        _flops(result, rate),
        _memory(settings, result),
    )
    return "\n\n".join("\n".join(block) for block in blocks)


def _parameters(result: RunEstimate) -> Iterator[str]:
    from osprey_tp.training.stages import format_table

    yield format_table(result.parts)
    share = 100 * result.size.trainable / result.size.parameters
    yield f"{'all':<16}{result.size.parameters:>16,}  {result.size.trainable:,} train ({share:.1f}%)"


def _tokens(result: RunEstimate, data: Data) -> Iterator[str]:
    yield f"{'tokens of a sample':<24}{'mean':>9}{'median':>9}{'p95':>9}{'max':>9}   {data.origin}"
    for name, spread in (("all", result.tokens), ("of the picture", result.visual_tokens)):
        values = (spread.mean, spread.median, spread.p95, spread.maximum)
        yield f"{name:<24}" + "".join(f"{value:>9,.0f}" for value in values)
    if data.too_long:
        yield f"{data.too_long:,} more are longer than the model takes; they are left out"


def _steps(settings: RunSettings, result: RunEstimate) -> Iterator[str]:
    yield (
        f"{result.steps:,} steps of {result.samples_a_step:,} samples ({result.processes} processes x "
        f"{settings.batch_size} x {settings.gradient_accumulation} accumulated): {result.epochs:.2f} epochs of "
        f"{result.samples:,}"
    )


def _flops(result: RunEstimate, rate: float) -> Iterator[str]:
    flops, a_step = result.flops, result.samples_a_step
    yield f"{'TFLOP':<24}{'a step':>14}{'a sample':>12}"
    rows = (
        ("forward", flops.forward),
        ("backward", flops.backward),
        ("computed again", flops.recomputation),
        ("all", flops.total),
    )
    for name, value in rows:
        yield f"{name:<24}{_tera(value):>14}{_tera(value / a_step):>12}"
    seconds = result.seconds(rate)
    yield f"at {rate:.3g} FLOP/s on each of {result.processes}: {_duration(seconds / result.steps)} a step, " + (
        f"{_duration(seconds)} in all"
    )


def _memory(settings: RunSettings, result: RunEstimate) -> Iterator[str]:
    samples, tokens = result.longest_batch
    yield f"GiB on each of {result.processes} GPUs, for the longest batch ({samples} samples of {tokens:,} tokens)"
    yield f"{'':<12}{'':>10}{'':>11}{'':>11}  {'activations':>20}  {'all, with activations':>22}"
    yield (
        f"{'ZeRO':<12}{'weights':>10}{'gradients':>11}{'optimiser':>11}  {'checkpointed':>12}{'kept':>8}  "
        f"{'checkpointed':>14}{'kept':>8}{'host':>8}"
    )
    for row in result.memory:
        yield _memory_row(row)
    yield f"Of the activations, one float32 copy of the logits takes {gib(result.logits_bytes)}."
    chosen = "checkpointed" if settings.gradient_checkpointing else "kept"
    yield f"This run has activations {chosen}; DeepSpeed's file: {settings.deepspeed or 'none'}."
    yield "Without DeepSpeed, autocast keeps copies of float32 weights beside the activations."
    yield "Not counted: about 1 GiB for CUDA and its libraries, communication buckets, fragmentation."


def _memory_row(row: MemoryEstimate) -> str:
    states = row.states
    checkpointed, kept = states.total + row.checkpointed, states.total + row.activations
    return (
        f"{row.sharding:<12}{gib(states.weights):>10}{gib(states.gradients):>11}{gib(states.optimizer):>11}  "
        f"{gib(row.checkpointed):>12}{gib(row.activations):>8}  {gib(checkpointed):>14}{gib(kept):>8}"
        f"{gib(states.host) if states.host else '-':>8}"
    )


def gib(number: float) -> str:
    """Bytes in GiB, with two digits at least where they are few."""
    value = number / 2**30
    return f"{value:,.1f}" if value >= 0.1 or not value else f"{value:.2g}"


def _tera(number: float) -> str:
    value = number / 1e12
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} s"
