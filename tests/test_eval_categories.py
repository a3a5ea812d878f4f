"""Scores by category: counts, order, intervals, what is shown in the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from eval.__main__ import main
from eval.captions import ptb_tokens
from eval.categories import SHOWN, by_category, most_frequent, worst
from eval.evaluation import Settings, evaluate
from eval.intervals import Measure, mean_measure
from eval.metrics import Scoring

from .eval_fakes import answers_to, knowing, make_data
from .tiny_models import save_tiny_model


def settings_for(tmp_path: Path) -> Settings:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return Settings("referring-classification", tmp_path / "data", tmp_path / "out", model=tmp_path / "model")


def test_categories_come_with_counts_and_the_most_frequent_first(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", [["red", "red", "blue"], ["red", "green"], ["red"]])
    describer = knowing(records)
    right = describer.answer
    describer.answer = lambda image, counts: "blue" if image == "0.png" else right(image, counts)
    metrics = evaluate(settings_for(tmp_path), records=records, describer=describer, progress=False)
    found = [(row["category"], row["regions"], row["images"], row["scores"]) for row in metrics["by_category"]]
    assert found == [
        ("red", 4, 3, {"semantic_iou": 0.5, "exact_match": 0.5}),
        ("blue", 1, 1, {"semantic_iou": 1.0, "exact_match": 1.0}),
        ("green", 1, 1, {"semantic_iou": 1.0, "exact_match": 1.0}),
    ]
    red, blue, _ = metrics["by_category"]
    assert 0 == red["low"] < 0.5 < red["high"] == 1
    assert blue["low"] is None
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Most frequent categories" in page
    assert "Categories with the lowest scores" not in page  # all are in the first table


def test_scores_over_all_classes_are_none_of_one_category() -> None:
    answers = answers_to(["red", "blue"], [("red",), ("blue",)])
    named = replace(answers, questions=[replace(item, category=item.references[0]) for item in answers.questions])
    mean = mean_measure("top_1", [1.0, 0.0])
    scoring = Scoring([mean, replace(mean, name="PQ", over_classes=True), Measure.whole("AP", 0.5, mean.values)])
    rows = by_category(scoring, named, "top_1")
    assert {row["category"]: row["scores"] for row in rows} == {"blue": {"top_1": 0.0}, "red": {"top_1": 1.0}}


def test_one_category_is_no_table(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", [["red"], ["red"]])
    metrics = evaluate(settings_for(tmp_path), records=records, describer=knowing(records), progress=False)
    assert metrics["by_category"] == []
    assert "Most frequent categories" not in (tmp_path / "out" / "report.html").read_text()


def rows_of(counts: list[int], scores: list[float]) -> list[dict[str, object]]:
    return [
        {"category": f"{place:02}", "regions": count, "scores": {"m": score}}
        for place, (count, score) in enumerate(zip(counts, scores, strict=True))
    ]


def test_the_worst_have_regions_enough_where_there_are_such() -> None:
    rows = rows_of([9, 8, 5, 4, 1], [0.9, 0.2, 0.5, 0.0, 0.1])
    assert [row["category"] for row in worst(rows, "m")] == ["01", "02", "00"]
    assert [row["category"] for row in worst(rows_of([2, 1], [0.9, 0.1]), "m")] == ["01", "00"]
    assert worst(rows, "other") == []
    assert len(most_frequent(rows_of([1] * 40, [0.5] * 40))) == SHOWN


def test_long_galleries_are_folded_into_pages(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", [["red ring", "green ring", "blue ring", "blue star"]] * 8)
    metrics = evaluate(settings_for(tmp_path), records=records, describer=knowing(records), progress=False)
    assert metrics["counts"]["regions"] == 32
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<summary>Lowest scores, 13 to 16</summary>" in page
    assert "<summary>Highest scores, 13 to 16</summary>" in page
    assert page.count('<figure class="item">') == 32


def test_empty_answers_of_a_file_are_scored_and_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = make_data(tmp_path / "data", [["red"], ["blue"]])
    file = tmp_path / "mine.jsonl"
    lines = [{"id": "fake:0#1", "prediction": "red"}, {"id": "fake:1#1", "prediction": " "}]
    file.write_text("\n".join(map(json.dumps, lines)))
    settings = replace(settings_for(tmp_path), model=None, predictions=file)
    with pytest.raises(
        ValueError, match=r"has 1 empty answers among 2, the first fake:1#1; they are scored as they are"
    ):
        evaluate(settings, records=records, progress=False)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["metrics"]["exact_match"]["value"] == 0.5
    assert metrics["counts"]["empty_answers"] == 1
    assert [json.loads(line)["id"] for line in (tmp_path / "out" / "predictions.jsonl").open()] == [
        "fake:0#1",
        "fake:1#1",
    ]


def test_answers_of_a_model_are_not_overwritten_by_those_of_a_file(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", [["red"], ["blue"]])
    settings = settings_for(tmp_path)
    evaluate(settings, records=records, describer=knowing(records), progress=False)
    own = settings.out / "predictions.jsonl"
    before, other = own.read_bytes(), tmp_path / "mine.jsonl"
    other.write_bytes(before)
    with pytest.raises(ValueError, match=r"out holds answers of a model \(run\.json\); give another --out"):
        evaluate(replace(settings, model=None, predictions=other), records=records, progress=False)
    again = evaluate(replace(settings, model=None, predictions=own, profile="osprey"), records=records, progress=False)
    assert again["metrics"]["exact_match"]["value"] == 1
    assert own.read_bytes() == before


def test_the_tokenizer_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert ptb_tokens([["A red ring, on the left."]]) == {0: ["a red ring on the left"]}
    assert capfd.readouterr() == ("", "")


def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    arguments = ["referring-classification", "--model", tmp_path / "model", "--data", tmp_path / "data"]
    assert main([str(argument) for argument in (*arguments, "--out", tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_models_of_another_kind_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = make_data(tmp_path / "data", [["red"]])
    monkeypatch.setattr("eval.evaluation.open_records", lambda folder: records)
    save_tiny_model(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    kept = {name: value for name, value in weights.items() if ".region_encoder." not in name}
    save_file(kept, tmp_path / "model" / "model.safetensors")
    capsys.readouterr()
    assert f"model has no region encoder ({len(kept)} weights" in command(tmp_path, capsys)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no weights")
    assert "model.safetensors is no whole safetensors file" in command(tmp_path, capsys)
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    assert "holds a model of type 'llama'" in command(tmp_path, capsys)
    (tmp_path / "model" / "config.json").write_text("{")
    assert "config.json is no JSON" in command(tmp_path, capsys)
    assert not (tmp_path / "out").exists()
