"""`python -m data_pipelines prepare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_pipelines.commands.shared import Commands, add_reading, say
from data_pipelines.sources import SOURCES


def add_parser(commands: Commands) -> None:
    """Add the command to the parser of the program."""
    width = max(map(len, SOURCES))
    listed = "\n".join(f"  {name:<{width}}  {entry.summary}" for name, entry in SOURCES.items())
    parser = commands.add_parser(
        "prepare",
        help="read a published annotation file and write a folder of records",
        description="Read a published annotation file and write a folder of records, with a manifest of what was left "
        "out and why. An interrupted run goes on where it was when the same command is given again.",
        epilog=f"sources:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", choices=list(SOURCES), help="what kind of file it is, see below")
    parser.add_argument(
        "--annotations", type=Path, required=True, metavar="PATH", help="the annotation file, or the folder of them"
    )
    parser.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="the folder that its file names are relative to"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    add_reading(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="take the first N records")
    parser.add_argument("--sample", type=int, metavar="N", help="take N records at random")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the random choice (default 0)")
    parser.add_argument(
        "--shard", type=_shard, metavar="I/N", help="prepare the I-th of N parts, to be joined by `merge`"
    )
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="processes that read; the result is the same (default 1)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a folder of records that is there already")
    parser.set_defaults(run=_prepare)


def _shard(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, such as 1/8")
    return int(part), int(parts)


def _prepare(options: argparse.Namespace) -> int:
    from data_pipelines.prepare import prepare, summary_of

    manifest = prepare(
        options.source,
        options.annotations,
        options.images,
        options.out,
        include_crowd=options.include_crowd,
        split=options.split,
        inputs=dict(options.inputs),
        segmenter=options.segmenter,
        limit=options.limit,
        sample=options.sample,
        seed=options.seed,
        shard=options.shard,
        processes=options.processes,
        overwrite=options.overwrite,
    )
    say(f"{summary_of(manifest)}\nwrote {options.out}")
    return 0
