"""Every task on synthetic scenes: right answers score 100, answers to other questions score chance."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eval.captions
from data_pipelines.prepare import prepare
from data_pipelines.synthetic.vocabulary import attributes_of
from data_pipelines.synthetic.writer import write_scenes
from eval.evaluation import Settings, evaluate
from eval.loading import open_records
from eval.metrics import CELL_EDGES
from eval.questions import Question, collect_questions
from eval.task_options import TaskOptions, tailored
from eval.tasks import TASKS

from .annotation_files import write_json
from .chat_endpoint import KEY, ChatServer
from .judged_fakes import judged_by, overlap_judge, reading_judge

SCENES = 16
RANKED = TaskOptions(candidates="names")
SLACK = 0.05
"""Beside the interval, which is too narrow where hardly any drawn answer is right."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("known")
    write_scenes(root / "scenes", {"test": SCENES}, progress=False)
    annotations, images = root / "scenes" / "annotations", root / "scenes" / "images" / "test"
    for source, file in (("synthetic", "instances_test.json"), ("refcoco", "refs_test.json")):
        prepare(source, annotations / file, images, root / source, progress=False)
    content = json.loads((annotations / "instances_test.json").read_text())
    write_benchmarks(root, content, {entry["id"]: entry["name"] for entry in content["categories"]})
    for source, file in (("pope", "pope.json"), ("ferret-bench", "ferret.json"), ("dlc-bench", "annotations.json")):
        prepare(source, root / file, images, root / source, progress=False)
    return root


def write_benchmarks(root: Path, content: dict[str, Any], names: dict[int, str]) -> None:
    """Questions of POPE, Ferret-Bench and DLC-Bench about the scenes, in their published forms."""
    pope, ferret, dlc, called, references = [], [], {}, {}, []
    pictures = {image["id"]: image["file_name"] for image in content["images"]}
    shown = {
        image: sorted({names[entry["category_id"]] for entry in content["annotations"] if entry["image_id"] == image})
        for image in pictures
    }
    for (image, here), (_, there) in pairwise([*shown.items(), next(iter(shown.items()))]):
        absent = next(name for name in there if name not in here)
        for label, name in (("yes", here[0]), ("no", absent)):
            question = {"question_id": len(pope), "image": pictures[image], "label": label}
            pope.append(json.dumps(question | {"text": f"Is there a {name} in the image?"}))
    for number, entry in enumerate(content["annotations"]):
        texture, colour, shape = attributes_of(names[entry["category_id"]])
        question = {"question_id": number, "image": pictures[entry["image_id"]], "text": "What is <region>?"}
        annotation = {"bbox": entry["bbox"], "segmentation": entry["segmentation"]}
        ferret.append(question | {"category": "description", "annotation": annotation})
        references.append({"question_id": number, "text": f"it is a {colour} {shape} painted {texture}"})
        called[str(entry["id"])] = names[entry["category_id"]]
        dlc[str(entry["id"])] = [
            {"question": "Which colour?", "choices": [[colour, 1], ["none of these", 0]], "type": "positive"},
            {"question": "Is it furry?", "choices": [["furry", -1], ["not told", 1]], "type": "negative"},
        ]
    (root / "pope.json").write_text("\n".join(pope))
    for file, written in (
        ("ferret.json", ferret),
        ("answer.json", references),
        ("annotations.json", content),
        ("qa.json", dlc),
        ("class_names.json", called),
    ):
        write_json(root / file, written)


def questions_of(settings: Settings) -> list[Question]:
    records = open_records(settings.data)
    task = tailored(TASKS[settings.task], settings.task_options, records, settings.data, open_records)
    return collect_questions(task, records)


def scores_of(settings: Settings, answers: dict[str, str], name: str) -> dict[str, dict[str, Any]]:
    file = settings.data.parent / f"{name}.jsonl"
    lines = [json.dumps({"id": key, "prediction": text}) + "\n" for key, text in answers.items()]
    file.write_text("".join(lines))
    options = vars(settings) | {"predictions": file, "out": settings.data.parent / "out" / name}
    metrics = evaluate(Settings(**options), progress=False)
    assert metrics is not None
    found: dict[str, dict[str, Any]] = metrics["metrics"]
    return found


def shuffled(answers: dict[str, str]) -> dict[str, str]:
    """The right answers, given to the questions in a random order."""
    drawn = np.random.default_rng(0).permutation(list(answers.values()))
    return dict(zip(answers, map(str, drawn), strict=True))


def check(settings: Settings, answers: dict[str, str], perfect: Sequence[str], chances: dict[str, float]) -> None:
    """Right answers score 1 by `perfect`; others by chance, `chances` or the chance level that the task reports."""
    name = settings.task + "-" + (settings.task_options.candidates or "free")
    found = scores_of(settings, answers, name)
    assert {measure: found[measure]["value"] for measure in perfect} == pytest.approx(dict.fromkeys(perfect, 1.0))
    drawn = scores_of(settings, shuffled(answers), f"{name}-drawn")
    for measure in perfect:
        row = drawn[measure]
        chance = chances.get(measure, row.get("chance"))
        assert row["value"] < 0.9, (measure, row)
        assert chance is None or row["low"] - SLACK <= chance <= row["high"] + SLACK, (measure, row, chance)


def first_references(settings: Settings) -> dict[str, str]:
    return {question.id: question.references[0] for question in questions_of(settings)}


def over_all_pairs(answers: Sequence[str], right: Sequence[str], compare: Callable[[str, str], float]) -> float:
    return float(np.mean([[compare(answer, reference) for reference in right] for answer in answers]))


def test_names(root: Path) -> None:
    settings = Settings("referring-classification", root / "synthetic", root / "out")
    perfect = ["semantic_iou", "exact_match", "texture", "colour", "shape", "all_attributes"]
    check(settings, first_references(settings), perfect, {})


@pytest.mark.parametrize(
    ("task", "further"), [("referring-classification", "exact_match"), ("open-vocab-segmentation", "AP")]
)
def test_ranked_names(root: Path, task: str, further: str) -> None:
    settings = Settings(task, root / "synthetic", root / "out", task_options=RANKED)
    check(settings, first_references(settings), ["top_1", "semantic_iou", further], {})


@pytest.mark.parametrize("data", ["refcoco", "synthetic"])
def test_captions(root: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pycocoevalcap.rouge.rouge import Rouge

    monkeypatch.setattr(eval.captions, "has_java", lambda: False)
    settings = Settings("region-caption", root / data, root / "out")
    answers = first_references(settings)
    texts = list(dict.fromkeys(answers.values()))
    shares = {text: list(answers.values()).count(text) / len(answers) for text in texts}
    rouge = Rouge()
    chance = sum(shares[a] * shares[b] * rouge.calc_score([a], [b]) for a in texts for b in texts)
    check(settings, answers, ["ROUGE_L", "Bleu_1"], {"ROUGE_L": chance})


def test_expressions(root: Path) -> None:
    settings = Settings(
        "grounding", root / "refcoco", root / "out", task_options=TaskOptions(objects=root / "synthetic")
    )
    answers = first_references(settings)
    perfect = ["box_accuracy", "mask_accuracy", "cIoU", "mIoU"]
    found = scores_of(settings, answers, "grounding")
    assert {measure: found[measure]["value"] for measure in perfect} == pytest.approx(dict.fromkeys(perfect, 1.0))
    rng = np.random.default_rng(0)
    drawn = {
        question.id: str(1 + rng.integers(len(question.facts["candidates"]))) for question in questions_of(settings)
    }
    found = scores_of(settings, drawn, "grounding-drawn")
    for measure in perfect:
        assert found[measure]["low"] <= found[measure]["chance"] <= found[measure]["high"]


def test_presence(root: Path) -> None:
    settings = Settings("pope", root / "pope", root / "out")
    check(settings, first_references(settings), ["accuracy", "precision", "recall", "F1"], {})


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize(
    ("task", "data", "references"),
    [("description", "refcoco", None), ("ferret-bench", "ferret-bench", "answer.json")],
)
@pytest.mark.usefixtures("key")
def test_rated_answers(root: Path, task: str, data: str, references: str | None) -> None:
    file = None if references is None else root / references
    with ChatServer(overlap_judge) as server:
        settings = Settings(task, root / data, root / "out", references=file, **judged_by(server))
        if file is None:
            answers = first_references(settings)
        else:
            texts = {entry["question_id"]: entry["text"] for entry in json.loads(file.read_text())}
            answers = {question.id: texts[question.facts["question_id"]] for question in questions_of(settings)}
        right = list(answers.values())
        chance = over_all_pairs(right, right, rating)
        check(settings, answers, ["relative_score"], {"relative_score": chance})


def rating(answer: str, reference: str) -> float:
    """What `overlap_judge` gives an answer, as a share of the 10 that it gives references."""
    words, right = set(answer.lower().split()), set(reference.lower().split())
    return (1 + 9 * len(words & right) / len(right)) / 10


@pytest.mark.usefixtures("key")
def test_questions_about_descriptions(root: Path) -> None:
    with ChatServer(reading_judge) as server:
        settings = Settings("dlc-bench", root / "dlc-bench", root / "out", **judged_by(server))
        answers = first_references(settings)
        names = list(answers.values())
        recognised = over_all_pairs(names, names, lambda answer, name: float(name in answer))
        # an object that is not recognised can earn nothing: what is left are its namesakes
        chances = dict.fromkeys(("dlc_average", "dlc_positive", "dlc_negative", "dlc_recognition"), recognised)
        check(settings, answers, list(chances), chances)


def test_sizes_are_powers_of_four_in_cells() -> None:
    assert (0, *(4**power for power in range(6)), float("inf")) == CELL_EDGES
