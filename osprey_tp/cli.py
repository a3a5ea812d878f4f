"""`osprey-tp describe`: one answer about one region, on the command line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osprey_tp.loading_options import add_loading_options, loading_options
from osprey_tp.prompts import CATEGORY_QUESTION, require_one_region

if TYPE_CHECKING:
    from PIL.Image import Image


def build_parser() -> argparse.ArgumentParser:
    """The command line of `osprey-tp`."""
    parser = argparse.ArgumentParser(prog="osprey-tp", description="Ask about regions of high-resolution images.")
    commands = parser.add_subparsers(dest="command", required=True)
    describe = commands.add_parser(
        "describe",
        help="answer a question about one region of a picture",
        description="Answer a question about one region of a picture. Coordinates are source pixels, x before y.",
    )
    describe.add_argument("image", type=Path, help="the picture")
    describe.add_argument("--model", type=Path, default=Path("runs/quickstart/model"), help="model folder")
    region = describe.add_mutually_exclusive_group(required=True)
    region.add_argument("--point", type=_numbers(2), metavar="X,Y", help="the object under this pixel")
    region.add_argument("--box", type=_numbers(4), metavar="X0,Y0,X1,Y1", help="everything in this box")
    region.add_argument("--mask", type=Path, metavar="FILE", help="picture of the region: nonzero pixels are inside")
    describe.add_argument(
        "--segmenter",
        default="grabcut",
        metavar="NAME[:PATH]",
        help="what finds the object under --point: grabcut, or sam:PATH (a file or a folder) (default: %(default)s)",
    )
    describe.add_argument("--question", default=CATEGORY_QUESTION, help="holds one <mask> (default: %(default)s)")
    describe.add_argument("--max-new-tokens", type=int, default=64, help="limit of the answer (default: %(default)s)")
    describe.add_argument("--json", action="store_true", help="print answer, question and region as one JSON object")
    add_loading_options(describe)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        print(describe(options))  # noqa: T201 - the answer is what this command is for
    except (OSError, ValueError, ImportError) as error:
        print(f"osprey-tp: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def describe(options: argparse.Namespace) -> str:
    """Answer what the command line asks; whatever can be wrong about it is found before the model is loaded."""
    from osprey_tp.images import load_image
    from osprey_tp.masks import to_rle

    question = require_one_region(options.question)
    image = load_image(options.image)
    region = to_rle(_region(options, image), image.height, image.width)
    answer = _ask(options, image, region, question)
    if not options.json:
        return answer
    return json.dumps({"image": str(options.image), "question": question, "answer": answer, "region": region})


def _ask(options: argparse.Namespace, image: Image, region: dict[str, Any], question: str) -> str:
    from transformers.utils import logging

    from osprey_tp.describer import RegionDescriber

    logging.disable_progress_bar()
    session = RegionDescriber.from_pretrained(options.model, **asdict(loading_options(options))).open(image)
    return session.ask([region], question, max_new_tokens=options.max_new_tokens)[0]


def _region(options: argparse.Namespace, image: Image) -> Any:
    """The region that the command line points at, in a form of `osprey_tp.masks`."""
    if options.box is not None:
        return {"box": options.box}
    if options.mask is not None:
        return options.mask
    x, y = options.point
    if not (0 <= x < image.width and 0 <= y < image.height):
        raise ValueError(
            f"the point {x:g},{y:g} lies outside the picture, {image.width} pixels wide and {image.height} high"
        )
    from osprey_tp.segmenters import load_segmenter

    return load_segmenter(options.segmenter).open(image).segment([(x, y)], [True])[0].mask


def _numbers(count: int) -> Any:
    def parse(text: str) -> list[float]:
        parts = text.split(",")
        if len(parts) != count:
            raise argparse.ArgumentTypeError(f"{text!r} is not {count} numbers joined by commas")
        try:
            return [float(part) for part in parts]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {count} numbers joined by commas") from None

    return parse
