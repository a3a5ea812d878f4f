"""The report of a quickstart: what the model learned, beside chance and beside the region-blind control.

Reads the folder that `python -m scripts.quickstart` fills, asks the model for captions of some held-out scenes, and
writes report.html and report.json there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osprey_tp.files import write_text

if TYPE_CHECKING:
    from data_pipelines.records import RecordFolder, RegionRecord
    from eval.predictions import Prediction
    from eval.report import Figure, Gallery, GalleryItem, KeyFigures, Section, Table
    from scripts.quickstart_scores import Item

CLASSIFICATION, EXPRESSIONS = "referring-classification", "region-caption"
TRAININGS = {
    "start": "language warm-up",
    "stage1": "stage 1: projector",
    "stage2": "stage 2: region encoder",
    "model": "stage 3: projector, region encoder, language model",
}
GALLERY_SCENES = 12
CAPTIONED_SCENES = 40
PICTURE_SIDE = 576
RIGHT, WRONG = "✓", "✗"


@dataclass(frozen=True)
class Run:
    """The folder of a quickstart."""

    folder: Path

    def metrics(self, task: str) -> dict[str, Any]:
        """What an evaluation measured."""
        found: dict[str, Any] = json.loads((self.folder / "evaluation" / task / "metrics.json").read_text("utf-8"))
        return found

    def predictions(self, task: str) -> dict[str, Prediction]:
        """The answers of an evaluation by their ids."""
        from eval.predictions import read_predictions

        found = read_predictions(self.folder / "evaluation" / task / "predictions.jsonl")
        return {prediction.id: prediction for prediction in found}

    def records(self, kind: str) -> RecordFolder:
        """The held-out records of a kind."""
        from data_pipelines.records import RecordFolder

        return RecordFolder.open(self.folder / "records" / f"{kind}_test")

    @cached_property
    def scenes(self) -> dict[str, list[Item]]:
        """All items of every held-out picture, by the picture's path."""
        from scripts.quickstart_scores import scene_of

        return {record.image: scene_of(record) for record in self.records("objects")}

    def losses(self) -> dict[str, list[dict[str, float]]]:
        """The loss log of every training by its title."""
        logs = {title: self.folder / name / "training_log.json" for name, title in TRAININGS.items()}
        return {title: json.loads(log.read_text("utf-8")) for title, log in logs.items() if log.exists()}

    def held_out_scores(self) -> dict[str, list[dict[str, float]]]:
        """What every training that scores held-out samples wrote down of them, by the training's title."""
        logs = {title: self.folder / name / "held_out.json" for name, title in TRAININGS.items()}
        return {title: json.loads(log.read_text("utf-8")) for title, log in logs.items() if log.exists()}

    def steps(self) -> dict[str, dict[str, Any]]:
        """Command and seconds of every finished step, in the order in which they ran."""
        stamps = sorted((self.folder / "steps").glob("*.json"), key=lambda path: path.stat().st_mtime)
        found = {path.stem: json.loads(path.read_text("utf-8")) for path in stamps}
        return {name: stamp for name, stamp in found.items() if "seconds" in stamp}


def region_ids(record: RegionRecord) -> list[str]:
    """The ids of a record's regions in predictions."""
    return [f"{record.id}#{number}" for number in range(1, len(record.regions) + 1)]


def combination_scores(run: Run) -> dict[str, dict[str, float | int]]:
    """Accuracy of all three attributes over combinations that training has shown and over those that it never has."""
    from data_pipelines.synthetic.vocabulary import attributes_of, is_held_out

    predictions = run.predictions(CLASSIFICATION)
    right: dict[str, list[bool]] = {"seen in training": [], "never seen together in training": []}
    for record in run.records("objects"):
        for key, region in zip(region_ids(record), record.regions, strict=True):
            texture, colour, shape = attributes_of(region.name)
            if key in predictions and texture and colour and shape:
                group = "never seen together in training" if is_held_out(texture, colour, shape) else "seen in training"
                right[group].append(attributes_of(predictions[key].prediction) == (texture, colour, shape))
    return {
        name: {"regions": len(values), "all_attributes": sum(values) / len(values)}
        for name, values in right.items()
        if values
    }


def relation_scores(run: Run) -> dict[str, Any]:
    """Whether the referring expressions of the model are true of the scenes."""
    from scripts.quickstart_scores import Item, expression_scores

    predictions = run.predictions(EXPRESSIONS)
    answers = [
        (predictions[key].prediction, Item.of(region), run.scenes.get(record.image, []))
        for record in run.records("expressions")
        for key, region in zip(region_ids(record), record.regions, strict=True)
        if key in predictions
    ]
    return expression_scores(answers)


def captions_of_scenes(run: Run) -> dict[str, str]:
    """What the model says of whole held-out scenes, by the picture's path; greedy."""
    from tqdm import tqdm

    from osprey_tp import RegionDescriber
    from osprey_tp.prompts import CAPTION_QUESTION

    describer = RegionDescriber.from_pretrained(run.folder / "model")
    folder = run.records("objects")
    records = [record for record, _ in zip(folder, range(CAPTIONED_SCENES), strict=False)]
    return {
        record.image: describer.open(folder.image_path(record)).ask([], CAPTION_QUESTION, together=True)[0]
        for record in tqdm(records, desc="captions", unit="scene")
    }


def summary_of(run: Run, captions: Mapping[str, str]) -> dict[str, Any]:
    """What report.json holds."""
    from scripts.quickstart_scores import caption_scores

    described = [run.scenes[image] for image in captions]
    steps = run.steps()
    return {
        "classification": run.metrics(CLASSIFICATION),
        "combinations": combination_scores(run),
        "expressions": {"wording": run.metrics(EXPRESSIONS)["metrics"], "truth": relation_scores(run)},
        "captions": caption_scores(list(captions.values()), described),
        "losses": run.losses(),
        "held_out": run.held_out_scores(),
        "steps": {name: {key: stamp[key] for key in ("command", "seconds")} for name, stamp in steps.items()},
        "seconds": round(sum(stamp["seconds"] for stamp in steps.values()), 1),
    }


def page_of(run: Run, summary: Mapping[str, Any], captions: Mapping[str, str]) -> str:
    """The report as HTML text."""
    from eval.evaluation_report import score_figures, score_table, settings_tables
    from eval.figures import line_figure
    from eval.report import Details, Figure, render_page

    classification = summary["classification"]
    curves = {
        title: ([entry["step"] for entry in log], [entry["loss"] for entry in log])
        for title, log in summary["losses"].items()
    }
    scenes, descriptions = galleries(run, captions)
    at_a_glance, *by_size = (figure for figure in score_figures(classification) if isinstance(figure, Figure))
    sections: list[Section] = [
        headline(summary),
        scenes,
        score_table(classification),
        at_a_glance,
        combination_table(summary["combinations"]),
        expression_table(summary["expressions"]),
        descriptions,
        caption_table(summary["captions"]),
        *([Figure("Loss", line_figure(curves, "step", "loss on answers", log=True))] if curves else []),
        *held_out_figure(summary["held_out"]),
        Details("Region sizes, commands, settings", [*by_size, step_table(summary), *settings_tables(classification)]),
    ]
    counts = classification["counts"]
    subtitle = (
        f"A tiny model after {summary['seconds'] / 60:.0f} minutes of data, training and evaluation; greedy answers "
        f"about {counts['regions']:,} regions in {counts['images']:,} scenes that training has not seen."
    )
    return render_page("Quickstart: asking about regions", sections, subtitle)


def held_out_figure(scores: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Figure]:
    """The losses of held-out samples while the stages trained, if any stage scored them."""
    from eval.figures import line_figure
    from eval.report import Figure

    curves = {
        title: ([entry["step"] for entry in entries], [entry["loss"] for entry in entries])
        for title, entries in scores.items()
    }
    if not curves:
        return []
    caption = "Each stage's folder has a page with answers to held-out samples: held_out.html."
    return [Figure("Held-out loss", line_figure(curves, "step", "loss on answers", log=True), caption)]


def headline(summary: Mapping[str, Any]) -> KeyFigures:
    """What was learned of single regions, and of how they stand to each other."""
    from eval.evaluation_report import key_figures, label_of, percent
    from eval.report import KeyFigure, KeyFigures

    attributes = {label_of(name) for name in ("texture", "colour", "shape", "all_attributes")}
    figures = [figure for figure in key_figures(summary["classification"]).figures if figure.label in attributes]
    truth = summary["expressions"]["truth"]
    if truth["placing"]:
        chance = f"chance {percent(truth['placed_by_chance'])}"
        figures.append(KeyFigure("Relation true", percent(truth["placed"]), chance))
    else:
        figures.append(KeyFigure("Expression true", percent(truth["true"]), "no answer says a relation"))
    return KeyFigures(figures)


def combination_table(scores: Mapping[str, Mapping[str, Any]]) -> Table:
    """Texture, colour and shape all right, for combinations that are familiar and new."""
    from eval.evaluation_report import percent
    from eval.report import Table

    rows = [[name, percent(row["all_attributes"]), f"{row['regions']:,}"] for name, row in scores.items()]
    note = "Some combinations of texture, colour and shape are kept out of training scenes."
    return Table("New combinations", ["combination", "all three × 100", "regions"], rows, note)


def expression_table(scores: Mapping[str, Any]) -> Table:
    """Referring expressions: truth in the scene, then wording."""
    from eval.evaluation_report import LEFT_OUT_OF_PANELS, label_of, percent
    from eval.report import Table

    truth = scores["truth"]
    wording = {name: row for name, row in scores["wording"].items() if name not in LEFT_OUT_OF_PANELS}
    rows = [
        ["true of its region", percent(truth["true"]), "", f"{truth['answers']:,}"],
        ["and of no other", percent(truth["unique"]), "", f"{truth['answers']:,}"],
        ["relation true", percent(truth["placed"]), percent(truth["placed_by_chance"]), f"{truth['placing']:,}"],
        *([label_of(name), percent(row["value"]), "", f"{row['regions']:,}"] for name, row in wording.items()),
    ]
    note = (
        "Descriptions such as “the striped ring left of the red cross”. The first rows hold what is said against the "
        "scene; relations (left of, topmost, ...) also for the scene's other regions, as chance. The others compare "
        "words with the reference."
    )
    return Table("Relations", ["score × 100", "model", "chance", "regions"], rows, note)


def caption_table(scores: Mapping[str, Any]) -> Table:
    """Captions: which shapes they name."""
    from eval.evaluation_report import percent
    from eval.report import Table

    rows = [
        ["shapes named that are there", percent(scores["precision"]), percent(scores["precision_by_chance"])],
        ["shapes there that are named", percent(scores["recall"]), ""],
    ]
    note = f"{scores['captions']} scenes, asked without a region; by chance: the same captions beside another scene."
    return Table("Captions", ["score × 100", "model", "chance"], rows, note)


def step_table(summary: Mapping[str, Any]) -> Table:
    """The commands with their times."""
    from eval.report import Table

    rows = [[name, f"{step['seconds']:.0f}", step["command"]] for name, step in summary["steps"].items()]
    return Table("Commands", ["step", "seconds", "command"], rows, numeric=False)


def galleries(run: Run, captions: Mapping[str, str]) -> list[Gallery]:
    """Held-out scenes with all their regions, answers and references; then single regions with their expressions."""
    from eval.report import Gallery

    objects, expressions = run.records("objects"), run.records("expressions")
    named, described = run.predictions(CLASSIFICATION), run.predictions(EXPRESSIONS)
    scenes = [
        scene_item(objects, record, named, captions.get(record.image))
        for record, _ in zip(objects, range(GALLERY_SCENES), strict=False)
    ]
    chosen = relational_records(expressions, described)[:GALLERY_SCENES]
    return [
        Gallery("Held-out scenes", scenes, "The first scenes of the test split, not chosen by their scores."),
        Gallery(
            "Descriptions of single regions",
            [expression_item(expressions, record, described, run.scenes.get(record.image, [])) for record in chosen],
        ),
    ]


def relational_records(records: Iterable[RegionRecord], predictions: Mapping[str, Prediction]) -> list[RegionRecord]:
    """One record a picture, one whose reference tells where its region stands if there is any."""
    from scripts.quickstart_scores import Expression

    chosen: dict[str, RegionRecord] = {}
    placed: set[str] = set()
    for record in records:
        expressions = [Expression.parse(text) for text in predictions[region_ids(record)[0]].references]
        tells_place = any(found and (found.relation or found.extreme) for found in expressions)
        if record.image not in chosen or (tells_place and record.image not in placed):
            chosen[record.image] = record
            placed.update([record.image] if tells_place else [])
    return list(chosen.values())


def scene_item(
    folder: RecordFolder, record: RegionRecord, predictions: Mapping[str, Prediction], caption: str | None
) -> GalleryItem:
    """A scene with numbered regions; for each the answer, and the reference where that is another."""
    from eval.report import GalleryItem

    lines, right = [], 0
    answered = [key for key in region_ids(record) if key in predictions]
    for number, (key, region) in enumerate(zip(region_ids(record), record.regions, strict=True), 1):
        if key in predictions:
            answer = predictions[key].prediction.strip() or "(empty)"
            is_right = answer.lower().rstrip(".") == region.name
            right += is_right
            verdict = RIGHT if is_right else WRONG
            lines.append((f"{number} {verdict}", answer if is_right else f"{answer}; is {region.name}"))
    if caption:
        lines.append(("caption", caption))
    share = right / len(answered) if answered else 0.0
    return GalleryItem(
        picture=_picture(folder, record, [str(number) for number in range(1, len(record.regions) + 1)]),
        lines=lines,
        badge=f"{right}/{len(answered)}",
        tone="good" if share >= 0.75 else "middle" if share >= 0.25 else "bad",
    )


def expression_item(
    folder: RecordFolder, record: RegionRecord, predictions: Mapping[str, Prediction], scene: Sequence[Item]
) -> GalleryItem:
    """The first region of a record with what the model says of it and the reference."""
    from eval.report import GalleryItem
    from scripts.quickstart_scores import Expression, Item

    prediction = predictions[region_ids(record)[0]]
    expression = Expression.parse(prediction.prediction)
    holds = expression is not None and expression.holds(Item.of(record.regions[0]), scene)
    return GalleryItem(
        picture=_picture(folder, record, [""], only_first=True),
        lines=[
            ("answer", prediction.prediction.strip() or "(empty)"),
            ("reference", " / ".join(prediction.references)),
        ],
        badge="true" if holds else "not true",
        tone="good" if holds else "bad",
    )


def _picture(folder: RecordFolder, record: RegionRecord, names: Sequence[str], only_first: bool = False) -> bytes:
    """The picture, enlarged, with its regions outlined and labelled; the bytes of a JPEG file."""
    import io

    import numpy as np

    from osprey_tp.drawing import draw_regions
    from osprey_tp.images import load_image
    from osprey_tp.masks import to_mask

    image = load_image(folder.image_path(record))
    scale = max(1, PICTURE_SIDE // max(image.size))
    regions = record.regions[:1] if only_first else record.regions
    masks = [to_mask(region.segmentation, record.height, record.width) for region in regions]
    enlarged = [np.kron(mask, np.ones((scale, scale), dtype=bool)) for mask in masks]
    image = image.resize((scale * image.width, scale * image.height))
    drawn = draw_regions(image, enlarged, names, opacity=0.1, outline_width=4, font_size=26)
    file = io.BytesIO()
    drawn.save(file, "JPEG", quality=85)
    return file.getvalue()


def write_report(folder: Path) -> None:
    """Write report.html and report.json into the folder of a quickstart.

    Raises:
        OSError, ValueError: a part of the quickstart is missing or broken.
    """
    run = Run(folder)
    captions = captions_of_scenes(run)
    summary = summary_of(run, captions)
    for name, text in (
        ("report.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n"),
        ("report.html", page_of(run, summary, captions)),
    ):
        write_text(folder / name, text)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.quickstart_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="of the quickstart, such as runs/quickstart")
    options = parser.parse_args(arguments)
    try:
        write_report(options.folder)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    sys.stdout.write(f"wrote {options.folder / 'report.html'} and report.json\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
