"""What a smaller budget of tiles costs and gains: likelihood of right names, accuracy, time.

    python -m scripts.benchmark budgets --model runs/quickstart/model --data runs/quickstart/records/objects_test

For every budget, every region of the records is scored: each name of the data against all others
(`ImageSession.score`). The loss is the mean, over regions, of what the log-likelihood of the right name falls by. The
time is that of opening the picture and asking one question, about its first region and about all its regions one by
one, of the same pictures for every budget in turn. It is measured with the same model, and with a random one of the
proportions of a real one (24 layers of tower) on a picture of nine tiles with regions of 60 to 160 pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.benchmark.measuring import aligned, interleaved, machine, machine_line, ratio

if TYPE_CHECKING:
    from osprey_tp.describer import RegionDescriber

QUICKSTART = Path("runs/quickstart")
ALL, NEAR = "all tiles", "near regions"
LARGE_SIDE = 1008
"""Of the picture for the random model, in pixels: nine tiles."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument(
        "--model", type=Path, default=QUICKSTART / "model", metavar="DIR", help="trained model (%(default)s)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=QUICKSTART / "records/objects_test",
        metavar="DIR",
        help="prepared records whose regions have names (%(default)s)",
    )
    parser.add_argument("--max-tiles", type=int, nargs="*", default=[4, 1], metavar="N", help="budgets (%(default)s)")
    parser.add_argument("--pictures", type=int, default=24, metavar="N", help="that are scored (%(default)s)")
    parser.add_argument("--timed", type=int, default=4, metavar="N", help="pictures that are timed (%(default)s)")
    parser.add_argument("--regions", type=int, default=8, metavar="K", help="of the large picture (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="rounds, of which the median counts")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Loss of likelihood, accuracy and ratios of time for every budget.

    Raises:
        ValueError: for a number below 1, records without names, or a budget that the model cannot keep.
        OSError: if model or data are missing.
    """
    from eval.loading import load_describer, open_records
    from osprey_tp.prompts import CATEGORY_QUESTION

    for name in ("pictures", "timed", "regions", "repeats"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, not {getattr(options, name)}")
    records = open_records(options.data)
    describer = load_describer(options.model)
    cases = [
        (records.image_path(record), [region for region in record.regions if region.name])
        for record in islice(records, options.pictures)
    ]
    cases = [(path, regions) for path, regions in cases if regions]
    if not cases:
        raise ValueError(f"no region of {options.data} has a name; give records of objects, such as objects_test")
    names = sorted({str(region.name) for _, regions in cases for region in regions})
    budgets: dict[str, dict[str, Any]] = {ALL: {}, NEAR: {"tiles": "near-regions"}}
    budgets |= {f"max_tiles {most}": {"max_tiles": most} for most in options.max_tiles}
    rows = {name: _scored(describer, cases, names, budget) for name, budget in budgets.items()}
    timed = [(path, [region.segmentation for region in regions]) for path, regions in cases[: options.timed]]
    large, picture = _large(options.regions)
    for kind, (asked, model) in {"trained": (timed, describer), "large": ([picture], large)}.items():
        for how, count in (("one", 1), ("all", None)):
            works = {
                name: _work(model, [(path, regions[:count]) for path, regions in asked], budget, CATEGORY_QUESTION)
                for name, budget in budgets.items()
            }
            for work in works.values():
                work()
            times = interleaved(works, options.repeats)
            for name in budgets:
                rows[name][f"{kind}_{how}"] = {
                    "seconds": times[name].seconds,
                    "ratio": ratio(times, ALL, name),
                    "processor_ratio": ratio(times, ALL, name, "processor"),
                }
    for row in rows.values():
        row["loss"] = rows[ALL]["log_likelihood"] - row["log_likelihood"]
    return {
        "machine": machine(describer.model.device),
        "pictures": len(cases),
        "regions": sum(len(regions) for _, regions in cases),
        "names": len(names),
        "timed_pictures": len(timed),
        "large_regions": options.regions,
        "budgets": rows,
    }


def table(result: Mapping[str, Any]) -> str:
    """The figures as aligned text."""

    def speed(row: Mapping[str, Any], kind: str) -> str:
        return f"{row[kind]['ratio']:.2f} ({row[kind]['processor_ratio']:.2f})"

    quality = [
        (
            name,
            f"{row['tokens']:.0f}",
            f"{row['log_likelihood']:.3f}",
            f"{row['loss']:.3f}",
            f"{100 * row['accuracy']:.1f}%",
        )
        for name, row in result["budgets"].items()
    ]
    kinds = ("trained_one", "trained_all", "large_one", "large_all")
    speeds = [(name, *(speed(row, kind) for kind in kinds)) for name, row in result["budgets"].items()]
    return "\n".join(
        [
            machine_line(result["machine"]),
            f"{result['regions']} regions of {result['pictures']} pictures, each name against {result['names'] - 1} "
            "others; visual tokens of a prompt, log-likelihood of the right name",
            aligned(("", "tokens", "likelihood", "loss", "accuracy"), quality),
            "times faster than all tiles, by the clock (by the processor's): the trained model on "
            f"{result['timed_pictures']} of the pictures; a random one on {LARGE_SIDE} x {LARGE_SIDE} pixels, "
            f"{result['large_regions']} regions",
            aligned(("", "one region", "each region", "large: one region", "large: each region"), speeds),
        ]
    )


def _scored(
    describer: RegionDescriber,
    cases: Sequence[tuple[Path, Sequence[Any]]],
    names: Sequence[str],
    budget: dict[str, Any],
) -> dict[str, Any]:
    """Mean log-likelihood of right names, share of regions whose right name is the likeliest, mean visual tokens."""
    import numpy as np

    from osprey_tp.prompts import CATEGORY_QUESTION

    likelihoods, right, tokens = [], [], []
    for path, regions in cases:
        session = describer.open(path, **budget)
        masks = [region.segmentation for region in regions]
        scores = session.score(names, masks)
        places = [names.index(str(region.name)) for region in regions]
        likelihoods += scores[np.arange(len(places)), places].tolist()
        right += (scores.argmax(axis=1) == places).tolist()
        prompts = session.picture.prompts([session.conversation([mask], CATEGORY_QUESTION) for mask in masks])
        tokens += [len(session.picture.visual_tokens(prompt.tiles)) for prompt in prompts]
    return {
        "log_likelihood": float(np.mean(likelihoods)),
        "accuracy": float(np.mean(right)),
        "tokens": float(np.mean(tokens)),
    }


def _work(
    describer: RegionDescriber, asked: Sequence[tuple[Any, Sequence[Any]]], budget: dict[str, Any], question: str
) -> Callable[[], None]:
    def work() -> None:
        for picture, regions in asked:
            describer.open(picture, **budget).ask(regions, question, max_new_tokens=8)

    return work


def _large(count: int) -> tuple[RegionDescriber, tuple[Any, list[dict[str, list[float]]]]]:
    """A random model, a picture of nine tiles, and boxes all over it."""
    import numpy as np
    from PIL import Image

    from scripts.benchmark.medium_model import medium_describer

    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 255, (LARGE_SIDE, LARGE_SIDE, 3), dtype=np.uint8))
    boxes = []
    for _ in range(count):
        x, y, width, height = random.uniform((0, 0, 60, 60), (LARGE_SIDE - 160, LARGE_SIDE - 160, 160, 160)).tolist()
        boxes.append({"box": [x, y, x + width, y + height]})
    return medium_describer(), (picture, boxes)
