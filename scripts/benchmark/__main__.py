"""Measure one thing and print it as a table; `--json FILE` writes it down as well.

    python -m scripts.benchmark sample --json sample.json

Each benchmark has options of its own: `python -m scripts.benchmark NAME --help`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast


class BenchmarkModule(Protocol):
    """What the module of a benchmark offers; it imports what is slow to import inside these functions."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the benchmark's own options."""

    def measure(self, options: argparse.Namespace) -> dict[str, Any]:
        """Measure, and return what json can hold."""

    def table(self, result: Mapping[str, Any]) -> str:
        """What `measure` returned, for people."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its module below this package, and what it measures."""

    module: str
    summary: str

    def load(self) -> BenchmarkModule:
        """The imported module."""
        return cast(BenchmarkModule, import_module(f"scripts.benchmark.{self.module}"))


BENCHMARKS: Mapping[str, Benchmark] = {
    "all": Benchmark("page", "every other benchmark in a process of its own; their tables on one page"),
    "app": Benchmark("app", "what a user of the app waits for: the second click on a picture, everything in it"),
    "budgets": Benchmark(
        "budgets", "what fewer tiles, or tiles near regions alone, cost in likelihood and gain in speed"
    ),
    "compile": Benchmark("compile", "pictures through a compiled vision tower, against the tower as it is"),
    "eval": Benchmark("eval", "regions/s of the evaluation's runner against encoding the picture for every region"),
    "loader": Benchmark("loader", "training samples a second, against the published loader on the same records"),
    "masks": Benchmark("masks", "regions to the coverage of cells, against float masks at canvas size"),
    "prepare": Benchmark("prepare", "preparing a COCO file of a million annotations, and opening the result"),
    "regions": Benchmark("regions", "answers about many regions of one picture, against the published procedure"),
    "sample": Benchmark(
        "sample", "one training sample part by part: picture, tiles, regions, text; against bare libraries"
    ),
    "startup": Benchmark("startup", "--help, import, opening a model, first answer, each in a process of its own"),
    "score": Benchmark("score", "log-likelihoods of class names about regions, against a forward pass for each pair"),
    "train-step": Benchmark(
        "train_step", "optimiser steps of a random model: samples, tokens and FLOPs a second, utilisation, memory"
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    options = _parser().parse_args(arguments)
    benchmark = BENCHMARKS[options.name].load()
    try:
        with redirect_stdout(sys.stderr):  # libraries tell there what they will; the table stands alone
            result = benchmark.measure(options)
        if options.json is not None:
            options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    sys.stdout.write(benchmark.table(result) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name, benchmark in BENCHMARKS.items():
        own = names.add_parser(name, help=benchmark.summary, description=benchmark.summary)
        own.add_argument("--json", type=Path, metavar="FILE", help="file to write the figures to")
        benchmark.load().add_arguments(own)
    return parser


if __name__ == "__main__":
    sys.exit(main())
