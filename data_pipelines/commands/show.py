"""`python -m data_pipelines show`."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_pipelines.commands.shared import Commands, add_image_root, add_model, say, wording_of


def add_parser(commands: Commands) -> None:
    """Add the command to the parser of the program."""
    parser = commands.add_parser(
        "show",
        help="write an HTML page of some records",
        description="Write an HTML page, whole in one file, of random records: the picture with its regions outlined "
        "and named, and the conversation; with --model, every token as the model will see it.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder of records")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="the page to write")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="how many records (default 20)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="which records (default 0)")
    add_image_root(parser)
    add_model(parser)
    parser.set_defaults(run=_show)


def _show(options: argparse.Namespace) -> int:
    from data_pipelines.lengths import load_processor, longest_sample
    from data_pipelines.records import RecordFolder
    from data_pipelines.show import write_page

    folder = RecordFolder.open(options.folder, options.images)
    shown = write_page(
        folder,
        options.out,
        limit=options.limit,
        seed=options.seed,
        wording=wording_of(options),
        processor=None if options.model is None else load_processor(options.model, options.template),
        longest=0 if options.model is None else longest_sample(options.model),
    )
    say(f"wrote {options.out}: {shown} of {len(folder)} records")
    return 0
