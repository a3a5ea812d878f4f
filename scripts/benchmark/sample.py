"""One training sample, part by part: a JPEG of 640 x 480 pixels with 20 regions, as in COCO, at the model's real size.

Every part stands beside its floor: what bare libraries take for the work that cannot be left out. Everything runs on
one thread, as in a loading process; a time is the best of several, which other work on the machine disturbs least.
The benchmark `loader` compares whole samples with the published loader; this one tells where their time goes.
"""

from __future__ import annotations

import argparse
import tempfile
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.benchmark.coco_like import HEIGHT, REGIONS, WIDTH, prepared_records, real_processor
from scripts.benchmark.measuring import machine, machine_line, one_thread

if TYPE_CHECKING:
    from data_pipelines.dataset import ConversationDataset
    from osprey_tp.processing import OspreyTPProcessor

BATCH = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=30, metavar="N", help="times that each part runs (%(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of every part, of its floor, and of a batch.

    Raises:
        ValueError: for less than one repeat.
    """
    if options.repeats < 1:
        raise ValueError(f"--repeats must be at least 1, not {options.repeats}")
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        return _measured(Path(folder), options.repeats)


def table(result: Mapping[str, Any]) -> str:
    """The figures as aligned text."""
    picture = f"{result['height']} x {result['width']} pixels, {result['regions']} regions, {result['tokens']} tokens"
    lines = [machine_line(result["machine"]), f"one sample: {picture} (milliseconds, one thread)"]
    lines += [f"{'part':<34}{'time':>8}{'floor':>8}{'ratio':>7}"]
    for row in (*result["parts"], result["sample"]):
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.1f}"
        lines.append(f"{row['name']:<34}{_number(row['ms'])}{_number(row['floor_ms'])}{ratio:>7}  {row['floor']}")
    batch = result["batch"]
    lines.append(f"{batch['name']:<34}{_number(batch['ms'])}")
    return "\n".join(lines)


def _number(milliseconds: float) -> str:
    return f"{milliseconds:>8.2f}"


@dataclass(frozen=True)
class _Part:
    """Work, the same work by bare libraries, and what those do."""

    name: str
    work: Callable[[], Any]
    floor: str = "nothing of the kind"
    floor_work: Callable[[], Any] | None = None

    def measured(self, repeats: int) -> dict[str, Any]:
        floor = 0.0 if self.floor_work is None else _milliseconds(self.floor_work, repeats)
        return _row(self.name, _milliseconds(self.work, repeats), self.floor, floor)


def _row(name: str, milliseconds: float, floor: str, floor_milliseconds: float) -> dict[str, Any]:
    ratio = milliseconds / floor_milliseconds if floor_milliseconds else None
    return {"name": name, "ms": milliseconds, "floor": floor, "floor_ms": floor_milliseconds, "ratio": ratio}


def _milliseconds(work: Callable[[], Any], repeats: int) -> float:
    """Best time of the work, after one run that warms up."""
    work()
    return 1000 * min(timeit.repeat(work, number=1, repeat=repeats))


def _measured(folder: Path, repeats: int) -> dict[str, Any]:
    from osprey_tp.training.collator import ConversationCollator

    dataset = prepared_records(folder, 1)
    processor = real_processor(dataset)
    collator = ConversationCollator(processor)
    parts = [part.measured(repeats) for part in _parts(dataset, processor)]
    whole = _milliseconds(lambda: collator([dataset[0]]), repeats)
    samples = [dataset[0]] * BATCH
    batch = {"name": f"collation of {BATCH} such samples", "samples": BATCH}
    return {
        "height": HEIGHT,
        "width": WIDTH,
        "regions": REGIONS,
        "tokens": int(collator([dataset[0]])["attention_mask"].sum()),
        "machine": machine(),
        "parts": parts,
        "sample": _row("the whole sample", whole, "the sum of the floors", sum(part["floor_ms"] for part in parts)),
        "batch": {**batch, "ms": _milliseconds(lambda: collator(samples), max(1, repeats // 5))},
    }


def _parts(dataset: ConversationDataset, processor: OspreyTPProcessor) -> list[_Part]:
    import numpy as np
    import torch
    from PIL import Image
    from pycocotools import mask as coco_mask
    from torchvision.transforms.v2 import functional as tvF

    from data_pipelines.conversations import conversation_of
    from osprey_tp.images import load_image

    folder, record, _ = dataset.record(0)
    path = folder.image_path(record)
    picture = load_image(path)
    plan = processor.image_processor.tiling.plan(HEIGHT, WIDTH)
    regions = [region.segmentation for region in record.regions]
    encoded = [{"size": rle["size"], "counts": rle["counts"].encode()} for rle in regions]
    covered = [np.ones((HEIGHT, WIDTH), bool)] * REGIONS
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).contiguous()
    size = [plan.num_tiles * plan.tiling.tile_size, plan.tiling.tile_size]
    without_text = processor.image_processor.cover_regions
    conversation = conversation_of(record, plan)
    text = processor.tokenizer.decode(processor.prepare([conversation])["input_ids"][0])

    def text_alone() -> Any:
        """Regions whose coverage is known cost nothing, so that the text is what remains."""
        processor.image_processor.cover_regions = lambda *_: coverage
        try:
            return processor.prepare([conversation], return_labels=True)
        finally:
            processor.image_processor.cover_regions = without_text

    coverage = without_text([covered], [plan])
    return [
        _Part("read the record", lambda: folder[0], "the row from Arrow", lambda: folder._table[0]),
        _Part("decode the JPEG", lambda: load_image(path), "libjpeg by Pillow", lambda: Image.open(path).load()),
        _Part(
            "resize, tile, normalise",
            lambda: processor.image_processor.preprocess([picture]),
            "one antialiased resize to as many pixels",
            lambda: tvF.resize(pixels, size, interpolation=tvF.InterpolationMode.BICUBIC, antialias=True),
        ),
        _Part(
            "run lengths to coverage of cells",
            lambda: without_text([regions], [plan]),
            "pycocotools decodes the masks",
            lambda: coco_mask.decode(encoded),
        ),
        _Part("prompts of the record", lambda: conversation_of(record, plan)),
        _Part("tokens and labels", text_alone, "the tokenizer alone", lambda: processor.tokenizer(text)),
    ]
