"""Answers about K regions of one picture, against the published procedure with the same weights.

    python -m scripts.benchmark regions                                                    # medium model, two cores
    python -m scripts.benchmark regions --size vicuna-7b --device cuda --dtype bfloat16 --regions 1 8 32 128

Both run in one process, in turn, and must give the same text (in float32; in half precision their share that agrees is
told). Memory is the peak of a process of its own that answers about K regions once, on a GPU of this process, weights
included. The floor is what our way takes at the rates of a large matrix product and a large copy on this machine: its
floating-point operations, and its bytes: all weights once for the picture, those of the language model once for the
questions and once for every further token.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
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
    peak_in_own_process,
    peak_mib,
    ratio,
    timed,
)
from scripts.benchmark.medium_model import add_model_arguments, describer_of

if TYPE_CHECKING:
    import numpy as np

    from osprey_tp.describer import RegionDescriber

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
    add_model_arguments(parser)
    parser.add_argument("--no-memory", action="store_true", help="leave the processes that measure memory out")
    parser.add_argument("--peak-of", type=int, metavar="K", help=argparse.SUPPRESS)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both ways, memory, and the floor, for every K.

    Raises:
        ValueError: for a number below 1, a device that is not there, or where the two ways differ in a text.
    """
    if min([*options.regions, options.repeats]) < 1:
        raise ValueError("--regions and --repeats must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        picture = write_random_picture(Path(folder) / "picture.png")
        if options.peak_of is not None:
            _answers(describer_of(options), picture, random_masks(options.peak_of))
            return {"peak_mib": peak_mib()}
        return _measured(picture, options)


def table(result: Mapping[str, Any]) -> str:
    """The figures as aligned text."""
    if "peak_mib" in result:
        return f"{result['peak_mib']:.1f}"
    rows = [
        (
            str(row["regions"]),
            f"{row['published_seconds']:.2f} s",
            f"{row['seconds']:.2f} s",
            f"{row['ratio']:.1f}",
            f"{row['regions'] / row['seconds']:.1f}",
            f"{row['floor_seconds']:.2f} s",
            f"{row['seconds'] / row['floor_seconds']:.1f}",
            "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
        )
        for row in result["rows"]
    ]
    headings = ("regions", "published", "ours", "ratio", "regions/s", "floor", "of floor", "peak MiB")
    return "\n".join(
        [
            machine_line(result["machine"]),
            f"{result['size']} model in {result['dtype']}: {result['prefix_tokens']} tokens of picture, "
            f"{result['new_tokens']} new ones a region; same text: {result['same_text']:.0%}",
            aligned(headings, rows),
            f"first token for a second region on an open picture: {1000 * result['second_region_seconds']:.0f} ms",
        ]
    )


def _measured(picture: Path, options: argparse.Namespace) -> dict[str, Any]:
    import torch

    describer = describer_of(options)
    device, dtype = describer.model.device, describer.model.dtype
    rates = machine_rates(device, dtype)
    _answers(describer, picture, random_masks(1))  # warms up
    rows = [_row(describer, picture, count, options, rates) for count in options.regions]
    session = describer.open(picture)
    first, second = random_masks(2)
    session.ask([first], max_new_tokens=1)
    seconds = [timed(lambda: session.ask([second], max_new_tokens=1), device)[0] for _ in range(options.repeats)]
    return {
        "machine": machine(device, rates),
        "size": options.size,
        "dtype": str(dtype).removeprefix("torch."),
        "prefix_tokens": describer.processor.image_processor.tiling.plan(HEIGHT, WIDTH).num_visual_tokens,
        "new_tokens": NEW_TOKENS,
        "threads": torch.get_num_threads(),
        "same_text": min(row["same_text"] for row in rows),
        "second_region_seconds": statistics.median(seconds),
        "rows": rows,
    }


def _row(
    describer: RegionDescriber, picture: Path, count: int, options: argparse.Namespace, rates: Rates
) -> dict[str, Any]:
    import torch

    from osprey_tp.prompts import CATEGORY_QUESTION
    from scripts.benchmark.published_procedure import published_answers

    device, masks = describer.model.device, random_masks(count)
    few, answers = masks[:PUBLISHED_REGIONS], dict[str, list[str]]()

    def ours() -> None:
        answers["ours"] = _answers(describer, picture, masks)

    def published() -> None:
        answers["published"] = published_answers(describer, picture, few, CATEGORY_QUESTION, NEW_TOKENS)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        ours()
        peak: float | None = peak_mib(device)
    else:
        peak = None if options.no_memory else _peak_in_own_process(options, count)
    times = interleaved({"ours": ours, "published": published}, options.repeats, device)
    same = [one == other for one, other in zip(answers["ours"], answers["published"], strict=False)]
    if not all(same) and describer.model.dtype == torch.float32:
        raise ValueError(f"the answers about {len(few)} of {count} regions differ: {answers}")
    floor = Floor(count_flops(ours), _moved_bytes(describer))
    return {
        "regions": count,
        "published_seconds": times["published"].seconds / len(few) * count,
        "seconds": times["ours"].seconds,
        "ratio": ratio(times, "published", "ours") / len(few) * count,
        "processor_ratio": ratio(times, "published", "ours", "processor") / len(few) * count,
        "same_text": sum(same) / len(same),
        "floor_flops": floor.flops,
        "floor_bytes": floor.bytes,
        "floor_seconds": floor.seconds(rates),
        "peak_mib": peak,
    }


def _moved_bytes(describer: RegionDescriber) -> float:
    """Bytes of weights that must be read: all for the picture, the decoder's for the questions and every token."""

    def size(module: Any) -> int:
        return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())

    model = describer.model
    decoder = size(model.model.language_model) - size(model.get_input_embeddings()) + size(model.lm_head)
    return float(size(model) + NEW_TOKENS * decoder)


def _answers(describer: RegionDescriber, picture: Path, masks: list[np.ndarray]) -> list[str]:
    return describer.open(picture).ask(masks, max_new_tokens=NEW_TOKENS, batch_size=len(masks))


def _peak_in_own_process(options: argparse.Namespace, count: int) -> float:
    return peak_in_own_process(["regions", "--size", options.size, "--dtype", options.dtype, "--peak-of", str(count)])


def write_random_picture(path: Path) -> Path:
    """A file of random pixels, HEIGHT x WIDTH."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def random_masks(count: int) -> list[np.ndarray]:
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
