"""What a user of the app waits for: the second click on a picture, and everything in it.

A click is measured from the picture to its mask, on one thread: the threads of a click's many small steps wait for each
other, which on a busy machine takes longer than the steps. A first click embeds the picture, later ones find it
embedded, and the median of several counts. For GrabCut, which has no embedding, both are alike. Everything is measured
as one batched pass over so many regions of an open picture, against asking about them one by one in the same session.
Single questions take alike, so that a few of them are timed, and the time of all is K times that of one; the texts
about these must be the same in both ways. What is compared runs in turn, and medians count.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from segment_anything.modeling import Sam

    from osprey_tp.describer import RegionDescriber
    from osprey_tp.segmenters import Segmenter
    from osprey_tp.sessions import ImageSession

HEIGHT, WIDTH = 1200, 1600
FIRST_CLICK = (WIDTH / 2, HEIGHT / 2)
SECOND_CLICKS = tuple((WIDTH * x / 4, HEIGHT * y / 3) for y in (1, 2) for x in (1, 2, 3))
NEW_TOKENS = 10
PARTS = ("clicks", "everything")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--regions", type=int, default=64, metavar="K", help="regions of everything (%(default)s)")
    parser.add_argument(
        "--singles", type=int, default=8, metavar="N", help="regions asked about one by one, K at most (%(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="runs, of which the median counts (%(default)s)"
    )
    parser.add_argument("--only", choices=PARTS, help="measure one of the two")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of first and second clicks by segmenter, and of everything against single questions by model.

    Raises:
        ValueError: for a number below 1, or where the two ways of asking differ in a text.
    """
    if min(options.regions, options.singles, options.repeats) < 1:
        raise ValueError("--regions, --singles and --repeats must be at least 1")
    from scripts.benchmark.measuring import machine, one_thread

    result: dict[str, Any] = {"machine": machine(), "picture": [HEIGHT, WIDTH], "new_tokens": NEW_TOKENS}
    if options.only != "everything":
        with one_thread():
            result["clicks"] = [_click_row(name, segmenter, options.repeats) for name, segmenter in _segmenters()]
    if options.only != "clicks":
        result["everything"] = [_everything_row(name, describer, options) for name, describer in _describers()]
    return result


def table(result: Mapping[str, Any]) -> str:
    """The figures as aligned text."""
    from scripts.benchmark.measuring import aligned, machine_line

    height, width = result["picture"]
    parts = [f"picture of {width}x{height} pixels; {machine_line(result['machine'])}"]
    if "clicks" in result:
        rows = [
            (
                row["segmenter"],
                *(f"{row[name] * 1000:.0f} ms" for name in ("first_seconds", "second_seconds")),
                f"{row['ratio']:.1f}",
                f"{row['processor_ratio']:.1f}",
            )
            for row in result["clicks"]
        ]
        headings = ("segmenter, one thread", "first click", "second click", "ratio", "of processor time")
        parts.append(aligned(headings, rows))
    if "everything" in result:
        rows = [
            (
                row["model"],
                str(row["regions"]),
                *(f"{row[name] * 1000:.0f} ms" for name in ("single_seconds", "together_seconds")),
                f"{row['ratio']:.1f}",
                f"{row['processor_ratio']:.1f}",
            )
            for row in result["everything"]
        ]
        columns = ("model", "regions", "one by one", "together", "ratio", "of processor time")
        timed = result["everything"][0]["timed_singles"]
        parts.append(aligned(columns, rows))
        parts[-1] += f"\n{result['new_tokens']} new tokens a region; one by one: from {timed} of them; same text: yes"
    return "\n\n".join(parts)


def _click_row(name: str, segmenter: Segmenter, repeats: int) -> dict[str, Any]:
    from scripts.benchmark.measuring import Times, interleaved, ratio

    image = _picture()
    opened = [_clicked(segmenter, image)]
    opened[-1].segment([SECOND_CLICKS[0]], [True])  # both are warm now

    def click(place: tuple[float, float]) -> None:
        opened[-1].segment([place], [True])

    def first() -> None:
        opened[:] = [_clicked(segmenter, image)]

    later = {f"second at {place}": partial(click, place) for place in SECOND_CLICKS}
    times = interleaved({"first": first} | later, repeats)
    times["second"] = Times.median_of([times[name] for name in later])
    return {
        "segmenter": name,
        "first_seconds": times["first"].seconds,
        "second_seconds": times["second"].seconds,
        "ratio": ratio(times, "first", "second"),
        "processor_ratio": ratio(times, "first", "second", "processor"),
    }


def _clicked(segmenter: Segmenter, image: Image.Image) -> Any:
    """The open picture after a first click."""
    opened = segmenter.open(image)
    opened.segment([FIRST_CLICK], [True])
    return opened


def _everything_row(name: str, describer: RegionDescriber, options: argparse.Namespace) -> dict[str, Any]:
    from scripts.benchmark.measuring import interleaved, ratio

    session = describer.open(_picture())
    masks = _masks(options.regions)
    few = masks[: options.singles]
    share = len(masks) / len(few)
    texts: dict[str, list[str]] = {}

    def one_by_one() -> None:
        texts["single"] = [_together(session, [mask])[0] for mask in few]

    def together() -> None:
        texts["together"] = _together(session, masks)

    _together(session, masks[:2])  # warms up
    times = interleaved({"single": one_by_one, "together": together}, options.repeats)
    if differing := sum(one != other for one, other in zip(texts["single"], texts["together"], strict=False)):
        raise ValueError(f"{differing} of {len(few)} answers of the {name} model differ from single questions")
    return {
        "model": name,
        "regions": len(masks),
        "timed_singles": len(few),
        "single_seconds": times["single"].seconds * share,
        "together_seconds": times["together"].seconds,
        "ratio": ratio(times, "single", "together") * share,
        "processor_ratio": ratio(times, "single", "together", "processor") * share,
    }


def _together(session: ImageSession, masks: list[np.ndarray]) -> list[str]:
    return session.ask(masks, max_new_tokens=NEW_TOKENS, batch_size=len(masks))


def _picture() -> Image.Image:
    """Discs of many colours on noise: something for every segmenter to find."""
    import numpy as np
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(40):
        x, y, radius = (int(place) for place in rng.integers((0, 0, 30), (WIDTH, HEIGHT, 120)))
        colour = tuple(int(part) for part in rng.integers(0, 255, 3))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return image


def _masks(count: int) -> list[np.ndarray]:
    """Boxes as boolean arrays (HEIGHT, WIDTH)."""
    import numpy as np

    rng = np.random.default_rng(1)
    masks = []
    for _ in range(count):
        height, width = rng.integers(100, 500, 2)
        top, left = rng.integers(0, HEIGHT - height), rng.integers(0, WIDTH - width)
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        mask[top : top + height, left : left + width] = True
        masks.append(mask)
    return masks


def _segmenters() -> list[tuple[str, Segmenter]]:
    from osprey_tp.sam import SamSegmenter
    from osprey_tp.segmenters import load_segmenter

    return [
        ("tiny SAM", SamSegmenter(_random_sam(side=256, width=64, depth=3, channels=32))),
        ("medium SAM", SamSegmenter(_random_sam(side=512, width=384, depth=12, channels=256))),
        ("GrabCut (no embedding)", load_segmenter("grabcut")),
    ]


def _random_sam(side: int, width: int, depth: int, channels: int) -> Sam:
    """Segment Anything for squares of so many pixels, with an image encoder so wide and deep, random weights.

    With 256 channels the mask decoder has the published size, and with 12 layers the proportions are those of ViT-B:
    the encoder takes about a hundred times the operations of the decoder.
    """
    from functools import partial

    import torch
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    torch.manual_seed(0)
    grid = side // 16
    encoder = ImageEncoderViT(
        img_size=side,
        patch_size=16,
        embed_dim=width,
        depth=depth,
        num_heads=width // 32,
        out_chans=channels,
        use_rel_pos=True,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        window_size=14,
        global_attn_indexes=tuple(range(depth // 4, depth, max(1, depth // 4))),
    )
    prompts = PromptEncoder(
        embed_dim=channels, image_embedding_size=(grid, grid), input_image_size=(side, side), mask_in_chans=16
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=channels, num_heads=8, mlp_dim=8 * channels)
    decoder = MaskDecoder(transformer_dim=channels, transformer=transformer, iou_head_hidden_dim=channels)
    return Sam(image_encoder=encoder, prompt_encoder=prompts, mask_decoder=decoder)


def _describers() -> list[tuple[str, RegionDescriber]]:
    from osprey_tp.configuration import TINY_TEXT, TINY_VISION
    from scripts.benchmark.medium_model import medium_describer

    tiny = medium_describer(
        vision_config=TINY_VISION["clip"],
        text_config={**TINY_TEXT["llama"], "max_position_embeddings": 8192},
        feature_layers=[1, 2, 3],
        projector_num_attention_heads=2,
    )
    return [("tiny", tiny), ("medium", medium_describer())]
