"""Draw synthetic scenes: ``python -m data_pipelines.synthetic --out DIR --train 2000 --val 100 --test 200``."""

from __future__ import annotations

import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code is 0 only if everything was written."""
    parser = argparse.ArgumentParser(prog="python -m data_pipelines.synthetic", description=__doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make; must not exist or be empty")
    parser.add_argument("--train", type=int, default=2000, help="number of training scenes (default %(default)s)")
    parser.add_argument("--val", type=int, default=100, help="number of validation scenes (default %(default)s)")
    parser.add_argument("--test", type=int, default=200, help="number of test scenes (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default %(default)s)")
    parser.add_argument("--height", type=int, default=128, help="of the pictures, in pixels (default %(default)s)")
    parser.add_argument("--width", type=int, default=192, help="of the pictures, in pixels (default %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw (default %(default)s)")
    options = parser.parse_args(arguments)

    from data_pipelines.synthetic.writer import write_scenes

    splits = {"train": options.train, "val": options.val, "test": options.test}
    try:
        summary = write_scenes(options.out, splits, options.seed, (options.height, options.width), options.workers)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    for split, counts in summary.items():
        sys.stdout.write(f"{split}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
