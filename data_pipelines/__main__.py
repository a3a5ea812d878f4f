"""`python -m data_pipelines`: prepare, merge, synthesize, generate, show, validate."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.generation.command import add_generate
from data_pipelines.sources import SOURCES

PROGRAM = "python -m data_pipelines"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 only if everything that was asked is done."""
    options = build_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        code: int = options.run(options)
    except KeyboardInterrupt:
        sys.stderr.write(f"{PROGRAM}: interrupted; `prepare` goes on when the same command is given again\n")
        return 130
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
    _add_prepare(commands)
    _add_merge(commands)
    _add_synthesize(commands)
    add_generate(commands)
    _add_show(commands)
    _add_validate(commands)
    return parser


def _add_prepare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    width = max(map(len, SOURCES))
    listed = "\n".join(f"  {name:<{width}}  {entry.summary}" for name, entry in SOURCES.items())
    parser = commands.add_parser(
        "prepare",
        help="read a published annotation file and write a folder of records",
        description="Read a published annotation file and write a folder of records, with a manifest of what was left "
        "out and why. An interrupted run goes on where it was when the same command is given again.",
        epilog=f"sources:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", choices=list(SOURCES), help="what kind of file it is, see below")
    parser.add_argument(
        "--annotations", type=Path, required=True, metavar="PATH", help="the annotation file, or the folder of them"
    )
    parser.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="the folder that its file names are relative to"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
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
    parser.add_argument(
        "--segmenter", metavar="NAME[:CHECKPOINT]", help="make masks from boxes: grabcut, or sam:CHECKPOINT"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="take the first N records")
    parser.add_argument("--sample", type=int, metavar="N", help="take N records at random")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the random choice (default 0)")
    parser.add_argument(
        "--shard", type=_shard, metavar="I/N", help="prepare the I-th of N parts, to be joined by `merge`"
    )
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="processes that read; the result is the same (default 1)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a folder of records that is there already")
    parser.set_defaults(run=_prepare)


def _named_path(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, Path(path)


def _shard(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, such as 1/8")
    return int(part), int(parts)


def _prepare(options: argparse.Namespace) -> int:
    from data_pipelines.prepare import prepare, summary_of

    manifest = prepare(
        options.source,
        options.annotations,
        options.images,
        options.out,
        include_crowd=options.include_crowd,
        split=options.split,
        inputs=dict(options.inputs),
        segmenter=options.segmenter,
        limit=options.limit,
        sample=options.sample,
        seed=options.seed,
        shard=options.shard,
        processes=options.processes,
        overwrite=options.overwrite,
    )
    _say(f"{summary_of(manifest)}\nwrote {options.out}")
    return 0


def _add_merge(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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
    _say(f"{summary_of(manifest)}\nwrote {options.out}")
    return 0


def _add_synthesize(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "synthesize",
        help="draw scenes of shapes and write them as published annotation files",
        description="Draw scenes of textured, coloured shapes with exact masks and write them as COCO instances, COCO "
        "captions and RefCOCO files, to be prepared like any other.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    for split, count in (("train", 2000), ("val", 200), ("test", 400)):
        parser.add_argument(
            f"--{split}", type=int, default=count, metavar="N", help=f"scenes of this split (default {count})"
        )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of everything that is drawn (default 0)")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="height and width of the pictures in pixels"
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that draw (default 1)")
    parser.set_defaults(run=_synthesize)


def _synthesize(options: argparse.Namespace) -> int:
    from data_pipelines.synthetic.writer import DEFAULT_SIZE, write_scenes

    splits = {"train": options.train, "val": options.val, "test": options.test}
    size = tuple(options.size) if options.size else DEFAULT_SIZE
    summary = write_scenes(options.out, splits, seed=options.seed, size=size, workers=options.workers)
    for split, counts in summary.items():
        _say(f"{split}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    _say(f"wrote {options.out}")
    return 0


def _add_show(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "show",
        help="write an HTML page of some records",
        description="Write an HTML page, whole in one file, of random records: the picture with its regions outlined "
        "and named, and the conversation as the model will see it.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder of records")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="the page to write")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="how many records (default 20)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="which records (default 0)")
    parser.add_argument("--published-prompts", action="store_true", help="the published wording of the questions")
    _add_image_root(parser)
    parser.set_defaults(run=_show)


def _show(options: argparse.Namespace) -> int:
    from data_pipelines.records import RecordFolder
    from data_pipelines.show import write_page

    folder = RecordFolder.open(options.folder, options.images)
    shown = write_page(
        folder,
        options.out,
        limit=options.limit,
        seed=options.seed,
        prompt_style="published" if options.published_prompts else "clean",
    )
    _say(f"wrote {options.out}: {shown} of {len(folder)} records")
    return 0


def _add_validate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "validate",
        help="look for everything in a folder of records that would break training",
        description="Read every record, decode every mask and open every picture of a folder. The exit code is 1 if "
        "something would break training.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder of records")
    _add_image_root(parser)
    parser.set_defaults(run=_validate)


def _validate(options: argparse.Namespace) -> int:
    from data_pipelines.records import RecordFolder
    from data_pipelines.tally import lines_of
    from data_pipelines.validation import validate

    report = validate(RecordFolder.open(options.folder, options.images))
    _say(f"{options.folder}: {report.records} records, {report.regions} regions, {report.pictures} pictures")
    for line in lines_of(report.problems):
        _say(f"  problem: {line}")
    _say("  something would break training" if report.problems else "  no problem found")
    return 1 if report.problems else 0


def _add_image_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="the folder of pictures, if it is not where the manifest says"
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
