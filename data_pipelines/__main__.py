"""`python -m data_pipelines`: prepare, merge, synthesize, generate, show, validate."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data_pipelines.commands import merge, prepare, show, synthesize, validate
from data_pipelines.generation.command import add_generate
from osprey_tp.termination import EXIT_CODE, Terminated, sigterm_raised

PROGRAM = "python -m data_pipelines"
ADD_COMMAND = (
    prepare.add_parser,
    merge.add_parser,
    synthesize.add_parser,
    add_generate,
    show.add_parser,
    validate.add_parser,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 only if everything that was asked is done."""
    options = build_parser().parse_args(arguments)
    try:
        with sigterm_raised():
            code: int = options.run(options)
    except KeyboardInterrupt as end:
        sys.stderr.write(f"{PROGRAM}: interrupted; `prepare` goes on when the same command is given again\n")
        return EXIT_CODE if isinstance(end, Terminated) else 130
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{PROGRAM} {options.command}: error: {' '.join(str(error).split())}\n")
        return 1
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `options.run` is the function that does the work."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Published annotation files to folders of region records that training reads."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add_command in ADD_COMMAND:
        add_command(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
