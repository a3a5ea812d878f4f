"""The command `generate`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines.generation.endpoint import Budget, Endpoint

if TYPE_CHECKING:
    from data_pipelines.generation.generate import Plan, Selection

POSITIVE_NEGATIVE = "positive-negative"
TASK_SUMMARIES = {
    "detailed-description": "a paragraph about every region",
    "conversation": "questions and answers that build on each other",
    "short-form": "questions that a word or a phrase answers",
    POSITIVE_NEGATIVE: "yes/no questions about LVIS categories, by rule, without a language model",
}


def add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `python -m data_pipelines`."""
    listed = "\n".join(f"  {name:<22} {summary}" for name, summary in TASK_SUMMARIES.items())
    parser = commands.add_parser(
        "generate",
        help="have a language model write instruction data about the regions of records",
        description="Have a language model behind an OpenAI-compatible endpoint write instruction data about the "
        "regions of records, from their names, boxes and captions. Every reply is kept in a file; a run that was "
        "interrupted or reached its budget goes on from there when it is started again.",
        epilog=f"tasks:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", metavar="TASK", choices=list(TASK_SUMMARIES), help="what to write, see below")
    parser.add_argument("records", metavar="RECORDS", type=Path, help="a folder of records with named regions")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of records to write")
    parser.add_argument(
        "--captions",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder of records that say something about the same pictures; may be repeated",
    )
    parser.add_argument(
        "--level",
        choices=("object", "part"),
        default="object",
        help="write about objects, or about parts named object:part (default object)",
    )
    parser.add_argument(
        "--max-regions", type=int, default=10, metavar="N", help="most regions of a request or record (default 10)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="read the first N records only")
    parser.add_argument("--seed", type=int, metavar="S", help="of all random choices, also sent to the endpoint")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder of records that is there already")
    _add_endpoint(parser.add_argument_group("language model"))
    parser.set_defaults(run=_generate)


def _add_endpoint(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--endpoint", metavar="URL", help="the base URL, such as http://127.0.0.1:8000/v1")
    group.add_argument("--model", metavar="NAME", help="the model's name at the endpoint")
    group.add_argument(
        "--key-variable",
        default=Endpoint.key_variable,
        metavar="NAME",
        help="the environment variable that holds the key (default %(default)s)",
    )
    group.add_argument("--temperature", type=float, metavar="T", help="of the sampling (default: the endpoint's)")
    group.add_argument("--max-tokens", type=int, default=4096, metavar="N", help="longest reply (default 4096)")
    group.add_argument("--no-json-mode", action="store_true", help="for endpoints that do not know response_format")
    group.add_argument(
        "--parameter",
        type=_parameter,
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="further parameter of every request, such as reasoning_effort='\"low\"'; null takes one out, such as "
        "max_tokens=null; may be repeated",
    )
    for name, kind, metavar, text in (
        ("concurrency", int, "N", "most requests in flight"),
        ("timeout", float, "S", "seconds that one attempt may take"),
        ("attempts", int, "N", "how often a request is tried"),
    ):
        default = getattr(Endpoint, name)
        group.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=f"{text} (default {default})")
    group.add_argument("--budget-tokens", type=int, metavar="N", help="the most that all kept replies may cost")
    group.add_argument("--budget-requests", type=int, metavar="N", help="the most replies to get, kept ones included")
    group.add_argument("--replies", type=Path, metavar="FILE", help="where to keep replies (default OUT.replies.jsonl)")
    group.add_argument("--partial", action="store_true", help="write what was answered even if requests are left")
    group.add_argument("--dry-run", action="store_true", help="count requests and tokens, print one, ask nothing")


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals or name in ("model", "messages"):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=JSON")
    try:
        return name, json.loads(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not JSON; put texts into double quotes") from None


def _generate(options: argparse.Namespace) -> int:
    from data_pipelines.generation.generate import Selection

    selection = Selection(options.max_regions, options.limit, options.seed or 0)
    if options.task == POSITIVE_NEGATIVE:
        return _positive_negative(options, selection)
    return _language_model(options, selection)


def _positive_negative(options: argparse.Namespace, selection: Selection) -> int:
    from data_pipelines.generation.generate import generate_positive_negative
    from data_pipelines.records import RecordFolder

    for name in ("endpoint", "model", "captions"):
        if getattr(options, name):
            raise ValueError(f"{POSITIVE_NEGATIVE} asks no language model; leave out --{name}")
    if options.dry_run:
        sys.stdout.write(f"{POSITIVE_NEGATIVE} asks no language model: no requests\n")
        return 0
    folder = RecordFolder.open(options.records)
    _report(generate_positive_negative(folder, options.out, selection, overwrite=options.overwrite), options.out)
    return 0


def _language_model(options: argparse.Namespace, selection: Selection) -> int:
    from data_pipelines.generation.generate import dry_run, generate

    replies = options.replies or options.out.with_name(f"{options.out.name}.replies.jsonl")
    if options.dry_run:
        sys.stdout.write(dry_run(_plan(options, selection), replies) + "\n")
        return 0
    if not options.endpoint or not options.model:
        raise ValueError("give the language model with --endpoint URL and --model NAME, or look first with --dry-run")
    endpoint = Endpoint(
        options.endpoint,
        key_variable=options.key_variable,
        concurrency=options.concurrency,
        timeout=options.timeout,
        attempts=options.attempts,
    )
    endpoint.key()
    manifest = generate(
        _plan(options, selection),
        options.out,
        endpoint,
        replies,
        budget=Budget(options.budget_tokens, options.budget_requests),
        partial=options.partial,
        overwrite=options.overwrite,
    )
    _report(manifest, options.out)
    return 0


def _plan(options: argparse.Namespace, selection: Selection) -> Plan:
    from data_pipelines.generation.generate import Plan
    from data_pipelines.generation.tasks import TASKS, Sampling
    from data_pipelines.records import RecordFolder

    sampling = Sampling(
        options.model or "MODEL",
        options.temperature,
        options.seed,
        max_tokens=options.max_tokens,
        json_mode=not options.no_json_mode,
        parameters=dict(options.parameter),
    )
    return Plan(
        TASKS[options.task],
        options.level,
        RecordFolder.open(options.records),
        sampling,
        selection,
        [RecordFolder.open(path) for path in options.captions],
    )


def _report(manifest: dict[str, Any], out: Path) -> None:
    from data_pipelines.tally import lines_of

    counts = manifest["counts"]["out"]
    lines = [f"{counts['records']} records with {counts['regions']} regions and {counts['turns'] // 2} answers"]
    if manifest["rejections"]:
        lines += ["left out:", *(f"  {line}" for line in lines_of(manifest["rejections"]))]
    sys.stdout.write("\n".join([*lines, f"wrote {out}"]) + "\n")
