"""All benchmarks, one after the other, and the page of their tables.

    python -m scripts.benchmark all --markdown scripts/benchmarks.md --results benchmarks

Each runs in a process of its own, in the size that `ARGUMENTS` gives it: all of them together take about ten minutes on
two idle cores. One that fails or takes too long is told on the page, the others run on, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ARGUMENTS: Mapping[str, Sequence[str]] = {
    "prepare": ("--annotations", "50000", "--images", "10000"),
}
"""Where the size that a benchmark has by default takes too long for a page."""

LONGEST_SECONDS = 240.0
INTRODUCTION = """# Benchmarks

The command below wrote this page: it runs each benchmark in a process of its own, and no figure is typed by hand.
Ratios are against a baseline in the same process, on the same data and, where there is a model, with the same weights
and the same answers. Floors are what the bytes and floating-point operations of the work, or bare libraries, take on
this machine, measured there and then.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these benchmarks (default: all)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="page to write")
    parser.add_argument("--results", type=Path, metavar="DIR", help="folder for NAME.json of every benchmark")
    parser.add_argument(
        "--longest", type=float, default=LONGEST_SECONDS, metavar="S", help="seconds for one benchmark (%(default)s)"
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmarks and write the page.

    Returns:
        `machine`, and for each name its `command`, `seconds`, `table` and `result`.

    Raises:
        ValueError: for a name that there is not; and, after the page is written, naming every benchmark that failed.
    """
    from osprey_tp.files import write_text
    from scripts.benchmark.measuring import machine

    found: dict[str, Any] = {"machine": machine() | _resources(), "benchmarks": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.results or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in _chosen(options.only):
            sys.stderr.write(f"{name} ...\n")
            found["benchmarks"][name] = _run(name, folder / f"{name}.json", options.longest)
    if options.markdown is not None:
        write_text(options.markdown, page(found, _command(options)))
    failed = {name: run["error"] for name, run in found["benchmarks"].items() if "error" in run}
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise ValueError(f"{len(failed)} of {len(found['benchmarks'])} benchmarks failed: {reasons}")
    return found


def table(result: Mapping[str, Any]) -> str:
    """All tables, one below the other."""
    return "\n\n".join(f"{run['command']}\n{run['table']}" for run in result["benchmarks"].values())


def page(found: Mapping[str, Any], command: str) -> str:
    """The page, in Markdown.

    Args:
        found: As `measure` returns it; a benchmark that failed has `error` in place of `table`.
        command: That made it.
    """
    of = found["machine"]
    lines = [
        INTRODUCTION,
        f"```bash\n{command}\n```",
        "",
        "| | |",
        "|---|---|",
        f"| date | {of['date']} |",
        f"| processor | {of['device']}, {of['cores']} cores, {of['memory_gib']:.0f} GiB of memory |",
        f"| versions | Python {of['python']}, torch {of['torch']}, transformers {of['transformers']} |",
    ]
    for name, run in found["benchmarks"].items():
        shown = f"Failed: {run['error']}" if "error" in run else f"```text\n{run['table']}\n```"
        summary = _summaries()[name]
        lines += ["", f"## {name}", "", f"{summary[:1].upper()}{summary[1:]}. Took {run['seconds']:.0f} s."]
        lines += ["", f"```bash\n{run['command']}\n```", "", shown]
    return "\n".join(lines) + "\n"


def _summaries() -> dict[str, str]:
    """What every other benchmark measures, by name."""
    from scripts.benchmark.__main__ import BENCHMARKS

    return {name: benchmark.summary for name, benchmark in BENCHMARKS.items() if benchmark.module != "page"}


def _chosen(only: Sequence[str] | None) -> list[str]:
    known = list(_summaries())
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise ValueError(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    return list(only or known)


def _command(options: argparse.Namespace) -> str:
    """The line that makes the page again."""
    given = ["--only", *options.only] if options.only else []
    given += ["--markdown", str(options.markdown)]
    return shlex.join(["python", "-m", "scripts.benchmark", "all", *given])


def _run(name: str, file: Path, longest: float) -> dict[str, Any]:
    """One benchmark: `command`, `seconds`, and `table` and `result`, or `error`."""
    arguments = ["-m", "scripts.benchmark", name, *ARGUMENTS.get(name, ())]
    start = time.perf_counter()
    run: dict[str, Any] = {"command": shlex.join(["python", *arguments])}
    process = subprocess.Popen(
        [sys.executable, *arguments, "--json", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that what it started ends with it
    )
    try:
        shown, said = process.communicate(timeout=longest)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return run | {"seconds": longest, "error": f"took more than {longest:g} s"}
    run["seconds"] = time.perf_counter() - start
    if process.returncode:
        last = (said.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        return run | {"error": last.removeprefix("error: ")}
    return run | {"table": shown.strip("\n"), "result": json.loads(file.read_text(encoding="utf-8"))}


def _resources() -> dict[str, Any]:
    """Cores that this process may use, and the machine's memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cores": cores, "memory_gib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)}
