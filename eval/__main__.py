"""Command line: `python -m eval TASK --model DIR --data DIR --out DIR`, `python -m eval all`, `python -m eval list`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.profiles import DEFAULT_PROFILE, PROFILES
from eval.sampling import Sampling
from eval.task_options import add_task_options, task_options
from eval.tasks import NEEDS, TASKS
from eval.team import Team
from osprey_tp.loading_options import add_loading_options, loading_options
from osprey_tp.termination import EXIT_CODE, Terminated, sigterm_raised

if TYPE_CHECKING:
    from eval.evaluation import Settings

INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    profiles = "\n".join(f"  {profile.name:<12}{profile.summary}" for profile in PROFILES.values())
    parser = argparse.ArgumentParser(
        prog="python -m eval",
        description="Ask a model about every region of a prepared data folder and score the answers.\n\n"
        f"tasks:\n{_task_lines()}\n  {'all':<26}every task that the data allow, and one table of all: all.html\n"
        f"  {'list':<26}the tasks, with what each needs\n\nprofiles of answer normalisation:\n{profiles}",
        epilog="Writes predictions.jsonl, metrics.json and report.html. A run that was cut short goes on where it was "
        "when the same command is given again, on any number of processes. Several processes share the pictures: "
        "torchrun --nproc_per_node N -m eval TASK ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", metavar="TASK", choices=[*TASKS, "all", "list"], help="a task, `all` or `list`")
    parser.add_argument("--model", type=Path, metavar="DIR", help="model folder; not needed with --predictions")
    parser.add_argument(
        "--data", type=Path, nargs="+", metavar="DIR", help="folder of prepared records; `all` takes several"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results; made if it is not there")
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N regions")
    parser.add_argument("--batch-size", type=_positive, default=16, metavar="N", help="regions asked at a time (16)")
    parser.add_argument(
        "--workers", type=_natural, default=2, metavar="N", help="threads that decode pictures ahead (%(default)s)"
    )
    parser.add_argument(
        "--shuffle-regions",
        type=_natural,
        metavar="SEED",
        help="also ask with regions shuffled within each picture: the region-blind control",
    )
    parser.add_argument("--question", metavar="TEXT", help="ask this instead; holds <mask> once, for the region")
    parser.add_argument("--max-new-tokens", type=_positive, metavar="N", help="longest answer in tokens")
    parser.add_argument(
        "--sample", action="store_true", help="draw answers as published evaluations do, instead of the likeliest words"
    )
    parser.add_argument(
        "--temperature", type=_temperature, metavar="T", help=f"of --sample ({Sampling().temperature}, as published)"
    )
    parser.add_argument("--seed", type=_natural, metavar="N", help=f"of --sample ({Sampling().seed})")
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
        "--compare",
        type=Path,
        metavar="RUN",
        help="results of another run of the same task and data: what changed, item by item, in compare.html",
    )
    parser.add_argument(
        "--sentence-bert", type=Path, metavar="DIR", help="SentenceBERT folder, for Semantic Similarity"
    )
    _add_judge(parser.add_argument_group("judge"))
    add_loading_options(parser)
    add_task_options(parser)
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
    group.add_argument(
        "--judge-timeout",
        type=_seconds,
        metavar="S",
        default=120.0,
        help="seconds that one attempt may take (%(default)g)",
    )
    group.add_argument("--references", type=Path, metavar="FILE", help='reference answers, JSON with "id" and "text"')
    group.add_argument(
        "--contexts", type=Path, metavar="FILE", help='what pictures show, for the judge, JSON with "image" and "text"'
    )


def _task_lines(needs: bool = False) -> str:
    lines = []
    for task in TASKS.values():
        lines.append(f"  {task.name:<26}{task.summary}")
        if needs:
            needed = "; ".join((task.needed, *(NEEDS[need] for need in task.needs)))
            used = f"; uses, if given: {'; '.join(NEEDS[name] for name in task.uses)}" if task.uses else ""
            lines.append(f"  {'':<26}needs {needed}{used}")
    return "\n".join(lines)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def _temperature(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no positive number; without --sample answers are greedy")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no positive number of seconds")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.task == "list":
        sys.stdout.write(_task_lines(needs=True) + "\n")
        return 0
    problem = _problem(options)
    if problem:
        parser.error(problem)
    try:
        with sigterm_raised(), Team.from_environment() as team:
            return _evaluate_all(options, team) if options.task == "all" else _evaluate(options, team)
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    except KeyboardInterrupt as end:
        sys.stderr.write(f"interrupted; answers so far are in {options.out}, the same command goes on from there\n")
        return EXIT_CODE if isinstance(end, Terminated) else INTERRUPTED


def _problem(options: argparse.Namespace) -> str:
    """What is wrong with the options together; "" for nothing."""
    if options.data is None or options.out is None:
        return "needed: --data DIR and --out DIR"
    if (options.model is None) == (options.predictions is None):
        return "needed: either --model DIR to ask, or --predictions FILE to score answers that are there"
    if not options.sample and (options.temperature is not None or options.seed is not None):
        return "--temperature and --seed belong to --sample"
    if options.predictions is not None and (options.shuffle_regions is not None or options.sample):
        return "--shuffle-regions and --sample ask a model and cannot go with --predictions"
    if (options.judge is None) != (options.judge_model is None):
        return "a judge needs both --judge URL and --judge-model NAME"
    if options.task == "all":
        if options.references is not None or options.contexts is not None:
            return "all asks several tasks; --references and --contexts go with one"
        if options.predictions is not None or options.compare is not None or options.question is not None:
            return "all asks several tasks; --predictions, --compare and --question go with one"
        return ""
    if len(options.data) > 1:
        return f"{options.task} takes one data folder, got {len(options.data)}; `all` takes several"
    task = TASKS[options.task]
    for name, value in (("judge", options.judge), ("references", options.references), ("contexts", options.contexts)):
        if value is not None and name not in (*task.needs, *task.uses):
            return f"{task.name} makes no use of --{name}; leave it out"
    return ""


def _settings(options: argparse.Namespace) -> Settings:
    from eval.evaluation import Settings

    given = {"temperature": options.temperature, "seed": options.seed}
    sampling = Sampling(**{name: value for name, value in given.items() if value is not None})
    return Settings(
        task=options.task,
        data=options.data[0],
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
        judge_timeout=options.judge_timeout,
        references=options.references,
        contexts=options.contexts,
        loading=loading_options(options),
        sampling=sampling if options.sample else None,
        workers=options.workers,
        compare=options.compare,
        task_options=task_options(options),
    )


def _evaluate(options: argparse.Namespace, team: Team) -> int:
    from eval.comparison import COMPARISON_PAGE
    from eval.evaluation import REPORT_FILE, evaluate
    from eval.labels import label_of, percent_with_interval

    metrics = evaluate(_settings(options), team=team)
    if metrics is None:
        return 0
    for name, row in metrics["metrics"].items():
        sys.stdout.write(f"{label_of(name):<24}{percent_with_interval(row)}\n")
    for name, reason in metrics["not_measured"].items():
        sys.stdout.write(f"{label_of(name):<24}not measured: {reason}\n")
    sys.stdout.write(f"report: {options.out / REPORT_FILE}\n")
    if options.compare is not None:
        sys.stdout.write(f"comparison: {options.out / COMPARISON_PAGE}\n")
    return 0


def _evaluate_all(options: argparse.Namespace, team: Team) -> int:
    from eval.everything import ALL_PAGE, evaluate_all
    from eval.labels import label_of, percent_with_interval

    outcomes = evaluate_all(_settings(options), options.data, team=team)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if team.first:
        for outcome in outcomes:
            told = outcome.reason
            if outcome.metrics is not None:
                headline = outcome.metrics["headline"]
                told = f"{label_of(headline)} {percent_with_interval(outcome.metrics['metrics'].get(headline))}"
                if headline in outcome.metrics["not_measured"]:
                    told += f" not measured: {outcome.metrics['not_measured'][headline]}"
            sys.stdout.write(f"{outcome.task:<26}{outcome.data:<20}{outcome.state:<10}{told}\n")
        sys.stdout.write(f"report: {options.out / ALL_PAGE}\n")
    if failed:
        first = f"{failed[0].task} on {failed[0].data}".strip().removeprefix("on ")
        sys.stderr.write(f"error: {len(failed)} of {len(outcomes)} failed, the first: {first}: {failed[0].reason}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
