"""What many requests to the app, or many steps of training, leave behind: `python -m tests.long_runs app|train`.

Memory, open files and threads of the process are noted again and again; once the first quarter is over, straight lines
are fitted to them. Whatever grows with the work has a slope; caches that fill up once, and the allocator's own moods,
have next to none over thousands of requests.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import psutil

WARM_UP = 0.25
"""Share of the run that is not looked at."""


@dataclass
class Watch:
    """What this process held after so many units of work."""

    units: list[int] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def note(self, unit: int) -> None:
        gc.collect()
        process = psutil.Process()
        self.units.append(unit)
        self.memory.append(process.memory_info().rss)
        self.files.append(process.num_fds())
        self.threads.append(process.num_threads())


@dataclass(frozen=True)
class Slopes:
    """Growth after the warm-up, and what was held in the end."""

    units: int
    bytes_a_unit: float
    files_a_unit: float
    threads_a_unit: float
    mebibytes: float
    files: int
    threads: int
    seconds: float = 0.0


def slopes_of(watch: Watch, seconds: float = 0.0) -> Slopes:
    """Least squares over everything that was noted after the warm-up."""
    first = next(place for place, unit in enumerate(watch.units) if unit >= WARM_UP * watch.units[-1])
    units = np.array(watch.units[first:], float)
    of = [float(np.polyfit(units, values[first:], 1)[0]) for values in (watch.memory, watch.files, watch.threads)]
    return Slopes(
        watch.units[-1], *of, round(watch.memory[-1] / 2**20, 1), watch.files[-1], watch.threads[-1], round(seconds, 1)
    )


def measured(
    run: Callable[[int, Callable[[int], None]], None], units: int, tell: Callable[[Slopes], object] = lambda found: None
) -> Slopes:
    """Do `units` pieces of work; note what is held a hundred times, in a short run twenty times, and tell it so far."""
    watch, begin = Watch(), time.monotonic()
    every = max(units // 100, min(units // 20, 10), 1)

    def done(unit: int) -> None:
        if unit % every == 0:
            watch.note(unit)
            if len(watch.units) > 3:
                tell(slopes_of(watch, time.monotonic() - begin))

    run(units, done)
    return slopes_of(watch, time.monotonic() - begin)


def serve_requests(requests: int, done: Callable[[int], None]) -> None:
    """A real server in this process, a tiny model, and a client: answers whole and streamed, refusals, health.

    There are more pictures than the server keeps open, so that it opens and closes some all the time.
    """
    import httpx

    from app.interface import build_interface
    from app.server import start
    from app.service import Limits, Service
    from osprey_tp.grabcut import GrabCutSegmenter

    from .serving import data_url, encoded, free_port, message, scene
    from .tiny_models import tiny_describer

    service = Service(tiny_describer(), GrabCutSegmenter(), Limits(pictures=4), name="test/model")
    blocks = build_interface(service)
    address = start(blocks, service, host="127.0.0.1", port=free_port()).rstrip("/")
    urls = [data_url(encoded(scene((20 * number, 90, 200), (64, 48)))) for number in range(9)]
    region = {"box": [10, 10, 40, 40]}
    try:
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
            for number in range(1, requests + 1):
                shown = [message("What is it?", [region], urls[number % len(urls)])]
                asked = {"model": "test/model", "messages": shown, "max_tokens": 2, "stream": number % 4 == 1}
                if number % 4 == 2:
                    asked["messages"] = [message("?", [{"box": [1, 1, 1, 1]}], urls[0])]
                answer = client.post("/v1/chat/completions", json=asked)
                answer.read()
                assert answer.status_code == (400 if number % 4 == 2 else 200), answer.text
                if number % 4 == 3:
                    assert client.get("/health").status_code == 200
                done(number)
    finally:
        service.line.close()
        blocks.close(verbose=False)


def train_steps(steps: int, done: Callable[[int], None]) -> None:
    """Stage 3 on records in little pictures, over many epochs, with checkpoints and a process that loads data."""
    from osprey_tp.training.trainer import StageTrainer
    from scripts import train

    from .test_training_run import settings, write_records
    from .tiny_models import save_tiny_model

    training_step, count = StageTrainer.training_step, 0

    def counted(trainer: StageTrainer, *rest: object) -> object:
        nonlocal count
        loss = training_step(trainer, *rest)
        count += 1
        done(count)
        return loss

    with tempfile.TemporaryDirectory() as folder:
        start, records = save_tiny_model(Path(folder, "model")), write_records(Path(folder, "data"), 24)
        more = (f"max_steps={steps}", "batch_size=2", f"save_every={max(1, steps // 10)}", "workers=1", "log_every=10")
        StageTrainer.training_step = counted
        try:
            code = train.main([*settings(start, records, Path(folder, "out"), *more), "stage=3"])
        finally:
            StageTrainer.training_step = training_step
        assert code == 0


RUNS = {"app": serve_requests, "train": train_steps}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.long_runs", description=__doc__)
    parser.add_argument("what", choices=RUNS)
    parser.add_argument("--requests", "--steps", dest="units", type=int, default=None, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the slopes as JSON, those so far while it runs")
    options = parser.parse_args()

    def write(found: Slopes) -> None:
        if options.out is not None:
            options.out.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")

    found = measured(RUNS[options.what], options.units or {"app": 10_000, "train": 2_000}[options.what], write)
    sys.stdout.write(f"{found}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
