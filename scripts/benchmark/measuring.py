"""What benchmarks have in common: times taken in turn, peak memory, the machine's rates, floors, tables.

```
rates = machine_rates(device, dtype)                     products and copies, measured now in this process
times = interleaved({"published": ..., "ours": ...}, 5)  medians of wall and processor time, in turn
ratio(times, "published", "ours")                        median of the rounds' ratios: load that lasts cancels out
Floor(count_flops(work), moved_bytes).seconds(rates)     what the work takes at these rates, at least
peak_in_own_process([...])                               MiB of a process that does one thing
aligned(headings, rows)                                  a table of text
```

A benchmark's `measure` returns what json can hold, `machine(...)` among it; `--json` writes it to a file.
"""

from __future__ import annotations

import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

MIB = 1 << 20
PRODUCT_SIDE = 2048
"""Of the square matrices whose product gives the machine's rate."""
COPIED_BYTES = 256 * MIB
RATE_REPEATS = 5


@dataclass(frozen=True)
class Times:
    """Seconds of every round, in order.

    Attributes:
        wall: By the clock on the wall.
        processor: Of all threads of this process; on a shared machine it says more than the wall's.
    """

    wall: tuple[float, ...]
    processor: tuple[float, ...]

    @classmethod
    def median_of(cls, works: Sequence[Times]) -> Times:
        """Of every round, the median over works of one kind."""
        walls, processors = ([getattr(work, clock) for work in works] for clock in ("wall", "processor"))
        return cls(
            tuple(map(statistics.median, zip(*walls, strict=True))),
            tuple(map(statistics.median, zip(*processors, strict=True))),
        )

    @property
    def seconds(self) -> float:
        """Median by the wall's clock."""
        return statistics.median(self.wall)

    @property
    def processor_seconds(self) -> float:
        """Median of the processor's time."""
        return statistics.median(self.processor)


def interleaved(
    works: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device | None = None
) -> dict[str, Times]:
    """Run every work in turn, `repeats` times round; the caller warms up.

    Args:
        works: By name.
        repeats: Rounds, at least one.
        device: Waited for before and after every work, if it is a GPU.
    """
    rounds = [{name: timed(work, device) for name, work in works.items()} for _ in range(repeats)]
    return {name: Times(*zip(*(times[name] for times in rounds), strict=True)) for name in works}


def timed(work: Callable[[], Any], device: torch.device | None = None) -> tuple[float, float]:
    """Seconds by the wall's clock, and of the processor, that one run takes."""
    wait(device)
    wall, processor = time.perf_counter(), time.process_time()
    work()
    wait(device)
    return time.perf_counter() - wall, time.process_time() - processor


def ratio(times: Mapping[str, Times], baseline: str, ours: str, clock: Literal["wall", "processor"] = "wall") -> float:
    """How many times faster `ours` is than `baseline`: the median over the rounds."""
    pairs = zip(getattr(times[baseline], clock), getattr(times[ours], clock), strict=True)
    return statistics.median(slow / fast for slow, fast in pairs)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread, as a loading process does, and then on as many as before."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def wait(device: torch.device | None) -> None:
    """Until a GPU has done what it was given."""
    if device is not None and device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Rates:
    """What the machine reaches at best.

    Attributes:
        flops: Floating-point operations a second of a large matrix product.
        bytes: Bytes read and written a second by a large copy.
    """

    flops: float
    bytes: float


def machine_rates(device: torch.device | None = None, dtype: torch.dtype | None = None) -> Rates:
    """Measure the rates here and now; the best of a few runs each.

    Args:
        device: The processor by default.
        dtype: Of the product, float32 by default.
    """
    import torch

    device = device or torch.device("cpu")
    side = PRODUCT_SIDE if device.type == "cpu" else 4 * PRODUCT_SIDE
    left, right = (torch.rand(side, side, device=device).to(dtype or torch.float32) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)

    def best(work: Callable[[], Any]) -> float:
        work()
        return min(timed(work, device)[0] for _ in range(RATE_REPEATS))

    return Rates(
        flops=2 * side**3 / best(lambda: torch.mm(left, right, out=product)),
        bytes=2 * COPIED_BYTES / best(lambda: target.copy_(source)),
    )


@dataclass(frozen=True)
class Floor:
    """What a work needs whoever does it.

    Attributes:
        flops: Floating-point operations.
        bytes: Bytes that must be read or written.
    """

    flops: float
    bytes: float

    def seconds(self, rates: Rates) -> float:
        """The least time at these rates: arithmetic and memory may overlap in full."""
        return max(self.flops / rates.flops, self.bytes / rates.bytes)


def flop_counter() -> FlopCounterMode:
    """Torch's counter, to be entered, with formulas of attention on a processor for every version of torch."""
    from torch.utils.flop_counter import FlopCounterMode

    from osprey_tp.training.estimation_rehearsal import FLOP_FORMULAS

    counter = FlopCounterMode(display=False)
    counter.flop_registry = dict(FLOP_FORMULAS)
    return counter


def count_flops(work: Callable[[], Any]) -> float:
    """Floating-point operations of all matrix products and attentions of one run."""
    with flop_counter() as counter:
        work()
    return float(counter.get_total_flops())


def peak_mib(device: torch.device | None = None) -> float:
    """Most MiB so far: of the GPU's memory since `torch.cuda.reset_peak_memory_stats`, else of this process."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_in_own_process(arguments: Sequence[str]) -> float:
    """MiB that `python -m scripts.benchmark` with these arguments prints, and nothing else, of a process of its own.

    Raises:
        OSError: if the process fails, with its last line.
    """
    command = [sys.executable, "-m", "scripts.benchmark", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command[1:])} failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    return float(done.stdout)


def machine(device: torch.device | None = None, rates: Rates | None = None) -> dict[str, Any]:
    """Hardware, versions, date and measured rates, for json and for the tables of `scripts/benchmarks.md`."""
    import torch
    import transformers

    gpu = device is not None and device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else _processor_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "rates": None if rates is None else asdict(rates),
    }


def machine_line(found: Mapping[str, Any]) -> str:
    """What `machine` returned, in a line."""
    line = f"{found['device']}, {found['threads']} threads; torch {found['torch']}; {found['date']}"
    if found["rates"] is None:
        return line
    return f"{line}; {found['rates']['flops'] / 1e9:,.0f} GFLOP/s, {found['rates']['bytes'] / 1e9:,.1f} GB/s"


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: the first column to the left, the others to the right."""
    lines = [tuple(headings), *(tuple(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()

    return "\n".join(map(line, lines))


def _processor_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            named = (line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
            return next(named, platform.processor() or platform.machine())
    except OSError:
        return platform.processor() or platform.machine()
