"""`python -m data_pipelines validate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipelines.commands.shared import Commands, add_model, add_reading, say, wording_of
from data_pipelines.sources import SOURCES
from osprey_tp.files import write_text

if TYPE_CHECKING:
    from data_pipelines.tally import Tally
    from data_pipelines.validation import TokenBudget, ValidationReport


def add_parser(commands: Commands) -> None:
    """Add the command to the parser of the program."""
    parser = commands.add_parser(
        "validate",
        help="look for everything in a folder of records that would break training",
        description="Read every record, check every mask and open every picture of a folder, or read an annotation "
        "file as `prepare` would, without writing anything. The exit code is 1 if something would break training.",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a folder of records, or an annotation file")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="the folder of pictures; of a folder of records, if it is not where the manifest says",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--fix", type=Path, metavar="DIR", help="write a copy without what would break training")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder of records that --fix names")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="processes that read; the report is the same (default 1)"
    )
    model = parser.add_argument_group("lengths of samples")
    add_model(model)
    model.add_argument(
        "--max-tokens", type=int, metavar="N", help="most tokens a sample (default: what the model takes)"
    )
    source = parser.add_argument_group("an annotation file")
    source.add_argument("--source", metavar="NAME", choices=list(SOURCES), help="what kind of file it is")
    add_reading(source)
    parser.set_defaults(run=_validate)


def _validate(options: argparse.Namespace) -> int:
    from data_pipelines.raw_files import unnamed_source

    if options.source is not None:
        return _validate_file(options)
    if options.path.is_file():
        raise unnamed_source(options.path)
    return _validate_folder(options)


def _validate_folder(options: argparse.Namespace) -> int:
    from data_pipelines.fixing import fix
    from data_pipelines.records import RecordFolder
    from data_pipelines.tally import lines_of
    from data_pipelines.validation import validate

    folder = RecordFolder.open(options.path, options.images)
    budget = _budget(options)
    if options.fix is None:
        return _report(options, validate(folder, budget=budget, processes=options.processes))
    fixed = fix(folder, options.fix, budget=budget, processes=options.processes, overwrite=options.overwrite)
    _report(options, fixed.report)
    say(f"wrote {options.fix}: {', '.join(f'{count} {what}' for what, count in fixed.counts.items())}")
    for line in lines_of(fixed.removed):
        say(f"  removed: {line}")
    return 0


def _validate_file(options: argparse.Namespace) -> int:
    from data_pipelines.raw_files import validate_annotations

    if options.fix is not None:
        raise ValueError("--fix cleans a folder of records; `prepare` leaves out what is broken in a file")
    if options.images is None:
        raise ValueError("an annotation file needs the folder of its pictures: name it with --images DIR")
    report, manifest = validate_annotations(
        options.source,
        options.path,
        options.images,
        include_crowd=options.include_crowd,
        split=options.split,
        inputs=dict(options.inputs),
        segmenter=options.segmenter,
        budget=_budget(options),
        processes=options.processes,
    )
    return _report(options, report, manifest["rejections"])


def _budget(options: argparse.Namespace) -> TokenBudget | None:
    from data_pipelines.validation import TokenBudget

    if options.model is None:
        if options.max_tokens is not None:
            raise ValueError("tokens are counted by a model's processor: name it with --model DIR")
        return None
    return TokenBudget.of_model(
        options.model, limit=options.max_tokens, template=options.template, wording=wording_of(options)
    )


def _report(options: argparse.Namespace, report: ValidationReport, left_out: Tally | None = None) -> int:
    from data_pipelines.validation_report import as_json, as_lines

    for line in as_lines(report, str(options.path), left_out):
        say(line)
    if options.json is not None:
        text = json.dumps(as_json(report, str(options.path), left_out), indent=2, ensure_ascii=False)
        write_text(options.json, text + "\n")
    return 1 if report.problems else 0
