"""Write the weights of single parts of a model into a folder of their own.

    python -m scripts.export_parts runs/stage1 runs/stage1-projector --parts projector
    python -m scripts.train --config scripts/configs/vicuna_7b/stage2.yaml initial_parts=[runs/stage1-projector]

OUT gets parts.safetensors, and parts.json, which says how pictures were cut for them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    options = _parser().parse_args(arguments)
    from osprey_tp.training.parts import export_parts

    try:
        counts = export_parts(options.model, options.out, [part for part in options.parts.split(",") if part])
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    for part, parameters in counts.items():
        sys.stdout.write(f"{part:<16}{parameters:>16,} parameters\n")
    sys.stdout.write(f"wrote {options.out}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.export_parts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="model folder, or what a run with adapters wrote")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument(
        "--parts",
        default="projector,region_encoder",
        metavar="NAMES",
        help="of projector, region_encoder, vision_tower (%(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
