"""The vision tower compiled (`--compile`) against the tower as it is, both in this process with the same weights.

The floor is what the tower's operations take at the rate of a large matrix product on this machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from scripts.benchmark.measuring import (
    Floor,
    Rates,
    aligned,
    count_flops,
    interleaved,
    machine,
    machine_line,
    machine_rates,
    ratio,
    timed,
)
from scripts.benchmark.medium_model import add_model_arguments, describer_of

if TYPE_CHECKING:
    import torch

    from osprey_tp.modeling import OspreyTPForConditionalGeneration

MOST_DIFFERENCE = 0.01
"""Between states of the two towers, as a share of the largest: beyond it, something else than rounding differs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--tiles", type=int, nargs="+", default=[1, 4, 10], metavar="N", help="at a time (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds, of which the median counts")
    add_model_arguments(parser)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds to compile, and of every number of tiles both ways.

    Raises:
        ValueError: for a number below 1, a device that is not there, or where the two towers differ.
    """
    from osprey_tp.compiled_tower import compile_tower

    if min(options.repeats, *options.tiles) < 1:
        raise ValueError("--repeats and --tiles must be at least 1")
    plain, compiled = (describer_of(options).model for _ in range(2))
    compiling, _ = timed(lambda: compile_tower(compiled), plain.device)
    rates = machine_rates(plain.device, plain.dtype)
    return {
        "machine": machine(plain.device, rates),
        "size": options.size,
        "dtype": options.dtype,
        "compiling": compiling,
        "rows": [_row(plain, compiled, tiles, options.repeats, rates) for tiles in options.tiles],
    }


def _row(
    plain: OspreyTPForConditionalGeneration,
    compiled: OspreyTPForConditionalGeneration,
    tiles: int,
    repeats: int,
    rates: Rates,
) -> dict[str, Any]:
    import torch

    side = plain.config.tiling.tile_size
    pixels = torch.randn(tiles, 3, side, side, device=plain.device, dtype=plain.dtype)
    works = {"as it is": partial(_cells, plain, pixels), "compiled": partial(_cells, compiled, pixels)}
    theirs, ours = (work().float() for work in works.values())
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    if difference > MOST_DIFFERENCE:
        raise ValueError(f"states of the two towers differ by {difference:.2g} of the largest; nothing is compared")
    times = interleaved(works, repeats, plain.device)
    return {
        "tiles": tiles,
        "seconds": {name: found.seconds for name, found in times.items()},
        "ratio": ratio(times, "as it is", "compiled"),
        "difference": difference,
        "floor": Floor(flops=count_flops(works["as it is"]), bytes=0).seconds(rates),
    }


def _cells(model: OspreyTPForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """What a picture of so many tiles in one row is read as."""
    from osprey_tp.encoded_tiles import EncodedTiles, read_tiles
    from osprey_tp.tiling import TilePlan

    tiles, side = range(len(pixels)), model.config.tiling.tile_size
    picture = EncodedTiles(model, TilePlan(model.config.tiling, side, side * len(tiles), 1, len(tiles)), pixels)
    read_tiles(model, [picture], [tiles])
    return picture.cells(tiles)


def table(result: Mapping[str, Any]) -> str:
    """The figures as aligned text."""
    rows = [
        (
            str(row["tiles"]),
            *(f"{1000 * seconds:,.1f}" for seconds in row["seconds"].values()),
            f"{row['ratio']:.2f}",
            f"{row['seconds']['compiled'] / row['floor']:.2f}",
            f"{row['difference']:.1g}",
        )
        for row in result["rows"]
    ]
    return "\n".join(
        [
            machine_line(result["machine"]),
            f"tower and projector, {result['size']} model, {result['dtype']}; {result['compiling']:.1f} s to compile",
            aligned(("tiles", "ms as it is", "ms compiled", "ratio", "of floor", "difference"), rows),
        ]
    )
