"""`osprey-tp describe`: one answer about one region, on the command line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osprey_tp.prompts import CATEGORY_QUESTION

if TYPE_CHECKING:
    from osprey_tp.sessions import ImageSession


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
        help="what finds the object under --point: grabcut, or sam:CHECKPOINT (default: %(default)s)",
    )
    describe.add_argument("--question", default=CATEGORY_QUESTION, help="holds one <mask> (default: %(default)s)")
    describe.add_argument("--max-new-tokens", type=int, default=64, help="limit of the answer (default: %(default)s)")
    describe.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    describe.add_argument("--json", action="store_true", help="print answer, question and region as one JSON object")
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
    """Answer what the command line asks."""
    from osprey_tp.images import load_image
    from osprey_tp.sessions import RegionDescriber

    image = load_image(options.image)
    session = RegionDescriber.from_pretrained(options.model, device=options.device).open(image)
    region = _region(options, session)
    answer = session.ask([region], options.question, max_new_tokens=options.max_new_tokens)[0]
    if not options.json:
        return answer
    from osprey_tp.masks import to_rle

    rle = to_rle(region, session.height, session.width)
    return json.dumps({"image": str(options.image), "question": options.question, "answer": answer, "region": rle})


def _region(options: argparse.Namespace, session: ImageSession) -> Any:
    """The region that the command line points at."""
    if options.box is not None:
        return {"box": options.box}
    if options.mask is not None:
        return options.mask
    x, y = options.point
    if not (0 <= x < session.width and 0 <= y < session.height):
        raise ValueError(
            f"the point {x:g},{y:g} lies outside the picture, {session.width} pixels wide and {session.height} high"
        )
    from osprey_tp.segmenters import load_segmenter

    candidates = load_segmenter(options.segmenter).open(session.image).segment([options.point], [True])
    return max(candidates, key=lambda candidate: candidate.score).mask


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
