"""Log-likelihoods of many class names about many regions of one picture, against one forward pass for each pair.

    python -m scripts.benchmark score

A pair's pass reads the whole prompt with the name as its answer, one prompt at a time; the picture's visual tokens and
the regions' tokens are given to it, so that the vision side, which would cost far more, is left out of the comparison.
The pairs' time is that of `--pairs` of them, taken in turn with ours, times the number of all pairs over that number;
with `--pairs 0` all are run. Their log-likelihoods must agree.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.benchmark.measuring import (
    Floor,
    aligned,
    count_flops,
    interleaved,
    machine,
    machine_line,
    machine_rates,
    ratio,
)

if TYPE_CHECKING:
    import numpy as np

    from osprey_tp.describer import RegionDescriber
    from osprey_tp.sessions import ImageSession

FIRST_WORDS = ("small", "large", "red", "old", "wooden", "striped", "round", "open", "wet", "toy")
LAST_WORDS = ("dog", "wine glass", "bench", "potted plant", "traffic light", "bear", "dining table", "kite")
AGREEMENT = 1e-3
"""Largest relative difference of a log-likelihood from that of its pair's own pass."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--regions", type=int, default=16, metavar="K", help="of the picture (%(default)s)")
    parser.add_argument("--names", type=int, default=80, metavar="N", help="class names, 80 at most (%(default)s)")
    parser.add_argument("--pairs", type=int, default=8, metavar="P", help="read one by one; 0 for all (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs, of which the median counts")
    parser.add_argument("--size", choices=("medium", "tiny"), default="medium", help="of the model (%(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both ways, their ratio, and the floor.

    Raises:
        ValueError: for a number below 1, more names than there are, or where log-likelihoods differ.
    """
    names = [f"{first} {last}" for first in FIRST_WORDS for last in LAST_WORDS]
    if min(options.regions, options.names, options.repeats) < 1 or options.pairs < 0:
        raise ValueError("--regions, --names and --repeats must be at least 1, --pairs at least 0")
    if options.names > len(names):
        raise ValueError(f"--names must be at most {len(names)}, not {options.names}")
    with tempfile.TemporaryDirectory() as folder:
        return _measured(Path(folder), names[: options.names], options)


def table(result: Mapping[str, Any]) -> str:
    """The figures as aligned text."""
    timed = "all of them" if result["timed_pairs"] == result["pairs"] else f"from {result['timed_pairs']} of them"
    rows = [
        (f"one pass for each of {result['pairs']} pairs, {timed}", f"{result['pairs_seconds']:.2f} s", "1.0"),
        ("session.score", f"{result['seconds']:.2f} s", f"{result['ratio']:.1f}"),
        ("floor", f"{result['floor_seconds']:.2f} s", f"{result['pairs_seconds'] / result['floor_seconds']:.1f}"),
    ]
    return "\n".join(
        [
            machine_line(result["machine"]),
            f"{result['size']} model: {result['names']} names, {result['regions']} regions; "
            f"log-likelihoods differ by {result['difference']:.0e} of their size at most",
            aligned(("", "time", "ratio"), rows),
            f"session.score takes {result['seconds'] / result['floor_seconds']:.1f} times the floor",
        ]
    )


def _measured(folder: Path, names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from scripts.benchmark.medium_model import random_describer
    from scripts.benchmark.regions import random_masks, write_random_picture

    describer = random_describer(options.size)
    picture, masks = write_random_picture(folder / "picture.png"), random_masks(options.regions)
    session = describer.open(picture)
    pairs = [(region, name) for region in range(options.regions) for name in range(len(names))]
    some = pairs if options.pairs == 0 else pairs[:: max(1, len(pairs) // options.pairs)][: options.pairs]
    found: dict[str, np.ndarray] = {}

    def ours() -> None:
        opened = describer.open(picture)
        found["ours"] = opened.score(names, masks)

    def one_by_one() -> None:
        found["pairs"] = _one_by_one(describer, session, [(masks[region], names[name]) for region, name in some])

    ours()  # warms up
    rates = machine_rates(describer.model.device)
    times = interleaved({"ours": ours, "pairs": one_by_one}, options.repeats)
    own = np.array([found["ours"][pair] for pair in some])
    difference = float(np.abs(own / found["pairs"] - 1).max())
    if difference > AGREEMENT:
        raise ValueError(f"log-likelihoods differ from those of single passes by {difference:.1e} of their size")
    share = len(pairs) / len(some)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in describer.model.parameters())
    floor = Floor(count_flops(ours), float(weights))
    return {
        "machine": machine(describer.model.device, rates),
        "size": options.size,
        "regions": options.regions,
        "names": len(names),
        "pairs": len(pairs),
        "timed_pairs": len(some),
        "difference": difference,
        "pairs_seconds": times["pairs"].seconds * share,
        "seconds": times["ours"].seconds,
        "ratio": ratio(times, "pairs", "ours") * share,
        "processor_ratio": ratio(times, "pairs", "ours", "processor") * share,
        "floor_flops": floor.flops,
        "floor_bytes": floor.bytes,
        "floor_seconds": floor.seconds(rates),
    }


def _one_by_one(describer: RegionDescriber, session: ImageSession, pairs: list[tuple[np.ndarray, str]]) -> np.ndarray:
    """Log-likelihood of every pair of a region and a text, by a forward pass over its whole prompt."""
    import numpy as np
    import torch

    from osprey_tp.modeling import OspreyTPFeatures
    from osprey_tp.prompts import CATEGORY_QUESTION

    scores = []
    for mask, text in pairs:
        asked = session.conversation([mask], CATEGORY_QUESTION)
        batch = describer.processor.prepare([[*asked, {"role": "assistant", "content": text}]], return_labels=True)
        with torch.no_grad():
            visual, regions = session.picture.features([asked])
            logits = describer.model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                mm_encoder_outputs={"image": OspreyTPFeatures(pooler_output=[visual], region_tokens=regions)},
            ).logits[0, :-1]
        labels = batch["labels"][0, 1:]
        answered = labels != -100
        chosen = logits[answered].double().log_softmax(-1)
        scores.append(float(chosen.gather(1, labels[answered, None]).sum()))
    return np.array(scores)
