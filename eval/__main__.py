"""Command line: `python -m eval TASK --model DIR --data DIR --out DIR`, and `python -m eval list`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.profiles import DEFAULT_PROFILE, PROFILES
from eval.tasks import RESOURCES, TASKS, Task

INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    profiles = "\n".join(f"  {profile.name:<12}{profile.summary}" for profile in PROFILES.values())
    parser = argparse.ArgumentParser(
        prog="python -m eval",
        description="Ask a model about every region of a prepared data folder and score the answers.\n\n"
        f"tasks:\n{_task_lines()}\n\nprofiles of answer normalisation:\n{profiles}",
        epilog="Writes predictions.jsonl, metrics.json and report.html. A run that was cut short goes on where it was "
        "when the same command is given again.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", metavar="TASK", choices=[*TASKS, "list"], help="a task, or `list` to list them")
    parser.add_argument("--model", type=Path, metavar="DIR", help="model folder; not needed with --predictions")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of records that data_pipelines prepared")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results; made if it is not there")
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N regions")
    parser.add_argument("--batch-size", type=_positive, default=16, metavar="N", help="regions asked at a time (16)")
    parser.add_argument(
        "--shuffle-regions",
        type=_seed,
        metavar="SEED",
        help="also ask with regions shuffled within each picture: the region-blind control",
    )
    parser.add_argument("--question", metavar="TEXT", help="ask this instead; holds <mask> once, for the region")
    parser.add_argument("--max-new-tokens", type=_positive, metavar="N", help="longest answer in tokens")
    parser.add_argument(
        "--profile", choices=list(PROFILES), default=DEFAULT_PROFILE, help="answer normalisation (%(default)s)"
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help='score these answers, JSON lines with "id" (<record id>#<region number from 1>) and "prediction"',
    )
    parser.add_argument(
        "--sentence-bert", type=Path, metavar="DIR", help="SentenceBERT folder, for Semantic Similarity"
    )
    _add_judge(parser.add_argument_group("judge"))
    parser.add_argument("--device", help="where the model runs, such as cuda or cpu")
    parser.add_argument("--dtype", help="precision of the model, such as bfloat16")
    return parser


def _add_judge(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--judge", metavar="URL", help="OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1")
    group.add_argument("--judge-model", metavar="NAME", help="the judge's name at the endpoint")
    group.add_argument(
        "--judge-key-variable",
        metavar="NAME",
        default="OPENAI_API_KEY",
        help="environment variable that holds the key (%(default)s)",
    )
    group.add_argument(
        "--judge-concurrency", type=_positive, metavar="N", default=8, help="most requests at a time (%(default)s)"
    )
    group.add_argument("--references", type=Path, metavar="FILE", help='reference answers, JSON with "id" and "text"')
    group.add_argument(
        "--contexts", type=Path, metavar="FILE", help='what pictures show, for the judge, JSON with "image" and "text"'
    )


def _needs(task: Task) -> str:
    """What a task needs, for `list`."""
    return "\n".join([f"{'':<28}data: {task.needed}", *(f"{'':<28}{RESOURCES[name]}" for name in task.resources)])


def _task_lines() -> str:
    return "\n".join(f"  {task.name:<26}{task.summary}" for task in TASKS.values())


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def _seed(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.task == "list":
        lines = (
            f"{line}\n{_needs(task)}" for line, task in zip(_task_lines().split("\n"), TASKS.values(), strict=True)
        )
        sys.stdout.write("\n".join(lines) + "\n")
        return 0
    if options.data is None or options.out is None:
        parser.error("needed: --data DIR and --out DIR")
    if (options.model is None) == (options.predictions is None):
        parser.error("needed: either --model DIR to ask, or --predictions FILE to score answers that are there")
    if options.predictions is not None and options.shuffle_regions is not None:
        parser.error("--shuffle-regions asks a model and cannot go with --predictions")
    if (options.judge is None) != (options.judge_model is None):
        parser.error("a judge needs both --judge URL and --judge-model NAME")
    if options.judge is not None and "judge" not in TASKS[options.task].resources:
        parser.error(f"{options.task} asks no judge; leave out --judge")
    try:
        return _evaluate(options)
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted; answers so far are in {options.out}, the same command goes on from there\n")
        return INTERRUPTED


def _evaluate(options: argparse.Namespace) -> int:
    from eval.evaluation import REPORT_FILE, Settings, evaluate
    from eval.evaluation_report import label_of, percent_with_interval

    metrics = evaluate(
        Settings(
            task=options.task,
            data=options.data,
            out=options.out,
            model=options.model,
            predictions=options.predictions,
            limit=options.limit,
            batch_size=options.batch_size,
            shuffle_seed=options.shuffle_regions,
            question=options.question,
            max_new_tokens=options.max_new_tokens,
            profile=options.profile,
            sentence_bert=options.sentence_bert,
            judge=options.judge,
            judge_model=options.judge_model,
            judge_key_variable=options.judge_key_variable,
            judge_concurrency=options.judge_concurrency,
            references=options.references,
            contexts=options.contexts,
            device=options.device,
            dtype=options.dtype,
        )
    )
    for name, row in metrics["metrics"].items():
        sys.stdout.write(f"{label_of(name):<24}{percent_with_interval(row)}\n")
    for name, reason in metrics["not_measured"].items():
        sys.stdout.write(f"{label_of(name):<24}not measured: {reason}\n")
    sys.stdout.write(f"report: {options.out / REPORT_FILE}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
