"""What benchmarks load: records as COCO has them, a JPEG of 640 x 480 pixels with 20 regions each, and a processor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from data_pipelines.dataset import ConversationDataset
    from osprey_tp.processing import OspreyTPProcessor

HEIGHT, WIDTH, REGIONS = 480, 640, 20
JPEG_QUALITY = 92
NAMES = ("person", "dining table", "wine glass", "potted plant", "teddy bear", "traffic light", "dog", "bench")


def prepared_records(folder: Path, count: int) -> ConversationDataset:
    """So many records, prepared, each with a picture of its own and the same regions."""
    from data_pipelines.dataset import ConversationDataset
    from data_pipelines.records import Region, RegionRecord
    from data_pipelines.writing import RecordWriter
    from osprey_tp.masks import to_rle

    regions = tuple(
        Region(to_rle(mask, HEIGHT, WIDTH), NAMES[number % len(NAMES)]) for number, mask in enumerate(blobs())
    )
    with RecordWriter(folder / "records", source="coco", image_root=folder) as writer:
        for number in range(count):
            write_picture(folder / f"{number}.jpg", seed=number)
            writer.add(RegionRecord(f"coco:{number}", "coco", f"{number}.jpg", HEIGHT, WIDTH, regions))
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


def real_processor(dataset: ConversationDataset, **choices: Any) -> OspreyTPProcessor:
    """The processor of the 7B model in all but its vocabulary, which is learned from the first sample.

    Args:
        dataset: Conversations.
        choices: Fields of the image processor.
    """
    from osprey_tp.image_processing import OspreyTPImageProcessor
    from osprey_tp.processing import OspreyTPProcessor, add_region_tokens, chat_template
    from scripts.tiny_tokenizer import train_tiny_tokenizer

    template = chat_template("vicuna_v1")
    contents = [message["content"] for message in dataset[0]["conversation"]]
    tokenizer = train_tiny_tokenizer([template, *(text for text in contents if isinstance(text, str))])
    add_region_tokens(tokenizer)
    return OspreyTPProcessor(OspreyTPImageProcessor(**choices), tokenizer, template)
