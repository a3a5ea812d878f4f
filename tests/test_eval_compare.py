"""What changed between two runs: paired intervals, changed items in order, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.__main__ import main
from eval.comparison import differing
from eval.evaluation import Settings, evaluate
from eval.intervals import RESAMPLES, SEED, Measure, estimate_difference, mean_measure

from .eval_fakes import Records, knowing, make_data

NAMES = [["red ring", "green star", "blue cross"], ["red star", "blue ring"], ["green ring"]]


def test_a_difference_is_paired() -> None:
    rng = np.random.default_rng(0)
    images = [f"{number // 3:02}" for number in range(60)]
    before = rng.random(60)
    after = before + 0.1
    found = estimate_difference(mean_measure("m", before), mean_measure("m", after), images)
    assert found is not None
    assert (found.difference, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    noisy = after + rng.normal(0, 0.2, 60)
    found = estimate_difference(mean_measure("m", before), mean_measure("m", noisy), images)
    of_images = (noisy - before).reshape(20, 3).mean(axis=1)
    draws = np.random.default_rng(SEED).multinomial(20, np.full(20, 1 / 20), size=RESAMPLES)
    expected = np.quantile(draws @ of_images / 20, [0.025, 0.975])
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(expected))


def test_a_difference_needs_answers_on_both_sides_and_two_pictures() -> None:
    one, none = mean_measure("m", [1.0, 0.0]), mean_measure("m", [np.nan, np.nan])
    assert estimate_difference(one, none, ["a", "b"]) is None
    found = estimate_difference(one, one, ["a", "a"])
    assert found is not None
    assert (found.before, found.difference, found.low) == (0.5, 0.0, None)
    left_out = estimate_difference(mean_measure("m", [1.0, np.nan]), one, ["a", "b"])
    assert left_out is not None
    assert (left_out.before, left_out.after) == (1.0, 0.5)
    assert left_out.low is not None and left_out.high is not None
    assert estimate_difference(none, one, ["a", "b"]) is None


def test_a_difference_of_scores_that_are_no_formula_has_no_interval() -> None:
    before, after = (Measure.whole("AP", value, np.ones(3)) for value in (0.25, 0.5))
    found = estimate_difference(before, after, ["a", "b", "c"])
    assert found is not None
    assert (found.difference, found.low, found.high) == (0.25, None, None)
    mean = mean_measure("AP", [1.0, 0.0, 0.5])
    for pair in ((before, mean), (mean, before)):
        found = estimate_difference(*pair, ["a", "b", "c"])
        assert found is not None
        assert (found.low, found.high) == (None, None)


def test_settings_that_differ_are_named_part_by_part() -> None:
    before = {"model": {"folder": "a", "checksum": "1"}, "question": "What?", "versions": {"torch": "1"}}
    after = {"model": {"folder": "b", "checksum": "1"}, "question": "What?", "predictions": {"file": "x"}}
    assert differing(before, after) == {
        "model folder": ["a", "b"],
        "predictions": [None, {"file": "x"}],
        "versions": [{"torch": "1"}, None],
    }


@pytest.fixture
def data(tmp_path: Path) -> Records:
    return make_data(tmp_path / "data", NAMES)


@pytest.fixture
def run(tmp_path: Path, data: Records) -> Settings:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"name": name}))
    settings = Settings("referring-classification", tmp_path / "data", tmp_path / "a", model=tmp_path / "first")
    describer = knowing(data)
    right = describer.answer
    answers = {"red ring": "ring", "green ring": "<b>no idea</b>", "blue ring": ""}
    describer.answer = lambda image, counts: answers.get(right(image, counts), right(image, counts))
    evaluate(settings, records=data, describer=describer, progress=False)
    return replace(settings, out=tmp_path / "b", model=tmp_path / "second", compare=tmp_path / "a")


def second(data: Records) -> object:
    describer = knowing(data)
    right = describer.answer
    describer.answer = lambda image, counts: "star" if right(image, counts) == "green star" else right(image, counts)
    return describer


def test_changed_answers_are_listed_the_most_improved_first(data: Records, run: Settings) -> None:
    evaluate(run, records=data, describer=second(data), progress=False)
    found = json.loads((run.out / "compare.json").read_text())
    assert found["counts"] == {"items": 6, "images": 3, "changed": 4, "higher": 3, "lower": 1}
    assert [(item["id"], item["score_before"], item["score_after"]) for item in found["items"]] == [
        ("fake:1#2", 0.0, 1.0),
        ("fake:2#1", 0.0, 1.0),
        ("fake:0#1", 0.5, 1.0),
        ("fake:0#2", 1.0, 0.5),
    ]
    row = found["metrics"]["semantic_iou"]
    assert (row["before"], row["after"], row["difference"]) == pytest.approx((3.5 / 6, 5.5 / 6, 2 / 6))
    assert row["low"] <= row["difference"] <= row["high"]
    assert (row["higher"], row["lower"]) == (3, 1)
    assert found["metrics"]["exact_match"]["difference"] == pytest.approx(2 / 6)
    assert set(found["differing_settings"]) == {"model folder", "model checksum"}
    page = (run.out / "compare.html").read_text()
    assert page.index("Better, most first") < page.index("Worse, most first") < page.index("All changed answers")
    for text in ("&lt;b&gt;no idea", "(empty)", "50.0 → 100.0", "+33.3", "first", "second"):
        assert text in page
    assert "<b>no" not in page


def test_a_run_beside_itself_changes_nothing(data: Records, run: Settings) -> None:
    settings = replace(run, out=run.compare, model=run.model.parent / "first", compare=run.compare)
    evaluate(settings, records=data, describer=second(data), progress=False)
    found = json.loads((settings.out / "compare.json").read_text())
    assert found["items"] == []
    assert found["differing_settings"] == {}
    assert all(row["difference"] == row["low"] == row["high"] == 0 for row in found["metrics"].values())
    assert "Nothing differs" in (settings.out / "compare.html").read_text()


def test_predictions_of_anybody_are_compared_too(data: Records, run: Settings, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    lines = [
        {"id": f"fake:{i}#{j + 1}", "prediction": name} for i, names in enumerate(NAMES) for j, name in enumerate(names)
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    evaluate(replace(run, model=None, predictions=file), records=data, progress=False)
    found = json.loads((run.out / "compare.json").read_text())
    assert found["metrics"]["exact_match"]["after"] == 1
    assert found["differing_settings"]["predictions"][1]["file"] == "mine.jsonl"


def test_what_cannot_be_compared_is_refused_before_anything_is_asked(
    data: Records, run: Settings, tmp_path: Path
) -> None:
    describer = knowing(data)
    (tmp_path / "other").mkdir()
    for settings, message in (
        (
            replace(run, compare=tmp_path / "nowhere"),
            r"nowhere holds no metrics\.json; --compare takes the --out folder",
        ),
        (replace(run, task="region-caption"), r"holds results of referring-classification, not of region-caption"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            evaluate(settings, records=data, describer=describer, progress=False)
    (tmp_path / "data" / "manifest.json").write_text(json.dumps({"source": "other"}))
    with pytest.raises(ValueError, match=r"was run on other data \(folder data, checksum"):
        evaluate(run, records=data, describer=describer, progress=False)
    assert not describer.opened
    assert not run.out.exists()


def test_a_run_over_fewer_questions_says_how_to_compare(data: Records, run: Settings, tmp_path: Path) -> None:
    few = replace(run, out=tmp_path / "few", limit=2, compare=None)
    evaluate(few, records=data, describer=knowing(data), progress=False)
    with pytest.raises(ValueError, match=r"few answers 2 of the 6 questions of .*; .* both with --limit 2"):
        evaluate(replace(run, compare=few.out), records=data, describer=knowing(data), progress=False)
    evaluate(replace(run, compare=few.out, limit=2), records=data, describer=second(data), progress=False)
    assert json.loads((run.out / "compare.json").read_text())["counts"]["items"] == 2


def test_the_command_names_the_page_and_refuses_in_one_line(
    data: Records, run: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["referring-classification", "--model", run.model, "--data", run.data, "--out", run.out]
    assert main([str(argument) for argument in (*arguments, "--compare", tmp_path / "second")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
