"""Cold starts: every case is a process of its own, from its first instruction to its end.

Each case stands beside its floor, a process that only imports what the case cannot do without. Files are in the
system's cache after the first round, which does not count. Memory is what a process that opens the medium model holds
for itself alone at most, beyond what it held before; weights that stay in their file, mapped, are not in it.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benchmark.measuring import MIB, aligned, machine, machine_line, peak_in_own_process

LIBRARIES = (
    "import torch, torchvision.transforms.v2, transformers; "
    "from transformers import AutoProcessor, AutoTokenizer, PreTrainedModel; "
    "from transformers.generation import GenerationMixin; "
    "from transformers.image_processing_backends import TorchvisionBackend"
)
NAMES = "import osprey_tp; [getattr(osprey_tp, name) for name in osprey_tp.__all__]"
OPEN = "import sys; from osprey_tp import RegionDescriber; RegionDescriber.from_pretrained(sys.argv[1], device='cpu')"
SAMPLING_SECONDS = 0.002
DTYPES = (None, "bfloat16")


@dataclass(frozen=True)
class _Case:
    """A cold start.

    Attributes:
        name: What starts.
        arguments: Of Python; `{model}` and `{picture}` stand for the folder of the tiny model and for a picture.
        floor: Code of the floor.
        floor_name: What the floor does.
        bar: Seconds that the case may take at most.
    """

    name: str
    arguments: tuple[str, ...]
    floor: str
    floor_name: str
    bar: float | None = None


CASES: Mapping[str, _Case] = {
    "help": _Case(
        "osprey-tp --help", ("-m", "osprey_tp", "--help"), "import argparse, json, pathlib", "Python alone", 1.0
    ),
    "import": _Case("import osprey_tp", ("-c", "import osprey_tp"), "pass", "Python alone"),
    "names": _Case("every public name of it", ("-c", NAMES), LIBRARIES, "torch and transformers"),
    "open": _Case("open the tiny model", ("-c", OPEN, "{model}"), LIBRARIES, "torch and transformers"),
    "answer": _Case(
        "its first answer: osprey-tp describe",
        (
            *("-m", "osprey_tp", "describe", "{picture}", "--model", "{model}", "--box", "40,30,200,150"),
            *("--device", "cpu", "--max-new-tokens", "10"),
        ),
        LIBRARIES,
        "torch and transformers",
        10.0,
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=tuple(CASES), help="(default: all)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="rounds, of which the median counts")
    parser.add_argument("--no-memory", action="store_true", help="leave the processes that measure memory out")
    parser.add_argument("--peak-of", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of all cases and their floors, and memory of opening a model.

    Raises:
        ValueError: for less than one repeat.
        OSError: if a process fails.
    """
    if options.peak_of is not None:
        return {"peak_mib": _peak_while_opening(options.peak_of, options.dtype)}
    if options.repeats < 1:
        raise ValueError(f"--repeats must be at least 1, not {options.repeats}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_model_and_picture(folder, {"open", "answer"} & set(options.cases))
        return {
            "machine": machine(),
            "repeats": options.repeats,
            "rows": _timed([CASES[case] for case in options.cases], folder, options.repeats),
            "memory": [] if options.no_memory else _memory(folder),
        }


def table(result: Mapping[str, Any]) -> str:
    """The figures as aligned text."""
    if "peak_mib" in result:
        return f"{result['peak_mib']:.1f}"
    rows = [
        (
            row["name"],
            f"{row['seconds']:.2f}",
            f"{row['processor_seconds']:.2f}",
            f"{row['floor_seconds']:.2f}",
            f"{row['of_floor']:.1f}",
            "-" if row["bar"] is None else f"{row['bar']:g}",
            row["floor"],
        )
        for row in result["rows"]
    ]
    headings = ("a process of its own", "s", "processor s", "floor s", "of floor", "at most s", "floor")
    lines = [machine_line(result["machine"]), aligned(headings, rows)]
    lines += [
        f"opening the medium model in {row['dtype']}: {row['peak_mib']:.0f} MiB of memory of its own at most, "
        f"{row['copies']:.2f} times its weights of {row['weights_mib']:.0f} MiB"
        for row in result["memory"]
    ]
    return "\n".join(lines)


def _timed(cases: Sequence[_Case], folder: Path, repeats: int) -> list[dict[str, Any]]:
    """All cases and floors in turn, `repeats` times after a round that warms up."""
    places = {"model": str(folder / "tiny"), "picture": str(folder / "picture.png")}
    commands = {case.name: [argument.format(**places) for argument in case.arguments] for case in cases}
    commands |= {case.floor: ["-c", case.floor] for case in cases}
    rounds = [{name: _seconds(command) for name, command in commands.items()} for _ in range(repeats + 1)][1:]

    def median(name: str, clock: int) -> float:
        return statistics.median(times[name][clock] for times in rounds)

    return [
        {
            "name": case.name,
            "seconds": median(case.name, 0),
            "processor_seconds": median(case.name, 1),
            "floor": case.floor_name,
            "floor_seconds": median(case.floor, 0),
            "of_floor": statistics.median(times[case.name][0] / times[case.floor][0] for times in rounds),
            "bar": case.bar,
        }
        for case in cases
    ]


def _seconds(arguments: Sequence[str]) -> tuple[float, float]:
    """Seconds by the wall's clock and of the processor that Python takes with these arguments.

    Raises:
        OSError: if it fails.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=_environment())
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise OSError(f"python {' '.join(arguments[:3])} failed: {last}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _environment() -> dict[str, str]:
    """This process's, with the checkout importable from anywhere and nothing asked of a hub."""
    checkout = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": checkout, "HF_HUB_OFFLINE": "1"}


def _write_model_and_picture(folder: Path, needed: set[str]) -> None:
    """A random tiny model in `folder/tiny` and a picture, if any case needs them."""
    if not needed:
        return
    import numpy as np
    import torch
    from PIL import Image

    from osprey_tp.configuration import OspreyTPConfig
    from osprey_tp.modeling import OspreyTPForConditionalGeneration
    from osprey_tp.processing import OspreyTPProcessor, add_region_tokens, chat_template
    from osprey_tp.prompts import CATEGORY_QUESTION, OVERVIEW
    from scripts.tiny_tokenizer import train_tiny_tokenizer

    tokenizer = train_tiny_tokenizer([chat_template("vicuna_v1"), OVERVIEW, CATEGORY_QUESTION])
    choices: dict[str, Any] = {"vocab_size": len(tokenizer), **add_region_tokens(tokenizer)}
    config = OspreyTPConfig.tiny(**choices)
    torch.manual_seed(0)
    OspreyTPForConditionalGeneration(config).save_pretrained(folder / "tiny")
    OspreyTPProcessor.from_config(config, tokenizer).save_pretrained(folder / "tiny")
    pixels = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")


def _memory(folder: Path) -> list[dict[str, Any]]:
    """Memory of opening the medium model, in the numbers of its file and in half of their length."""
    from scripts.benchmark.medium_model import medium_describer

    describer = medium_describer()
    describer.model.save_pretrained(folder / "medium")
    describer.processor.save_pretrained(folder / "medium")
    count = sum(parameter.numel() for parameter in describer.model.parameters())
    saved = next(describer.model.parameters()).dtype
    rows = []
    for dtype in DTYPES:
        command = ["startup", "--peak-of", str(folder / "medium"), *(["--dtype", dtype] if dtype else [])]
        peak = peak_in_own_process(command)
        weights = count * (saved.itemsize if dtype is None else 2) / MIB
        name = dtype or f"{str(saved).removeprefix('torch.')}, as saved"
        rows.append({"dtype": name, "peak_mib": peak, "weights_mib": weights, "copies": peak / weights})
    return rows


def _peak_while_opening(folder: str, dtype: str | None) -> float:
    """MiB of anonymous memory that this process gains at most while it opens a model; sampled, for want of a peak."""
    from osprey_tp import RegionDescriber

    before = peak = _anonymous_mib()
    opened = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not opened.wait(SAMPLING_SECONDS):
            peak = max(peak, _anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        describer = RegionDescriber.from_pretrained(folder, device="cpu", dtype=dtype)
    finally:
        opened.set()
        watcher.join()
    peak = max(peak, _anonymous_mib())
    del describer
    return peak - before


def _anonymous_mib() -> float:
    with Path("/proc/self/status").open(encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024
