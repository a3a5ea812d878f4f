"""Answers about K regions of one picture, against the published procedure with the same weights.

Both run in one process, in turn, and must give the same text. Memory is the peak of a process of its own that answers
about K regions once. The floor is the time that the floating-point operations of our way take at the rate of a large
matrix product on this machine.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from osprey_tp.sessions import RegionDescriber

HEIGHT, WIDTH = 480, 720
NEW_TOKENS = 10
PUBLISHED_REGIONS = 4
"""The published way takes as long for each region; so many are timed, and the time is that of one times K."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument(
        "--regions", type=int, nargs="+", default=[1, 4, 16, 64], metavar="K", help="regions (%(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs, of which the median counts")
    parser.add_argument("--no-memory", action="store_true", help="leave the processes that measure memory out")
    parser.add_argument("--peak-of", type=int, metavar="K", help=argparse.SUPPRESS)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both ways, memory, and the floor, for every K.

    Raises:
        ValueError: for a number below 1, or where the two ways differ in a text.
    """
    if min([*options.regions, options.repeats]) < 1:
        raise ValueError("--regions and --repeats must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        picture = _write_picture(Path(folder) / "picture.png")
        if options.peak_of is not None:
            return {"peak_mib": _peak_after(picture, options.peak_of)}
        return _measured(picture, options)


def table(result: Mapping[str, Any]) -> str:
    """The figures as aligned text."""
    if "peak_mib" in result:
        return f"{result['peak_mib']:.1f}"
    lines = [
        f"{result['prefix_tokens']} tokens of picture, {result['new_tokens']} new ones a region, "
        f"{result['threads']} threads; same text: yes",
        f"{'regions':>8}{'published':>12}{'ours':>10}{'ratio':>8}{'floor':>10}{'of floor':>10}{'peak MiB':>10}",
    ]
    for row in result["rows"]:
        peak = "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        lines.append(
            f"{row['regions']:>8}{row['published_seconds']:>10.2f} s{row['seconds']:>8.2f} s{row['ratio']:>8.1f}"
            f"{row['floor_seconds']:>8.2f} s{row['seconds'] / row['floor_seconds']:>10.1f}{peak:>10}"
        )
    return "\n".join(lines)


def _measured(picture: Path, options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from scripts.benchmark.medium_model import medium_describer

    describer = medium_describer()
    rate = _matrix_product_rate()
    rows = [_row(describer, picture, count, options, rate) for count in options.regions]
    tiling = describer.processor.image_processor.tiling
    return {
        "prefix_tokens": tiling.plan(HEIGHT, WIDTH).num_visual_tokens,
        "new_tokens": NEW_TOKENS,
        "threads": torch.get_num_threads(),
        "rate_gflops": rate / 1e9,
        "rows": rows,
    }


def _row(
    describer: RegionDescriber, picture: Path, count: int, options: argparse.Namespace, rate: float
) -> dict[str, Any]:
    from osprey_tp.prompts import CATEGORY_QUESTION
    from scripts.benchmark.published_procedure import published_answers

    masks = _masks(count)
    few = masks[:PUBLISHED_REGIONS]
    _answers(describer, picture, masks[:1])  # warms up
    ours, published = [], []
    for _ in range(options.repeats):
        seconds, answers = _timed(lambda: _answers(describer, picture, masks))
        ours.append(seconds)
        seconds, expected = _timed(lambda: published_answers(describer, picture, few, CATEGORY_QUESTION, NEW_TOKENS))
        published.append(seconds / len(few) * count)
        if answers[: len(few)] != expected:
            raise ValueError(f"the answers about {len(few)} of {count} regions differ: {answers[:4]}, {expected}")
    seconds, published_seconds = statistics.median(ours), statistics.median(published)
    return {
        "regions": count,
        "published_seconds": published_seconds,
        "seconds": seconds,
        "ratio": published_seconds / seconds,
        "floor_seconds": _operations(lambda: _answers(describer, picture, masks)) / rate,
        "peak_mib": None if options.no_memory else _peak_in_a_process_of_its_own(count),
    }


def _answers(describer: RegionDescriber, picture: Path, masks: list[np.ndarray]) -> list[str]:
    return describer.open(picture).ask(masks, max_new_tokens=NEW_TOKENS, batch_size=len(masks))


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _operations(work: Callable[[], Any]) -> float:
    """Floating-point operations of all matrix products in `work`."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def _matrix_product_rate(side: int = 2048, repeats: int = 5) -> float:
    """Floating-point operations a second of a large float32 product."""
    import torch

    left, right = torch.randn(side, side), torch.randn(side, side)
    left @ right
    return 2 * side**3 / min(_timed(lambda: left @ right)[0] for _ in range(repeats))


def _peak_in_a_process_of_its_own(count: int) -> float:
    command = [sys.executable, "-m", "scripts.benchmark", "regions", "--peak-of", str(count)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _peak_after(picture: Path, count: int) -> float:
    """MiB that this process holds at most after it has answered about so many regions."""
    from scripts.benchmark.medium_model import medium_describer

    _answers(medium_describer(), picture, _masks(count))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _write_picture(path: Path) -> Path:
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def _masks(count: int) -> list[np.ndarray]:
    """Boxes of 60 to 300 pixels a side as boolean arrays (HEIGHT, WIDTH)."""
    import numpy as np

    generator = np.random.default_rng(1)
    masks = []
    for _ in range(count):
        height, width = generator.integers(60, 300, 2)
        top, left = generator.integers(0, HEIGHT - height), generator.integers(0, WIDTH - width)
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        mask[top : top + height, left : left + width] = True
        masks.append(mask)
    return masks
