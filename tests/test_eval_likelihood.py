"""Candidates ranked by likelihood: calibration against torchmetrics, scores by hand, whole runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from data_pipelines.prepare import prepare
from data_pipelines.synthetic.writer import write_scenes
from eval.__main__ import main
from eval.candidates import BINS, brier_scores, calibration_measure, class_probabilities, ranks_of, reliability, softmax
from eval.evaluation import Settings, evaluate
from eval.predictions import Prediction, read_predictions
from eval.questions import Question
from eval.task_options import TaskOptions
from eval.vocabulary import Vocabulary
from osprey_tp import RegionDescriber

from .eval_fakes import Records, make_data
from .eval_segments import ScoringDescriber, model_folder
from .tiny_models import save_tiny_model

NAMES = [["red ring", "blue_star", "red ring"], ["green cross", "big:wheel", "cup"], ["cup", "blue_star", "tin"]]
VOCABULARY = Vocabulary((("dog", "puppy"), ("cat",), ("red ring",)), "test")


def asked(facts: dict | None = None) -> Question:
    rle = {"size": [8, 8], "counts": ""}
    return Question("a#1", "a.png", Path("a.png"), 8, 8, "<mask>?", (rle,), (), "", facts or {"vocabulary": VOCABULARY})


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_accuracy_and_calibration_are_those_of_torchmetrics(seed: int, classes: int) -> None:
    chooser = np.random.default_rng(seed)
    probabilities = softmax(chooser.normal(0, 2, (50, classes)))
    right = chooser.integers(0, classes, 50)
    ranks = ranks_of(probabilities, right)
    given, truth = torch.from_numpy(probabilities), torch.from_numpy(right)
    for most in (1, min(5, classes)):
        expected = multiclass_accuracy(given, truth, classes, average="micro", top_k=most)
        assert (ranks < most).mean() == pytest.approx(float(expected), abs=1e-6)
    confidence = probabilities.max(axis=1)
    measure = calibration_measure(confidence, ranks == 0)
    expected = multiclass_calibration_error(given, truth, classes, n_bins=BINS, norm="l1")
    assert measure.formula(measure.statistics.sum(axis=0)) == pytest.approx(float(expected), abs=1e-5)
    rows = reliability(confidence, ranks == 0)
    assert sum(row["regions"] for row in rows) == 50
    error = sum(row["regions"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / 50
    assert error == pytest.approx(float(expected), abs=1e-5)


def test_brier_scores_by_hand() -> None:
    found = brier_scores(np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]]), np.array([0, 2]))
    np.testing.assert_allclose(found, [0.3**2 + 0.2**2 + 0.1**2, 2])


def test_a_class_scores_as_its_best_synonym() -> None:
    found = class_probabilities(asked(), Prediction("a#1", "puppy", scores=(-9.0, -1.0, -2.0, -3.0)))
    np.testing.assert_allclose(found, np.exp([-1, -2, -3]) / np.exp([-1, -2, -3]).sum())


def test_an_answer_without_scores_is_certain_of_its_text() -> None:
    certain = class_probabilities(asked(), Prediction("a#1", "Red_Ring"))
    assert certain.tolist() == [0, 0, 1]
    assert ranks_of(certain[None], np.array([0])).tolist() == [3]
    with pytest.raises(ValueError, match="'a horse' to a#1 has no scores and is none of the 3 candidates"):
        class_probabilities(asked(), Prediction("a#1", "a horse"))
    with pytest.raises(ValueError, match="a#1 has 2 scores, there are 4 candidates"):
        class_probabilities(asked(), Prediction("a#1", "cat", scores=(-1.0, -2.0)))


@pytest.fixture
def data(tmp_path: Path) -> Records:
    return make_data(tmp_path / "data", NAMES)


def run_of(data: Records, **changes) -> Settings:
    root = data.root.parent
    options = changes.pop("task_options", TaskOptions(candidates="names"))
    return Settings(
        "referring-classification",
        data.root,
        root / "out",
        model_folder(root / "model"),
        task_options=options,
        **changes,
    )


def knowing_likelihoods(data: Records, sure: float = 6.0) -> ScoringDescriber:
    names = {(record.image, region.segmentation["counts"]): region.name for record in data for region in record.regions}
    said = lambda name: name.replace("_", " ").replace(":", " ")  # noqa: E731
    return ScoringDescriber(lambda image, region, text: sure * (said(names[image, region["counts"]]) == text) - 10)


def test_a_model_that_knows_scores_one_and_its_control_what_is_expected(data: Records) -> None:
    metrics = evaluate(run_of(data, shuffle_seed=0), records=data, describer=knowing_likelihoods(data), progress=False)
    values = {name: row["value"] for name, row in metrics["metrics"].items()}
    assert values["top_1"] == values["top_5"] == values["exact_match"] == 1
    confidence = np.exp(6) / (np.exp(6) + 5)
    assert values["calibration_error"] == pytest.approx(1 - confidence)
    assert values["brier_score"] == pytest.approx((1 - confidence) ** 2 + 5 * (1 / (np.exp(6) + 5)) ** 2)
    assert metrics["metrics"]["top_1"]["chance"] == pytest.approx(1 / 6)
    assert metrics["metrics"]["top_5"]["chance"] == pytest.approx(5 / 6)
    assert metrics["control"]["expected"]["top_1"] == metrics["control"]["metrics"]["top_1"]["value"] < 1
    assert metrics["notes"]["vocabulary"] == "6 classes of the names that occur in data, 6 texts"
    assert metrics["options"] == {
        "classes": 6,
        "vocabulary": metrics["options"]["vocabulary"],
        "candidate_score": "sum",
    }
    (only,) = metrics["reliability"]
    assert (only["regions"], only["accuracy"]) == (9, 1)


def test_drawn_likelihoods_score_chance(tmp_path: Path) -> None:
    names = [f"name {letter}" for letter in "abcdefghij"]
    data = make_data(tmp_path / "data", [names[start : start + 4] for start in range(0, 8, 2)] * 40 + [names[6:]])
    chooser = np.random.default_rng(1)
    run = run_of(data)
    metrics = evaluate(run, records=data, describer=ScoringDescriber(lambda *_: chooser.normal()), progress=False)
    for name in ("top_1", "top_5"):
        row = metrics["metrics"][name]
        assert row["low"] <= row["chance"] <= row["high"], name


def test_scores_a_token_take_its_length_from_a_name(data: Records) -> None:
    options = TaskOptions(candidates="names", candidate_score="mean")
    rule = ScoringDescriber(lambda image, region, text: -4.0 if text == "red ring" else -3.0)
    out = {}
    for name, chosen in (("mean", options), ("sum", replace(options, candidate_score="sum"))):
        run = replace(run_of(data, task_options=chosen), out=data.root.parent / name)
        evaluate(run, records=data, describer=rule, progress=False)
        out[name] = read_predictions(run.out / "predictions.jsonl")[0]
    assert out["sum"].scores == (-3.0, -3.0, -3.0, -3.0, -4.0, -3.0)
    assert out["mean"].scores == (-1.0, -1.0, -1.5, -1.0, pytest.approx(-4 / 3, abs=1e-4), -1.5)


def test_classes_of_a_file_and_what_does_not_fit_them(data: Records, tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("ring,red ring\nstar,blue star\ncross,green cross\nwheel,big wheel\ncup\ntin,can\n")
    describer = ScoringDescriber(lambda image, region, text: 0.0 if text == "can" else -5.0)
    run = run_of(data, task_options=TaskOptions(candidates=str(file)))
    metrics = evaluate(run, records=data, describer=describer, progress=False)
    assert metrics["metrics"]["top_1"]["value"] == pytest.approx(1 / 9)
    assert metrics["notes"]["vocabulary"] == "6 classes of classes.txt, 11 texts"
    file.write_text(file.read_text().replace("can", "box"))
    with pytest.raises(ValueError, match=r"answers of another run \(different: options\)"):
        evaluate(run, records=data, describer=describer, progress=False)
    with pytest.raises(ValueError, match="--candidates is an option of referring-classification and open-vocab"):
        evaluate(replace(run, task="region-caption"), records=data, describer=describer, progress=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("likelihood")
    write_scenes(root / "scenes", {"test": 2}, progress=False)
    annotations = root / "scenes" / "annotations" / "instances_test.json"
    prepare("synthetic", annotations, root / "scenes" / "images" / "test", root / "data", progress=False)
    save_tiny_model(root / "model")
    return root


def test_the_command_ranks_as_the_session_scores_whatever_the_batch(folders: Path, tmp_path: Path) -> None:
    found = []
    for size in ("1", "16"):
        arguments = ["--model", folders / "model", "--data", folders / "data", "--out", tmp_path / size]
        more = ["--candidates", "names", "--batch-size", size]
        assert main([str(argument) for argument in ["referring-classification", *arguments, *more]]) == 0
        found.append((tmp_path / size / "predictions.jsonl").read_text())
    assert found[0] == found[1]
    predictions = read_predictions(tmp_path / "1" / "predictions.jsonl")
    names = {prediction.references[0] for prediction in predictions}
    manifest = json.loads((folders / "data" / "manifest.json").read_text())
    texts = [category["name"] for category in manifest["categories"]]
    assert names <= set(texts)
    from data_pipelines.records import RecordFolder

    records = RecordFolder.open(folders / "data")
    record = records[0]
    session = RegionDescriber.from_pretrained(folders / "model").open(records.image_path(record))
    scores = session.score(texts, [record.regions[0].segmentation], predictions[0].question)[0]
    np.testing.assert_allclose(predictions[0].scores, scores, atol=2e-4)
    assert predictions[0].prediction == texts[int(scores.argmax())]
    assert "Calibration" in (tmp_path / "1" / "report.html").read_text()
