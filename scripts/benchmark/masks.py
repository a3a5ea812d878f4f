"""Regions to the form that the model takes, against float masks at canvas size that are shrunk by interpolation.

20 regions of a picture of 640 x 480 pixels, given as COCO run lengths. The published form decodes each, makes it a
float picture of canvas size, and shrinks that to the cells; its bytes are those of the canvas-size masks, which is what
it hands to the model. Both run on one thread in one process, in turn. The floor is to read the run lengths and to write
the coverage at the rate of a copy.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from scripts.benchmark.coco_like import HEIGHT, REGIONS, WIDTH, blobs
from scripts.benchmark.measuring import (
    Floor,
    aligned,
    interleaved,
    machine,
    machine_line,
    machine_rates,
    one_thread,
    ratio,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="rounds, of which the median counts")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and bytes of every way, and the floor.

    Raises:
        ValueError: for less than one repeat, or where ours and the published form count different cells.
    """
    if options.repeats < 1:
        raise ValueError(f"--repeats must be at least 1, not {options.repeats}")
    with one_thread():
        return _measured(options.repeats)


def table(result: Mapping[str, Any]) -> str:
    """The figures as aligned text."""
    rows = [
        (
            row["name"],
            f"{row['milliseconds']:.2f}",
            f"{row['ratio']:.1f}",
            f"{row['of_floor']:.0f}",
            f"{row['bytes']:,}",
            f"{row['bytes_ratio']:.0f}",
        )
        for row in result["rows"]
    ]
    return "\n".join(
        [
            machine_line(result["machine"]),
            f"{result['regions']} regions of {result['height']} x {result['width']} pixels, given as run lengths of "
            f"{result['rle_bytes']:,} bytes, to {result['cells']:,} cells; one thread, processor time",
            aligned(("way", "ms", "ratio", "of floor", "bytes", "fewer"), rows),
            f"floor: {result['floor_milliseconds']:.3f} ms",
        ]
    )


def _measured(repeats: int) -> dict[str, Any]:
    import numpy as np

    from osprey_tp.coverage import area_coverage, published_coverage
    from osprey_tp.masks import to_rle, to_runs
    from osprey_tp.tiling import Tiling
    from scripts.benchmark.published_loader import published_masks
    from scripts.benchmark.published_procedure import shrunk_mask

    plan = Tiling().plan(HEIGHT, WIDTH)
    regions = [to_rle(mask, HEIGHT, WIDTH) for mask in blobs()]

    def shrink() -> Any:
        return [shrunk_mask(mask[None, None], plan) for mask in published_masks(regions, plan)]

    ways = {
        "published: canvas-size floats, shrunk": shrink,
        "ours, cells as published": lambda: published_coverage([to_runs(rle, HEIGHT, WIDTH) for rle in regions], plan),
        "ours, exact areas": lambda: area_coverage([to_runs(rle, HEIGHT, WIDTH) for rle in regions], plan),
    }
    made = {name: way() for name, way in ways.items()}  # warms up, too
    baseline, as_published, exact = ways
    side = plan.tiling.cells_per_side
    grid = np.stack([np.asarray(cells) for cells in made[baseline]]).reshape(REGIONS, plan.rows, side, plan.cols, side)
    if not np.array_equal(grid.swapaxes(2, 3).reshape(REGIONS, -1), made[as_published] > 0):
        raise ValueError("ours and the published form count different cells; nothing is compared")
    canvas_bytes = 4 * REGIONS * plan.canvas_height * plan.canvas_width
    sizes = {baseline: canvas_bytes, as_published: made[as_published].nbytes, exact: made[exact].nbytes}
    times = interleaved(ways, repeats)
    rates = machine_rates()
    rle_bytes = sum(len(rle["counts"]) for rle in regions)
    floor = Floor(flops=0, bytes=rle_bytes + sizes[exact]).seconds(rates)
    return {
        "machine": machine(rates=rates),
        "height": HEIGHT,
        "width": WIDTH,
        "regions": REGIONS,
        "cells": plan.num_cells,
        "rle_bytes": rle_bytes,
        "repeats": repeats,
        "floor_milliseconds": 1000 * floor,
        "rows": [
            {
                "name": name,
                "milliseconds": 1000 * times[name].processor_seconds,
                "ratio": ratio(times, baseline, name, "processor"),
                "of_floor": times[name].processor_seconds / floor,
                "bytes": sizes[name],
                "bytes_ratio": canvas_bytes / sizes[name],
            }
            for name in ways
        ],
    }
