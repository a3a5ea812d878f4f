"""From nothing to a tiny model that describes regions, and a report about what it learned.

Draws synthetic scenes, prepares them as any data set, trains the three stages, evaluates on held-out scenes and writes
report.html, with the commands that a user of real data would type; each is shown as it runs. Interrupted, the same
command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.steps import Step, StepError, clock, run_steps

ASSETS = Path("scripts/assets/tiny_tower")
DEFAULT_OUT = Path("runs/quickstart")
CONFIGS = Path("scripts/configs/tiny")
SHUFFLE_SEED = 0
SCORED_STAGES = (2, 3)
"""Stages in which held-out samples are scored while they train."""

HELD_OUT_SAMPLES = 32


@dataclass(frozen=True)
class Plan:
    """What a quickstart makes.

    Attributes:
        out: folder of everything.
        scenes: number of training scenes.
        seed: of scenes and training.
        from_scratch: pretrain the vision tower too, rather than take the one that lies in the project.
        trial: train a few steps only, to try the commands.
    """

    out: Path
    scenes: int
    seed: int
    from_scratch: bool
    trial: bool = False

    @property
    def tower(self) -> Path:
        """Folder of the vision tower."""
        return self.out / "tower" if self.from_scratch else ASSETS

    def records(self, split: str, kind: str) -> Path:
        """Folder of prepared records."""
        return self.out / "records" / f"{kind}_{split}"


def steps_of(plan: Plan) -> list[Step]:
    """All steps from the drawing to the report, in order."""
    return [
        _draw(plan),
        *(_prepare(plan, "train", kind) for kind in KINDS),
        *(_prepare(plan, "test", kind) for kind in ("objects", "expressions")),
        *([_pretrain_tower(plan)] if plan.from_scratch else []),
        _warm_up(plan),
        _stage(plan, 1, "Align pictures with text", seconds=47),
        _stage(plan, 2, "Align regions with text", seconds=130),
        _stage(plan, 3, "Tune on instructions", seconds=165),
        _evaluate(plan, "referring-classification", "objects", "--shuffle-regions", str(SHUFFLE_SEED)),
        _evaluate(plan, "region-caption", "expressions"),
        _report(plan),
    ]


KINDS = {
    "objects": ("synthetic", "instances"),
    "expressions": ("refcoco", "refs"),
    "captions": ("captions", "captions"),
}
"""What is prepared from the scenes: kind -> (source of `data_pipelines prepare`, name of the annotation file)."""


def _draw(plan: Plan) -> Step:
    held_out = max(4, min(200, plan.scenes // 8))
    counts = ("--train", str(plan.scenes), "--val", "0", "--test", str(held_out))
    command = ("data_pipelines", "synthesize", "--out", str(plan.out / "scenes"), *counts)
    return Step(
        "scenes",
        "Draw scenes of textured, coloured shapes",
        (*command, "--seed", str(plan.seed), "--workers", "2"),
        plan.out / "scenes",
        seconds=20,
    )


def _prepare(plan: Plan, split: str, kind: str) -> Step:
    source, file = KINDS[kind]
    scenes, records = plan.out / "scenes", plan.records(split, kind)
    annotations = scenes / "annotations" / f"{file}_{split}.json"
    return Step(
        records.name,
        f"Prepare {kind} for {'training' if split == 'train' else 'testing'}",
        (
            *("data_pipelines", "prepare", source, "--annotations", str(annotations)),
            *("--images", str(scenes / "images" / split), "--out", str(records)),
        ),
        records,
        seconds=6,
        after=("scenes",),
    )


def _pretrain_tower(plan: Plan) -> Step:
    steps = ("--steps", "2", "--held-out-scenes", "4") if plan.trial else ("--steps", "1000")
    return Step(
        "tower",
        "Pretrain the tiny vision tower",
        ("scripts.pretrain_tiny_tower", "--out", str(plan.tower), "--seed", str(plan.seed), *steps),
        plan.tower,
        seconds=480,
    )


def _warm_up(plan: Plan) -> Step:
    names, *texts = (plan.records("train", kind) for kind in KINDS)
    few_steps = ("--name-steps", "2", "--hidden-steps", "2", "--shown-steps", "2") if plan.trial else ()
    return Step(
        "start",
        "Teach the tiny language model to read, and join it to the tower",
        (
            *("scripts.pretrain_tiny_language_model", "--tower", str(plan.tower), "--names", str(names)),
            *("--texts", *map(str, texts), "--out", str(plan.out / "start"), "--seed", str(plan.seed), *few_steps),
        ),
        plan.out / "start",
        seconds=145,
        after=(names.name, *(folder.name for folder in texts), *(["tower"] if plan.from_scratch else [])),
        reads=() if plan.from_scratch else (ASSETS,),
    )


def _stage(plan: Plan, number: int, title: str, seconds: float) -> Step:
    """A stage as its configuration file says, below another folder where the plan has one."""
    import yaml

    config = CONFIGS / f"stage{number}.yaml"
    settings = {key: _moved(value, plan.out) for key, value in yaml.safe_load(config.read_text("utf-8")).items()}
    model, output = Path(settings["model"]), Path(settings["output"])
    held_out = [plan.records("test", "objects")] if number in SCORED_STAGES else []
    records = [*map(Path, settings["data"]), *held_out]
    few = ("max_steps=2", "batch_size=4") if plan.trial else ()
    overrides = [f"seed={plan.seed}", *few]
    if held_out:
        overrides += [f"held_out={held_out[0]}", f"held_out_samples={4 if plan.trial else HELD_OUT_SAMPLES}"]
    if plan.out != DEFAULT_OUT:
        overrides += [f"model={model}", f"data={json.dumps(settings['data'])}", f"output={output}"]
    return Step(
        output.name,
        f"{title} (stage {number})",
        ("scripts.train", "--config", str(config), *overrides),
        output,
        seconds,
        after=(model.name, *(folder.name for folder in records)),
        reads=(config,),
        unfinished=output.with_name(f"{output.name}.unfinished"),
    )


def _moved(value: Any, out: Path) -> Any:
    """A setting with every path below `DEFAULT_OUT` moved below `out`."""
    if isinstance(value, dict):
        return {_moved(key, out): inner for key, inner in value.items()}
    if isinstance(value, list):
        return [_moved(inner, out) for inner in value]
    if isinstance(value, str) and Path(value).is_relative_to(DEFAULT_OUT):
        return str(out / Path(value).relative_to(DEFAULT_OUT))
    return value


def _evaluate(plan: Plan, task: str, kind: str, *options: str) -> Step:
    out, data = plan.out / "evaluation" / task, plan.records("test", kind)
    return Step(
        task,
        f"Evaluate on held-out scenes: {task}",
        (
            *("eval", task, "--model", str(plan.out / "model")),
            *("--data", str(data), "--out", str(out), *options),
        ),
        out,
        seconds=45,
        after=("model", data.name),
        unfinished=out,
    )


def _report(plan: Plan) -> Step:
    return Step(
        "report",
        "Write the report",
        ("scripts.quickstart_report", str(plan.out)),
        plan.out / "report.html",
        seconds=15,
        after=("referring-classification", "region-caption"),
        reads=(Path("scripts/quickstart_report.py"),),
    )


def closing_words(plan: Plan) -> str:
    """What to look at and what to type next, about a shape of a held-out scene."""
    annotations = json.loads((plan.out / "scenes" / "annotations" / "instances_test.json").read_text("utf-8"))
    shape = annotations["annotations"][0]
    picture = next(image["file_name"] for image in annotations["images"] if image["id"] == shape["image_id"])
    x, y, width, height = shape["bbox"]
    box = [round(value) for value in (x, y, x + width, y + height)]
    model, image = plan.out / "model", plan.out / "scenes" / "images" / "test" / picture
    return f"""
Look at the report      {plan.out / "report.html"}
Open the app            .venv/bin/python -m app --model {model}
Ask on the command line .venv/bin/osprey-tp describe {image} --box {",".join(map(str, box))} --model {model}
Ask from Python

    from osprey_tp import RegionDescriber

    session = RegionDescriber.from_pretrained("{model}").open("{image}")
    print(session.ask([{{"box": {box}}}]))
"""


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)

    return number


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m scripts.quickstart",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="(%(default)s)")
    made.add_argument("--scenes", type=_at_least(8), default=2400, metavar="N", help="training scenes (%(default)s)")
    made.add_argument("--seed", type=_at_least(0), default=0, metavar="S", help="of scenes and training (%(default)s)")
    made.add_argument(
        "--from-scratch", action="store_true", help="pretrain the tiny vision tower too (about 8 minutes more)"
    )
    made.add_argument("--trial", action="store_true", help="train two steps a stage, to try the commands")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parser().parse_args(arguments)
    plan = Plan(options.out, options.scenes, options.seed, options.from_scratch, options.trial)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    start = time.monotonic()
    try:
        run_steps(steps_of(plan), plan.out)
    except (StepError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; the same command goes on where it was\n")
        return 128 + signal.SIGINT
    sys.stdout.write(f"All done in {clock(time.monotonic() - start)}.\n{closing_words(plan)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
