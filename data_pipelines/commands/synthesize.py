"""`python -m data_pipelines synthesize`."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_pipelines.commands.shared import Commands, say


def add_parser(commands: Commands) -> None:
    """Add the command to the parser of the program."""
    parser = commands.add_parser(
        "synthesize",
        help="draw scenes of shapes and write them as published annotation files",
        description="Draw scenes of textured, coloured shapes with exact masks and write them as COCO instances, COCO "
        "captions and RefCOCO files, to be prepared like any other.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    for split, count in (("train", 2000), ("val", 200), ("test", 400)):
        parser.add_argument(
            f"--{split}", type=int, default=count, metavar="N", help=f"scenes of this split (default {count})"
        )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of everything that is drawn (default 0)")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="height and width of the pictures in pixels"
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that draw (default 1)")
    parser.set_defaults(run=_synthesize)


def _synthesize(options: argparse.Namespace) -> int:
    from data_pipelines.synthetic.writer import DEFAULT_SIZE, write_scenes

    splits = {"train": options.train, "val": options.val, "test": options.test}
    size = tuple(options.size) if options.size else DEFAULT_SIZE
    summary = write_scenes(options.out, splits, seed=options.seed, size=size, workers=options.workers)
    for split, counts in summary.items():
        say(f"{split}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    say(f"wrote {options.out}")
    return 0
