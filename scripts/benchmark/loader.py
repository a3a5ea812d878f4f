"""Training samples a second, loaded and collated, against the published loader.

Both load the same COCO-like records (640 x 480 pixels, 20 regions) on one thread in one process, in turn, and end with
a batch in memory. `published` is compared in what it holds: the same tiles, the same cells below every mask, the same
taught words. The floor is what bare libraries take to decode and to resize the picture, plus the bytes of the batch at
the rate of a copy. `sample` shows the parts of one sample.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.benchmark.coco_like import HEIGHT, REGIONS, WIDTH, prepared_records, real_processor
from scripts.benchmark.measuring import aligned, interleaved, machine, machine_line, machine_rates, one_thread, ratio

if TYPE_CHECKING:
    from osprey_tp.processing import OspreyTPProcessor

PUBLISHED_CHOICES = {"resize_mode": "published", "thumbnail_source": "canvas", "region_pooling": "published"}
FLOOR_REPEATS = 5
PIXEL_TOLERANCE = 1e-5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--records", type=int, default=8, metavar="N", help="records of a batch (%(default)s)")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="rounds, of which the median counts")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Samples a second of the loaders, and the floor.

    Raises:
        ValueError: for a number below 1, or where the loaders differ in what they hold.
    """
    if min(options.records, options.repeats) < 1:
        raise ValueError("--records and --repeats must be at least 1")
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        return _measured(Path(folder), options.records, options.repeats)


def table(result: Mapping[str, Any]) -> str:
    """The figures as aligned text."""
    shape = f"{result['height']} x {result['width']} pixels, {result['regions']} regions"
    rows = [
        (
            row["name"],
            f"{row['milliseconds']:.1f}",
            f"{row['samples_per_second']:.1f}",
            f"{row['ratio']:.1f}",
            f"{row['of_floor']:.1f}",
            f"{row['mib']:.1f}",
        )
        for row in result["rows"]
    ]
    return "\n".join(
        [
            machine_line(result["machine"]),
            f"batches of {result['records']} samples: {shape}; one thread, processor time",
            aligned(("loader", "ms a sample", "samples/s", "ratio", "of floor", "MiB a sample"), rows),
            f"floor: {result['floor_milliseconds']:.1f} ms a sample",
        ]
    )


def _measured(folder: Path, count: int, repeats: int) -> dict[str, Any]:
    from osprey_tp.training.collator import ConversationCollator
    from scripts.benchmark.published_loader import published_batch

    dataset = prepared_records(folder, count)
    recommended = real_processor(dataset)
    published = real_processor(dataset, **PUBLISHED_CHOICES)
    loaders = {
        "published": lambda: published_batch(published, [dataset[place] for place in range(count)]),
        "ours, as published": lambda: ConversationCollator(published)([dataset[place] for place in range(count)]),
        "ours, recommended": lambda: ConversationCollator(recommended)([dataset[place] for place in range(count)]),
    }
    batches = {name: load() for name, load in loaders.items()}  # warms up, too
    _require_same(published, batches["published"], batches["ours, as published"])
    sizes = {name: _bytes(batch) for name, batch in batches.items()}
    del batches
    times = interleaved(loaders, repeats)
    rates = machine_rates()
    floor = _library_seconds(folder, recommended) + sizes["ours, recommended"] / count / rates.bytes
    rows = [
        {
            "name": name,
            "milliseconds": 1000 * times[name].processor_seconds / count,
            "samples_per_second": count / times[name].processor_seconds,
            "ratio": ratio(times, "published", name, "processor"),
            "of_floor": times[name].processor_seconds / count / floor,
            "mib": sizes[name] / count / (1 << 20),
        }
        for name in loaders
    ]
    return {
        "machine": machine(rates=rates),
        "height": HEIGHT,
        "width": WIDTH,
        "regions": REGIONS,
        "records": count,
        "repeats": repeats,
        "floor_milliseconds": 1000 * floor,
        "rows": rows,
    }


def _library_seconds(folder: Path, processor: OspreyTPProcessor) -> float:
    """Seconds that bare libraries take, at best, to decode a picture and to resize it to canvas and thumbnail."""
    from PIL import Image
    from torchvision.transforms.v2 import functional as tvF

    from scripts.benchmark.measuring import timed

    plan = processor.image_processor.tiling.plan(HEIGHT, WIDTH)
    sizes = ((plan.resized_height, plan.resized_width), (plan.thumbnail_height, plan.thumbnail_width))

    def work() -> None:
        pixels = tvF.pil_to_tensor(Image.open(folder / "0.jpg"))
        for size in sizes:
            tvF.resize(pixels, list(size), interpolation=tvF.InterpolationMode.BICUBIC, antialias=True)

    return min(timed(work)[1] for _ in range(FLOOR_REPEATS))


def _require_same(processor: OspreyTPProcessor, expected: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Compare what the two loaders made of the same records.

    Raises:
        ValueError: naming what differs.
    """
    import torch

    from scripts.benchmark.published_procedure import shrunk_mask

    tiling = processor.image_processor.tiling
    plan, side = tiling.plan(HEIGHT, WIDTH), tiling.cells_per_side
    difference = (expected["pixel_values"] - ours["pixel_values"]).abs().max().item()
    if difference > PIXEL_TOLERANCE:
        raise ValueError(f"the loaders' tiles differ by up to {difference:g}; nothing is compared")
    shrunk = torch.stack([shrunk_mask(mask[None, None], plan) for masks in expected["masks"] for mask in masks])
    cells = shrunk.reshape(-1, plan.rows, side, plan.cols, side).transpose(2, 3).flatten(1)
    if not torch.equal(cells, ours["region_coverage"] > 0):
        raise ValueError("the loaders' masks lie over different cells; nothing is compared")
    taught = [
        [processor.tokenizer.decode(row[row >= 0], skip_special_tokens=True).split() for row in batch["labels"]]
        for batch in (expected, ours)
    ]
    if taught[0] != taught[1]:
        raise ValueError("the loaders teach different words; nothing is compared")


def _bytes(batch: Mapping[str, Any]) -> int:
    """Of all tensors of a batch."""
    import torch

    tensors = [item for value in batch.values() for item in (value if isinstance(value, list) else [value])]
    return sum(item.numel() * item.element_size() for item in tensors if isinstance(item, torch.Tensor))
