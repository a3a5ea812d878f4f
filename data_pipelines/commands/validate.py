"""`python -m data_pipelines validate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_pipelines.commands.shared import Commands, add_image_root, say


def add_parser(commands: Commands) -> None:
    """Add the command to the parser of the program."""
    parser = commands.add_parser(
        "validate",
        help="look for everything in a folder of records that would break training",
        description="Read every record, decode every mask and open every picture of a folder. The exit code is 1 if "
        "something would break training.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder of records")
    add_image_root(parser)
    parser.set_defaults(run=_validate)


def _validate(options: argparse.Namespace) -> int:
    from data_pipelines.records import RecordFolder
    from data_pipelines.tally import lines_of
    from data_pipelines.validation import validate

    report = validate(RecordFolder.open(options.folder, options.images))
    say(f"{options.folder}: {report.records} records, {report.regions} regions, {report.pictures} pictures")
    for line in lines_of(report.problems):
        say(f"  problem: {line}")
    say("  something would break training" if report.problems else "  no problem found")
    return 1 if report.problems else 0
