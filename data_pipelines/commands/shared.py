"""What several commands share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from data_pipelines.lengths import Wording
    from data_pipelines.prompts import PromptStyle

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_image_root(parser: argparse.ArgumentParser) -> None:
    """Add `--images`, which replaces the folder of pictures that a manifest names."""
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="the folder of pictures, if it is not where the manifest says"
    )


def add_model(parser: argparse._ActionsContainer) -> None:
    """Add what decides how a model sees a record: `--model` and the wording."""
    parser.add_argument("--model", type=Path, metavar="DIR", help="the model's folder; its processor counts tokens")
    parser.add_argument(
        "--template", metavar="NAME", help="a chat template in place of the model's own, such as plain for stage 1"
    )
    parser.add_argument("--max-regions", type=int, metavar="N", help="most regions in one sample")
    parser.add_argument("--published-prompts", action="store_true", help="the published wording of the questions")


def wording_of(options: argparse.Namespace) -> Wording:
    """What `add_model` says of the wording."""
    from data_pipelines.lengths import Wording

    style: PromptStyle = "published" if options.published_prompts else "clean"
    return Wording(style, max_regions=options.max_regions)


def add_reading(parser: argparse._ActionsContainer) -> None:
    """Add what says how an annotation file is read."""
    parser.add_argument("--split", metavar="NAME", help="the part of a source that holds several in one file")
    parser.add_argument(
        "--input",
        dest="inputs",
        type=_named_path,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a further file of the source, where it is not at its usual place",
    )
    parser.add_argument("--include-crowd", action="store_true", help="keep regions that stand for a crowd of things")
    parser.add_argument("--segmenter", metavar="NAME[:PATH]", help="make masks from boxes: grabcut, or sam:PATH")


def _named_path(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, Path(path)


def say(text: str) -> None:
    """Print a line on stdout."""
    sys.stdout.write(text + "\n")
