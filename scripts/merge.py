"""Merge the adapters of a run into the model that it started from.

    python -m scripts.merge runs/stage3_lora runs/stage3_lora-merged
    python -m scripts.merge runs/stage3_lora OUT model=moved/stage2

The start model is the one that the run's settings name; key=value replaces a setting, for a model that has moved. The
folder that is written is a plain model folder, in float32: evaluation, the app and further stages take it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    options = _parser().parse_args(arguments)
    from osprey_tp.training.merging import merge

    try:
        merge(options.run, options.out, options.settings)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    sys.stdout.write(f"wrote {options.out}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.merge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that a run with adapters wrote")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that replace those of the run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
