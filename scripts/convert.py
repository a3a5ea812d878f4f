"""Turn a published checkpoint into a folder that from_pretrained loads, or write the published layout of one.

    python -m scripts.convert SRC DST --verify
    python -m scripts.convert mm_projector.bin DST --language-model vicuna-7b --vision-tower clip-vit-l-14-336
    python -m scripts.convert MODEL DST --reverse

SRC is a checkpoint of TokenPacker, TokenPacker-HD (with or without Osprey), LLaVA-1.5 or LLaVA-STF, or a stage-1
mm_projector.bin; what it is, is recognised by its weights. Nothing is downloaded. DST appears when it is complete.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from osprey_tp.conversion_digest import Digest
    from osprey_tp.conversion_folder import Converted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.reverse and any(getattr(options, name) for name in _OF_CONVERSION):
        parser.error("--reverse goes with --dtype and --max-shard-size alone")
    try:
        done = _run(options)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    sys.stdout.write(done)
    return 0


_OF_CONVERSION = ("language_model", "vision_tower", "scale_factor", "max_tiles", "template", "verify")


def _run(options: argparse.Namespace) -> str:
    """Do what the command line asks; return what is said of it."""
    from transformers.utils import logging

    from osprey_tp.conversion_folder import ConversionOptions, convert
    from osprey_tp.conversion_reverse import reverse

    logging.disable_progress_bar()
    if options.reverse:
        return _summary(reverse(options.source, options.out, options.dtype, options.max_shard_size), options.out)
    conversion = ConversionOptions(
        language_model=options.language_model,
        vision_tower=options.vision_tower,
        scale_factor=options.scale_factor,
        max_tiles=options.max_tiles,
        template=options.template,
        dtype=options.dtype,
        max_shard_size=options.max_shard_size,
        verify=options.verify,
    )
    return _summary(convert(options.source, options.out, conversion), options.out)


def _summary(done: Converted, out: Path) -> str:
    lines = [f"{done.kind}: {done.weights} weights, {done.size / 1e9:.2f} GB", *done.facts, f"wrote {out}"]
    if done.digest is not None:
        lines += _verification(done.digest)
    return "".join(f"{line}\n" for line in lines)


def _verification(digest: Digest) -> list[str]:
    """A digest, with the figures that it is made of."""
    lines = [f"digest {digest.text}"]
    for number, (prompt, answer, figures) in enumerate(
        zip(digest.prompt_ids, digest.answer_ids, digest.figures, strict=True), start=1
    ):
        parts = ("visual", "logits") if len(figures) == 4 else ("visual", "region", "logits")
        sizes = ", ".join(f"{part} {figures[2 * n]:.6g} {figures[2 * n + 1]:.6g}" for n, part in enumerate(parts))
        lines.append(f"question {number}: {len(prompt)} tokens, answer {' '.join(map(str, answer))}; {sizes}")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SRC", help="folder of a checkpoint, or a file of a projector")
    parser.add_argument("out", type=Path, metavar="DST", help="folder to make")
    parser.add_argument("--vision-tower", type=Path, metavar="DIR", help="CLIP's folder; by default the tower in SRC")
    parser.add_argument(
        "--language-model", type=Path, metavar="DIR", help="for a projector alone: the folder of its language model"
    )
    parser.add_argument(
        "--scale-factor", type=int, metavar="N", help="2, 3 or 4; by default as config.json says, else 2"
    )
    parser.add_argument(
        "--max-tiles",
        type=int,
        metavar="N",
        help="patch number 9, 16 or 25, or 1 for one padded square a picture; by default as config.json says",
    )
    parser.add_argument("--template", metavar="NAME", help="chat template: vicuna_v1 (default), plain, chatml")
    parser.add_argument("--dtype", metavar="NAME", help="float32, float16 or bfloat16; by default each weight's own")
    parser.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="of the files written, and held in memory (%(default)s)"
    )
    parser.add_argument(
        "--verify", action="store_true", help="make DST only if it answers about a fixed picture; print a digest"
    )
    parser.add_argument("--reverse", action="store_true", help="SRC is a folder of ours: write the published layout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
