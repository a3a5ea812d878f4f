"""`python -m data_pipelines merge`."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_pipelines.commands.shared import Commands, say


def add_parser(commands: Commands) -> None:
    """Add the command to the parser of the program."""
    parser = commands.add_parser(
        "merge",
        help="join the shards that several machines have prepared",
        description="Join all folders of one `prepare --shard I/N` into the folder that one run without --shard would "
        "have written.",
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="the folders, in any order")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder of records that is there already")
    parser.set_defaults(run=_merge)


def _merge(options: argparse.Namespace) -> int:
    from data_pipelines.merging import merge_shards
    from data_pipelines.prepare import summary_of

    manifest = merge_shards(options.folders, options.out, overwrite=options.overwrite)
    say(f"{summary_of(manifest)}\nwrote {options.out}")
    return 0
