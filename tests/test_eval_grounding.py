"""Grounding: overlaps by hand, what an oracle and a blind model score, candidates of every kind, whole runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.records import RecordFolder, Region, RegionRecord
from eval.__main__ import main
from eval.evaluation import Settings, evaluate
from eval.grounding import about_each_expression, picture_key
from eval.predictions import read_predictions
from eval.task_options import TaskOptions
from osprey_tp import RegionDescriber

from .eval_fakes import Records, prepare_synthetic
from .eval_segments import ScoringDescriber, box_rle, expression_record, model_folder, write_data

SIZE = (20, 30)
LEFT, RIGHT, WIDE = (box_rle(*SIZE, *box) for box in ((0, 0, 10, 10), (15, 0, 25, 10), (0, 0, 20, 10)))
"""Two squares of 100 pixels, and one of 200 that holds the left one and half of the right one."""


@pytest.fixture
def data(tmp_path: Path) -> Records:
    records = [
        expression_record("1", "COCO_train2014_000000000007.png", LEFT, "the left one", "testA"),
        expression_record("2", "COCO_train2014_000000000007.png", RIGHT, "the right one", "testA"),
        expression_record("3", "COCO_train2014_000000000007.png", WIDE, "the wide one", "testB"),
        expression_record("4", "COCO_train2014_000000000009.png", RIGHT, "something", "testB"),
    ]
    return write_data(tmp_path / "data", records)


def run_of(data: Records, **changes: Any) -> Settings:
    root = data.root.parent
    return Settings("grounding", data.root, root / "out", model_folder(root / "model"), **changes)


def oracle(data: Records) -> ScoringDescriber:
    meant = {(record.image, record.turns[1].text): record.regions[0].segmentation["counts"] for record in data}
    return ScoringDescriber(
        lambda image, region, text: -5.0 if "box" in region else -1.0 - 3 * (region["counts"] != meant[image, text])
    )


def values(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: row["value"] for name, row in metrics["metrics"].items()}


def test_an_oracle_finds_everything_and_evidence_is_what_the_region_adds(data: Records) -> None:
    run = run_of(data)
    metrics = evaluate(run, records=data, describer=oracle(data), progress=False)
    assert values(metrics) == dict.fromkeys(("box_accuracy", "mask_accuracy", "cIoU", "mIoU"), 1.0)
    first, *_, last = read_predictions(run.out / "predictions.jsonl")
    assert (first.id, first.prediction, first.references) == ("refcoco:1#1", "1", ("1",))
    assert first.scores == (4, 1, 1)
    assert last.scores == (4,)
    assert metrics["notes"]["candidates"].startswith("all regions that expressions of the picture are about; 2.5")
    assert "the left one" in (run.out / "report.html").read_text()
    # picture 7: each region hits itself; the wide one and the left one overlap by half, a hit as well
    chance = {name: row["chance"] for name, row in metrics["metrics"].items()}
    assert chance["mask_accuracy"] == chance["box_accuracy"] == pytest.approx((2 / 3 + 1 / 3 + 2 / 3 + 1) / 4)
    left, right, wide = np.array([1, 0, 0.5]), np.array([0, 1, 50 / 250]), np.array([0.5, 50 / 250, 1])
    assert chance["mIoU"] == pytest.approx((left.mean() + right.mean() + wide.mean() + 1) / 4)
    intersection = (200 + 150 + 350) / 3 + 100
    union = (100 + 200 + 200 + 200 + 100 + 250 + 200 + 250 + 200) / 3 + 100
    assert chance["cIoU"] == pytest.approx(intersection / union)


def test_a_blind_model_scores_chance(tmp_path: Path) -> None:
    boxes = [(x, y, x + 8, y + 8) for y in (0, 10) for x in (0, 10, 20)]
    records = [
        expression_record(f"{image}-{place}", f"{image}.png", box_rle(*SIZE, *boxes[place]), f"number {place}")
        for image in range(60)
        for place in range(2 + image % 5)
    ]
    data = write_data(tmp_path / "data", records)
    chooser = np.random.default_rng(0)
    metrics = evaluate(
        run_of(data), records=data, describer=ScoringDescriber(lambda *_: chooser.normal()), progress=False
    )
    for row in metrics["metrics"].values():
        assert row["low"] <= row["chance"] <= row["high"]


def scored(data: Records, answers: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"id": key, "prediction": text}) + "\n" for key, text in answers.items()))
    return evaluate(replace(run_of(data), model=None, predictions=file), records=data, progress=False)


def test_answers_of_anybody_are_numbers_boxes_or_masks(data: Records, tmp_path: Path) -> None:
    answers = {
        "refcoco:1#1": "3",
        "refcoco:2#1": json.dumps({"segmentation": WIDE}),
        "refcoco:3#1": json.dumps({"segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]]}),
        "refcoco:4#1": "no idea",
    }
    metrics = scored(data, answers, tmp_path)
    assert values(metrics)["mask_accuracy"] == values(metrics)["box_accuracy"] == 2 / 4
    assert values(metrics)["mIoU"] == pytest.approx((100 / 200 + 50 / 250 + 100 / 200 + 0) / 4)
    assert values(metrics)["cIoU"] == pytest.approx((100 + 50 + 100 + 0) / (200 + 250 + 200 + 100))
    assert metrics["notes"]["unreadable_answers"] == "1, counted as wrong"


def test_boxes_have_no_mask_measures(data: Records, tmp_path: Path) -> None:
    answers = {
        "refcoco:1#1": "[0, 0, 10, 19.9]",
        "refcoco:2#1": '{"box": [15, 0, 25, 21]}',
        "refcoco:3#1": "[0, 0, 20.0, 10]",
        "refcoco:4#1": "7",
    }
    metrics = scored(data, answers, tmp_path)
    assert values(metrics)["box_accuracy"] == 2 / 4
    assert metrics["metrics"]["mIoU"]["regions"] == 1
    assert values(metrics)["mIoU"] == 0


@pytest.mark.parametrize(
    "answer", ["[1, 2, 1, 9]", "true", '"2"', "[[1]]", '{"segmentation": {"size": [3, 3], "counts": "x"}}', "0", "null"]
)
def test_what_names_no_region_is_wrong(data: Records, tmp_path: Path, answer: str) -> None:
    others = {f"refcoco:{number}#1": str(number) for number in (1, 2, 3)}
    metrics = scored(data, others | {"refcoco:4#1": answer}, tmp_path)
    assert values(metrics)["mIoU"] == 3 / 4
    assert metrics["notes"]["unreadable_answers"] == "1, counted as wrong"


def test_a_split_is_taken_by_name(data: Records) -> None:
    run = run_of(data, task_options=TaskOptions(split="testA"))
    metrics = evaluate(run, records=data, describer=oracle(data), progress=False)
    assert metrics["counts"] == {"regions": 2, "images": 1, "empty_answers": 0}
    assert metrics["options"]["split"] == "testA"
    with pytest.raises(ValueError, match="no record is of split 'val'; the data have testA, testB"):
        evaluate(run_of(data, task_options=TaskOptions(split="val")), records=data, progress=False)


def test_proposals_are_the_candidates(data: Records, tmp_path: Path) -> None:
    shifted = box_rle(*SIZE, 1, 0, 11, 10)
    file = tmp_path / "proposals.json"
    entries = [
        {"image_id": 7, "segmentation": shifted, "score": 0.9},
        {"image_id": 7, "segmentation": [[15, 0, 25, 0, 25, 10, 15, 10]], "score": 0.5},
    ]
    file.write_text(json.dumps(entries))
    run = run_of(data, task_options=TaskOptions(proposals=file))
    nearest = ScoringDescriber(
        lambda image, region, text: float("left" in text) * (region.get("counts") == shifted["counts"])
    )
    metrics = evaluate(run, records=data, describer=nearest, progress=False)
    first, *_, fourth = read_predictions(run.out / "predictions.jsonl")
    assert (first.prediction, len(first.scores), fourth.prediction) == ("1", 2, "")
    assert first.references == ("not among the candidates",)
    assert metrics["notes"]["without_candidates"] == "1 expressions, counted as wrong"
    assert metrics["notes"]["out_of_reach"].startswith("1 expressions")
    assert metrics["metrics"]["mIoU"]["value"] == pytest.approx((90 / 110 + 0 + 100 / 200 + 0) / 4)
    assert "unreadable_answers" not in metrics["notes"]
    file.write_text(json.dumps([{"image_id": 7, "segmentation": box_rle(5, 5, 0, 0, 2, 2)}]))
    with pytest.raises(ValueError, match="proposal 1 of COCO_train2014_000000000007"):
        evaluate(replace(run, out=tmp_path / "other"), records=data, describer=nearest, progress=False)
    for content, message in (("{}", "no list of COCO results"), ("[", "no JSON"), ('[{"image_id": 3}]', "no list")):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            evaluate(run, records=data, describer=nearest, progress=False)
    file.write_text(json.dumps([{"image_id": 3, "segmentation": shifted}]))
    with pytest.raises(ValueError, match="in none of the pictures"):
        evaluate(run, records=data, describer=nearest, progress=False)


def write_objects(folder: Path, images: dict[str, list[dict[str, Any]]]) -> Path:
    from data_pipelines.writing import RecordWriter

    with RecordWriter(folder, source="coco", image_root=folder.parent) as writer:
        for image, rles in images.items():
            regions = tuple(Region(rle, "thing") for rle in rles)
            writer.add(RegionRecord(f"coco:{image}", "coco", image, *rles[0]["size"], regions))
    return folder


def test_annotated_objects_are_the_candidates(data: Records, tmp_path: Path) -> None:
    extra = box_rle(*SIZE, 3, 12, 9, 18)
    images = {"train2017/000000000007.jpg": [extra, LEFT, RIGHT, WIDE], "train2017/000000000009.jpg": [extra, RIGHT]}
    options = TaskOptions(objects=write_objects(tmp_path / "objects", images))
    run = run_of(data, task_options=options)
    metrics = evaluate(run, records=data, describer=oracle(data), progress=False)
    assert values(metrics)["mIoU"] == 1
    assert metrics["notes"]["candidates"] == "objects of objects; 3.5 a picture on average"
    predictions = read_predictions(run.out / "predictions.jsonl")
    assert [prediction.prediction for prediction in predictions] == ["2", "3", "4", "2"]
    fewer = write_objects(tmp_path / "fewer", {"000000000007.jpg": [LEFT]})
    with pytest.raises(ValueError, match="the folder of objects has none in COCO_train2014_000000000009"):
        evaluate(run_of(data, task_options=TaskOptions(objects=fewer)), records=data, progress=False)
    twice = write_objects(tmp_path / "twice", {"a/7.jpg": [LEFT], "b/7.jpg": [LEFT]})
    with pytest.raises(ValueError, match=r"the same elsewhere: a/7.jpg and b/7.jpg"):
        evaluate(run_of(data, task_options=TaskOptions(objects=twice)), records=data, progress=False)
    other = write_objects(tmp_path / "other", {"7.jpg": [box_rle(5, 5, 0, 0, 2, 2)], "9.jpg": [LEFT]})
    with pytest.raises(ValueError, match=r"is 20x30 pixels, the objects of a picture of that name are \[5, 5\]"):
        evaluate(run_of(data, task_options=TaskOptions(objects=other)), records=data, progress=False)


def test_a_control_with_other_regions_means_nothing_here(data: Records) -> None:
    with pytest.raises(ValueError, match="grounding has no control with shuffled regions"):
        evaluate(run_of(data, shuffle_seed=1), records=data, describer=oracle(data), progress=False)


def test_every_expression_of_a_region_has_an_id_of_its_own() -> None:
    record = expression_record("1", "a.png", LEFT, "one")
    again = replace(record, turns=(*record.turns, *expression_record("1", "a.png", LEFT, "two").turns))
    questions = list(about_each_expression(again, Path("a.png"), "what is <mask>"))
    assert [(question.id, question.facts["expression"]) for question in questions] == [
        ("refcoco:1#1", "one"),
        ("refcoco:1#1/2", "two"),
    ]


@pytest.mark.parametrize(
    ("image", "key"),
    [("train2014/COCO_train2014_000000581857.jpg", "581857"), ("000000581857.jpg", "581857"), (581857, "581857")],
)
def test_pictures_are_known_by_the_number_their_names_end_with(image: str | int, key: str) -> None:
    assert picture_key(image) == key
    assert picture_key("folder/b2x.jpg") == "b2x"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_synthetic(tmp_path_factory.mktemp("grounding"))


def test_synthetic_expressions_go_from_end_to_end(folders: Path, tmp_path: Path) -> None:
    found = []
    for size in ("1", "16"):
        arguments = ["--model", folders / "model", "--data", folders / "refcoco", "--out", tmp_path / size]
        more = ["--objects", folders / "synthetic", "--batch-size", size]
        assert main([str(argument) for argument in ["grounding", *arguments, *more]]) == 0
        found.append((tmp_path / size / "predictions.jsonl").read_text())
    assert found[0] == found[1]
    metrics = json.loads((tmp_path / "1" / "metrics.json").read_text())
    assert set(metrics["metrics"]) == {"box_accuracy", "mask_accuracy", "cIoU", "mIoU"}
    assert 0 < metrics["metrics"]["mask_accuracy"]["chance"] < 1

    records = RecordFolder.open(folders / "refcoco")
    objects = {record.image: record for record in RecordFolder.open(folders / "synthetic")}
    record, prediction = records[0], read_predictions(tmp_path / "1" / "predictions.jsonl")[0]
    session = RegionDescriber.from_pretrained(folders / "model").open(records.image_path(record))
    candidates = [region.segmentation for region in objects[record.image].regions]
    whole = np.ones((record.height, record.width), bool)
    scores = session.score([record.turns[1].text], [*candidates, whole], prediction.question)[:, 0]
    np.testing.assert_allclose(prediction.scores, scores[:-1] - scores[-1], atol=2e-4)
    assert int(prediction.prediction) == int(scores[:-1].argmax()) + 1
