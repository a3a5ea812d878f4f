"""What several commands share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_image_root(parser: argparse.ArgumentParser) -> None:
    """Add `--images`, which replaces the folder of pictures that a manifest names."""
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="the folder of pictures, if it is not where the manifest says"
    )


def say(text: str) -> None:
    """Print a line on stdout."""
    sys.stdout.write(text + "\n")
