"""Fuzzing by hand: `python -m tests.fuzz TARGET --seconds N`.

With atheris (`pip install atheris`) inputs are bred by the code that they reach; without it they are changed at random.
Inputs that break a reader are written to `--out`, one for each place where it breaks. A process that dies leaves the
input of its death there, and one that takes long or much memory ends.
"""

import argparse
import atexit
import hashlib
import importlib.util
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from .mutation import change_bytes, change_json

INSTRUMENTED = [
    "osprey_tp",
    "data_pipelines",
    "eval",
    "app",
    "PIL",
    "json",
    "pickletools",
    "zipfile",
    "tests.fuzz.files",
]

Target = Callable[[bytes], None]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("target", nargs="?", help="what is fuzzed; without it, the targets are listed")
    parser.add_argument("--seconds", type=float, default=60, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the changes (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="folder of findings (default: %(default)s)")
    parser.add_argument("--file", type=Path, help="run the target on this file alone")
    options = parser.parse_args()
    breeding = importlib.util.find_spec("atheris") is not None and options.file is None
    if breeding and options.target:
        import atheris

        with atheris.instrument_imports(include=INSTRUMENTED):
            from .targets import TARGETS
    else:
        from .targets import TARGETS
    if options.target not in TARGETS:
        print(*TARGETS, sep="\n")
        return int(options.target is not None)
    target, seeds = TARGETS[options.target]
    if options.file:
        target(options.file.read_bytes())
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    findings = Findings(options.out, options.target, target)
    if breeding:
        breed(options, findings, seeds())
    return change(options, findings, seeds())


class Findings:
    """A target that notes what breaks it, once for each place, and goes on.

    Args:
        folder: Where inputs are written.
        name: Of the target.
        target: What is fuzzed.
    """

    def __init__(self, folder: Path, name: str, target: Target) -> None:
        self.folder, self.name, self.target = folder, name, target
        self.runs = 0
        self.places: set[str] = set()
        self._death = folder / f"{name}-last"

    def __call__(self, data: bytes) -> None:
        self.runs += 1
        self._death.write_bytes(data)
        try:
            self.target(data)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            place = f"{type(error).__name__} at {Path(frames[-1].filename).name}:{frames[-1].lineno}"
            if place in self.places:
                return
            self.places.add(place)
            file = self.folder / f"{self.name}-{hashlib.sha256(data).hexdigest()[:16]}"
            file.write_bytes(data)
            own = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "site-packages" not in f.filename][-6:]
            print(f"FOUND {place}: {str(error)[:200]!r} by {' '.join(own)}: {file}", flush=True)

    def report(self) -> int:
        """Say what was done; 1 if anything was found."""
        print(f"{self.name}: {self.runs} inputs, {len(self.places)} findings", flush=True)
        self._death.unlink(missing_ok=True)
        return int(bool(self.places))


def breed(options: argparse.Namespace, findings: Findings, seeds: list[bytes]) -> None:
    """Fuzzing led by coverage; ends the process."""
    import atheris

    corpus = options.out / f"{options.target}.corpus"
    corpus.mkdir(exist_ok=True)
    for seed in seeds:
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        source = random.Random(seed)
        changed = change_json(data, source) if source.random() < 0.6 else data
        if changed == data:
            changed = (
                bytes(atheris.Mutate(data, len(data) + 8)) if source.random() < 0.7 else change_bytes(data, source)
            )
        return changed[:max_size]

    arguments = [
        sys.argv[0],
        str(corpus),
        f"-max_total_time={round(options.seconds)}",
        f"-seed={options.seed}",
        f"-artifact_prefix={options.out}/{options.target}-",
        "-max_len=20000",
        "-timeout=20",
        "-rss_limit_mb=3000",
        "-print_final_stats=1",
        "-verbosity=1",
    ]
    atheris.Setup(arguments, findings, custom_mutator=mutate)
    atexit.register(findings.report)
    atheris.Fuzz()


def change(options: argparse.Namespace, findings: Findings, seeds: list[bytes]) -> int:
    """Fuzzing by chance."""
    source = random.Random(options.seed)
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        findings(changed(source.choice(seeds), source))
    return findings.report()


def changed(seed: bytes, source: random.Random) -> bytes:
    """A seed as JSON with other values, or with other bytes."""
    altered = change_json(seed, source) if source.random() < 0.7 else seed
    return change_bytes(seed, source) if altered == seed else altered


if __name__ == "__main__":
    sys.exit(main())
