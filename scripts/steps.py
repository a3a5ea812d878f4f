"""A list of commands run one after the other: resumed where it was, logged, with the time that remains.

Each step is a command of the project as a user would type it. When it has succeeded, a stamp with the key of what it
was made from (its arguments, the files of the project that it reads, the steps before it) is written to
`steps/NAME.json`; a step whose stamp has the right key is not run again. What a command prints goes to `logs/NAME.log`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import selectors
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from osprey_tp.files import write_text

# Of tqdm: "training: 4%| | 12/340 [00:05<". The bar with the most units is the one that spans the whole step; those for
# the loading and saving of weights are left aside.
PROGRESS_BAR = re.compile(rb"(?:^|[\r\n])(?!Loading weights|Writing model)[^\r\n]*?(\d+)/(\d+) \[")
LONGEST_REASON = 240
# How much expected time the first guess of this machine's speed is worth against measured time, in seconds.
GUESS_WEIGHT = 60.0


class StepError(Exception):
    """A step's command did not do all it was asked; the message is one line with the log and the remedy."""


@dataclass(frozen=True)
class Step:
    """A command and what it leaves.

    Attributes:
        name: of its stamp and its log.
        title: what it does, for the reader.
        command: what follows `python -m`.
        output: the folder or file that it makes.
        seconds: how long it takes on two cores; only the ratios of the steps matter, the rest is measured.
        after: names of earlier steps whose outputs it reads.
        reads: files or folders of the project that its result depends on.
        unfinished: what an interrupted command leaves and goes on from, if it is one that can; may be `output` itself.

    """

    name: str
    title: str
    command: tuple[str, ...]
    output: Path
    seconds: float
    after: tuple[str, ...] = ()
    reads: tuple[Path, ...] = ()
    unfinished: Path | None = None

    def __str__(self) -> str:
        return "python -m " + shlex.join(self.command)


def keys_of(steps: Sequence[Step]) -> dict[str, str]:
    """For each step a digest of all that its result depends on, the keys of the steps before it included.

    Raises:
        ValueError: a step comes before one that it needs.

    """
    keys: dict[str, str] = {}
    for step in steps:
        if missing := [name for name in step.after if name not in keys]:
            raise ValueError(f"step {step.name} comes before {missing[0]}, which it needs")
        digest = hashlib.sha256(json.dumps([step.command, [keys[name] for name in step.after]]).encode())
        for file in _files(step.reads):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        keys[step.name] = digest.hexdigest()
    return keys


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        yield from sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def run_steps(steps: Sequence[Step], folder: Path, screen: TextIO = sys.stdout) -> None:
    """Run those steps that are not done yet, in order, from the current directory.

    Args:
        steps: in an order in which each comes after those that it needs.
        folder: gets `steps/` and `logs/`.
        screen: shows the steps, their progress and the time that remains.

    Raises:
        StepError: a command failed, or another process works in the folder.

    """
    with _only_one_in(folder) as lock:
        keys = keys_of(steps)
        progress = Progress(steps, screen)
        for number, step in enumerate(steps, 1):
            stamp = folder / "steps" / f"{step.name}.json"
            seconds = _seconds_if_done(step, stamp, keys[step.name])
            progress.begin(number, step, done_before=seconds is not None)
            if seconds is None:
                _clear(step, stamp, keys[step.name])
                seconds = _run(step, folder / "logs" / f"{step.name}.log", progress, lock)
                _write(stamp, {"key": keys[step.name], "seconds": round(seconds, 1), "command": str(step)})
                progress.end(step, seconds)
            else:
                progress.learn(step, seconds)


@contextmanager
def _only_one_in(folder: Path) -> Iterator[int]:
    """Hold the folder; the lock is handed down to the commands, so it holds as long as one of them still runs."""
    for part in ("steps", "logs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "steps" / "lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StepError(f"another process works in {folder}: wait for it, or name another folder") from None
        yield lock
    finally:
        os.close(lock)


def _seconds_if_done(step: Step, stamp: Path, key: str) -> float | None:
    if not (stamp.exists() and step.output.exists()):
        return None
    found = json.loads(stamp.read_text("utf-8"))
    return float(found["seconds"]) if found.get("key") == key and "seconds" in found else None


def _clear(step: Step, stamp: Path, key: str) -> None:
    """Remove what an earlier run left, but for that from which the command can go on; note that the step has begun."""
    begun = json.loads(stamp.read_text("utf-8")).get("key") if stamp.exists() else None
    for path in {step.output, step.unfinished or step.output}:
        if path != step.unfinished or begun != key:
            _remove(path)
    _write(stamp, {"key": key, "command": str(step)})


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write(path: Path, content: dict[str, object]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def _run(step: Step, log: Path, progress: Progress, lock: int) -> float:
    """Run the command to its end and return its seconds."""
    start = time.monotonic()
    # one thread computes while another process prepares batches: more would only wait for each other
    environment = {"PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "1", "OMP_NUM_THREADS": "1", **os.environ}
    process = subprocess.Popen(
        [sys.executable, "-m", *step.command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        pass_fds=(lock,),
    )
    try:
        with log.open("wb") as file:
            file.write(f"$ {step}\n".encode())
            for chunk in _output_of(process):
                file.write(chunk)
                file.flush()
                progress.show(step, time.monotonic() - start, chunk)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode or not step.output.exists():
        progress.clear_line()
        raise StepError(_failure(step, process.returncode, log))
    return time.monotonic() - start


def _output_of(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """What the process prints as it comes; an empty piece at least twice a second."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector, process.stdout as pipe:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            ready = selector.select(timeout=0.5)
            chunk = os.read(pipe.fileno(), 1 << 16) if ready else b""
            if ready and not chunk:
                break
            yield chunk
    process.wait()


def _failure(step: Step, code: int, log: Path) -> str:
    lines = [line for line in re.split(r"[\r\n]+", log.read_text("utf-8", errors="replace")) if line.strip()]
    reason = lines[-1].strip().removeprefix("error: ") if len(lines) > 1 else f"no message, exit code {code}"
    reason = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}..."
    if not code:
        reason = f"it ended without leaving {step.output}"
    return (
        f"step {step.name} failed: {reason} (all it said: {log}); "
        "mend that and run the same command again, it goes on from this step"
    )


class Progress:
    """Shows the current step and the time that remains: rewritten in place on a terminal, line by line elsewhere."""

    def __init__(self, steps: Sequence[Step], screen: TextIO) -> None:
        self.steps = steps
        self.screen = screen
        self.rewrites = screen.isatty()
        self.interval = 0.5 if self.rewrites else 15.0
        self.expected_done = self.measured_done = GUESS_WEIGHT
        self.number = 0

    def begin(self, number: int, step: Step, done_before: bool = False) -> None:
        """Announce a step."""
        self.number, self.units, self.last_shown = number, (0, 0), 0.0
        said = "done before" if done_before else f"\n      $ {step}"
        self._write(f"[{number}/{len(self.steps)}] {step.title}: {said}\n")

    def learn(self, step: Step, seconds: float) -> None:
        """Learn from a step that has run how fast this machine is."""
        self.expected_done += step.seconds
        self.measured_done += seconds

    def end(self, step: Step, seconds: float) -> None:
        """Say how long the step took and what is left."""
        self.learn(step, seconds)
        left = self._remaining_after_current()
        self.clear_line()
        self._write(f"      {clock(seconds)}" + (f", about {clock(left)} left\n" if left else "\n"))

    def show(self, step: Step, elapsed: float, printed: bytes) -> None:
        """Take note of what the command printed, and show where it is."""
        for bar in PROGRESS_BAR.finditer(printed):
            done, total = int(bar[1]), int(bar[2])
            if total >= self.units[1]:
                self.units = (done, total)
        if elapsed - self.last_shown < self.interval:
            return
        self.last_shown = elapsed
        units = f"{self.units[0]} of {self.units[1]}, " if self.units[1] else ""
        line = f"      {units}{clock(elapsed)}, about {clock(self.remaining(step, elapsed))} left"
        self._write(f"\r\x1b[2K{line}" if self.rewrites else f"{line}\n")

    def remaining(self, step: Step, elapsed: float) -> float:
        """Seconds to the end of all steps, `elapsed` seconds into the current one."""
        expected = step.seconds * self._pace()
        share = self.units[0] / self.units[1] if self.units[1] else 0.0
        current = elapsed * (1 - share) / share if share > 0.1 else max(expected - elapsed, 0.1 * expected)
        return current + self._remaining_after_current()

    def clear_line(self) -> None:
        """Remove the line that is rewritten."""
        if self.rewrites:
            self._write("\r\x1b[2K")

    def _write(self, text: str) -> None:
        self.screen.write(text)
        self.screen.flush()

    def _pace(self) -> float:
        return self.measured_done / self.expected_done

    def _remaining_after_current(self) -> float:
        return self._pace() * sum(step.seconds for step in self.steps[self.number :])


def clock(seconds: float) -> str:
    """Minutes and seconds, as 3:05."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
