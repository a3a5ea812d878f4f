"""One training sample, part by part: a JPEG of 640 x 480 pixels with 20 regions, as in COCO, at the model's real size.

Every part stands beside its floor: what bare libraries take for the work that cannot be left out. Everything runs on
one thread, as in a loading process; a time is the best of several, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from data_pipelines.dataset import ConversationDataset
    from osprey_tp.processing import OspreyTPProcessor

HEIGHT, WIDTH, REGIONS = 480, 640, 20
BATCH = 16
JPEG_QUALITY = 92
NAMES = ("person", "dining table", "wine glass", "potted plant", "teddy bear", "traffic light", "dog", "bench")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=30, metavar="N", help="times that each part runs (%(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of every part, of its floor, and of a batch.

    Raises:
        ValueError: for less than one repeat.
    """
    import torch

    if options.repeats < 1:
        raise ValueError(f"--repeats must be at least 1, not {options.repeats}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _measured(Path(folder), options.repeats)
    finally:
        torch.set_num_threads(threads)


def table(result: Mapping[str, Any]) -> str:
    """The figures as aligned text."""
    picture = f"{result['height']} x {result['width']} pixels, {result['regions']} regions, {result['tokens']} tokens"
    lines = [f"one sample: {picture} (milliseconds, one thread)", f"{'part':<34}{'time':>8}{'floor':>8}{'ratio':>7}"]
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

    dataset = _dataset(folder)
    processor = _processor(dataset)
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
        "machine": platform.processor() or platform.machine(),
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


def _dataset(folder: Path) -> ConversationDataset:
    """One record, prepared, with its picture."""
    from data_pipelines.dataset import ConversationDataset
    from data_pipelines.records import Region, RegionRecord
    from data_pipelines.writing import RecordWriter
    from osprey_tp.masks import to_rle

    write_picture(folder / "picture.jpg")
    regions = tuple(
        Region(to_rle(mask, HEIGHT, WIDTH), NAMES[number % len(NAMES)]) for number, mask in enumerate(blobs())
    )
    with RecordWriter(folder / "records", source="coco", image_root=folder) as writer:
        writer.add(RegionRecord("coco:1", "coco", "picture.jpg", HEIGHT, WIDTH, regions))
    return ConversationDataset([folder / "records"])


def write_picture(path: Path, seed: int = 0) -> None:
    """A JPEG with as much detail as a photograph's: noise whose amplitude falls with its frequency."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None, :])
    frequency[0, 0] = frequency[0, 1]
    channels = [np.fft.irfft2(np.fft.rfft2(generator.normal(size=(HEIGHT, WIDTH))) / frequency) for _ in range(3)]
    brightness = channels[0] / channels[0].std()
    pixels = np.stack([0.9 * brightness + 0.3 * channel / channel.std() for channel in channels], axis=-1)
    Image.fromarray(np.clip(128 + 50 * pixels, 0, 255).astype(np.uint8)).save(path, quality=JPEG_QUALITY)


def blobs() -> list[np.ndarray]:
    """Wavy blobs of 1 to 20 percent of the picture, in boolean arrays (HEIGHT, WIDTH)."""
    import numpy as np

    generator = np.random.default_rng(1)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    masks = []
    for share in np.geomspace(0.01, 0.2, REGIONS):
        centre_y, centre_x = generator.uniform(0.2, 0.8, 2) * (HEIGHT, WIDTH)
        angle = np.arctan2(y - centre_y, x - centre_x)
        waves = sum(generator.uniform(0, 0.15) * np.sin(n * angle + generator.uniform(0, 6)) for n in range(2, 9))
        radius = np.sqrt(share * HEIGHT * WIDTH / np.pi) * (1 + waves)
        masks.append(np.hypot(y - centre_y, x - centre_x) < radius)
    return masks


def _processor(dataset: ConversationDataset) -> OspreyTPProcessor:
    """The processor of the 7B model in all but its vocabulary, which is learned from the sample."""
    from osprey_tp.image_processing import OspreyTPImageProcessor
    from osprey_tp.processing import OspreyTPProcessor, add_region_tokens, chat_template
    from scripts.tiny_tokenizer import train_tiny_tokenizer

    template = chat_template("vicuna_v1")
    contents = [message["content"] for message in dataset[0]["conversation"]]
    tokenizer = train_tiny_tokenizer([template, *(text for text in contents if isinstance(text, str))])
    add_region_tokens(tokenizer)
    return OspreyTPProcessor(OspreyTPImageProcessor(), tokenizer, template)
