"""A whole evaluation with a stand-in model: files, control, resuming, scoring of anybody's predictions, errors."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path

import pytest

from data_pipelines.synthetic import vocabulary
from eval.__main__ import main
from eval.evaluation import Settings, evaluate
from eval.tasks import TASKS

from .eval_fakes import Records, knowing, make_data

NAMES = [[vocabulary.region_name(*triple) for triple in vocabulary.TRIPLES[start : start + 4]] for start in (0, 50, 99)]


@pytest.fixture
def data(tmp_path: Path) -> Records:
    return make_data(tmp_path / "data", NAMES)


@pytest.fixture
def run(tmp_path: Path) -> Settings:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return Settings(
        "referring-classification", tmp_path / "data", tmp_path / "out", model=tmp_path / "model", shuffle_seed=3
    )


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "data", "action"}]


def test_a_perfect_model_scores_one_and_its_control_what_is_expected(data: Records, run: Settings) -> None:
    metrics = evaluate(run, records=data, describer=knowing(data), progress=False)
    assert metrics == json.loads((run.out / "metrics.json").read_text())
    assert {name: row["value"] for name, row in metrics["metrics"].items()} == dict.fromkeys(metrics["metrics"], 1.0)
    control = metrics["control"]
    assert {name: row["value"] for name, row in control["metrics"].items()} == control["expected"]
    assert control["metrics"]["all_attributes"]["value"] == 0
    assert metrics["metrics"]["all_attributes"]["chance"] == pytest.approx(1 / 144)
    assert metrics["counts"] == {"regions": 12, "images": 3, "empty_answers": 0}
    assert metrics["decoding"] == {"do_sample": False, "num_beams": 1, "max_new_tokens": 32, "batch_size": 16}
    assert metrics["profile"] == "clean"
    assert len(metrics["model"]["checksum"]) == len(metrics["data"]["checksum"]) == 64
    assert metrics["versions"]["numpy"]


def test_the_report_is_one_page_that_loads_nothing(data: Records, run: Settings) -> None:
    describer = knowing(data)
    right = describer.answer
    describer.answer = lambda image, counts: "<script>alert(1)</script>" if image == "0.png" else right(image, counts)
    evaluate(run, records=data, describer=describer, progress=False)
    text = (run.out / "report.html").read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert "&lt;script&gt;alert(1)" in text
    assert page.addresses
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert text.index("Lowest scores") < text.index("alert(1)") < text.index("Highest scores")
    for words in ("Semantic IoU", "shuffled regions", "chance", "95% interval", "Semantic Similarity was not measured"):
        assert words in text


def test_empty_answers_are_counted_and_wrong(data: Records, run: Settings) -> None:
    describer = knowing(data)
    right = describer.answer
    describer.answer = lambda image, counts: " " if image == "0.png" else right(image, counts)
    metrics = evaluate(replace(run, shuffle_seed=None), records=data, describer=describer, progress=False)
    assert metrics["counts"]["empty_answers"] == 4
    assert metrics["metrics"]["exact_match"]["value"] == pytest.approx(8 / 12)
    assert "control" not in metrics


def test_the_same_run_goes_on_and_another_is_refused(data: Records, run: Settings) -> None:
    evaluate(replace(run, limit=5, shuffle_seed=None), records=data, describer=knowing(data), progress=False)
    describer = knowing(data)
    metrics = evaluate(run, records=data, describer=describer, progress=False)
    assert metrics["counts"]["regions"] == 12
    assert sum(size for _, size, _, _ in describer.asked) == 7 + 12
    again = evaluate(replace(run, limit=5), records=data, describer=knowing(data), progress=False)
    assert again["counts"]["regions"] == 5
    for change, name in (({"question": "Name <mask>."}, "question"), ({"shuffle_seed": 4}, "shuffle_seed")):
        with pytest.raises(ValueError, match=rf"answers of another run \(different: {name}\)"):
            evaluate(replace(run, **change), records=data, describer=knowing(data), progress=False)
    (run.model / "config.json").write_text("{ }")
    with pytest.raises(ValueError, match=r"different: model"):
        evaluate(run, records=data, describer=knowing(data), progress=False)


def test_captions_are_scored(tmp_path: Path, run: Settings) -> None:
    answers = [["the red ring on the left", "a blue star above it"], ["a green cross", "a small dotted circle"]]
    data = make_data(tmp_path / "captions", [["ring", "star"], ["cross", "circle"]], answers)
    by_name = dict(zip(["ring", "star", "cross", "circle"], chain(*answers), strict=True))
    describer = knowing(data)
    named = describer.answer
    describer.answer = lambda image, counts: by_name[named(image, counts)]
    settings = replace(run, task="region-caption", data=tmp_path / "captions")
    metrics = evaluate(settings, records=data, describer=describer, progress=False)
    values = {name: row["value"] for name, row in metrics["metrics"].items()}
    assert values["METEOR"] == values["ROUGE_L"] == 1
    assert values["Bleu_4"] == pytest.approx(1, abs=1e-3)
    assert values["CIDEr"] > 5
    assert metrics["control"]["metrics"]["CIDEr"]["value"] < 1
    assert "Penn Treebank" in metrics["notes"]["caption_tokenizer"]
    assert "METEOR" in (run.out / "report.html").read_text()


def write_predictions(path: Path, lines: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps({"id": key, "prediction": text}) + "\n" for key, text in lines.items()))
    return path


def right_answers() -> dict[str, str]:
    return {
        f"fake:{image}#{region + 1}": name for image, names in enumerate(NAMES) for region, name in enumerate(names)
    }


def test_predictions_of_anybody_are_scored(data: Records, run: Settings, tmp_path: Path) -> None:
    lines = right_answers() | {"fake:1#2": "no idea"}
    file = write_predictions(tmp_path / "mine.jsonl", lines)
    settings = replace(run, model=None, shuffle_seed=None, predictions=file)
    metrics = evaluate(settings, records=data, progress=False)
    assert metrics["metrics"]["exact_match"]["value"] == pytest.approx(11 / 12)
    assert metrics["predictions"]["file"] == "mine.jsonl"
    assert metrics["by_region_size"] == {}
    assert "no idea" in (run.out / "report.html").read_text()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            '{"id": "fake:9#1", "prediction": "x"}\n',
            r"answers 1 questions that the data does not ask, the first fake:9#1",
        ),
        ('{"id": "fake:0#1", "prediction": "x"}\n', r"lacks 11 of 12 answers, the first fake:0#2"),
        ('{"id": "fake:0#1", "prediction": "x"}\n' * 2, r"1 ids stand twice, the first fake:0#1 \(lines 1 and 2\)"),
        ('{"id": "fake:0#1"}\n', r'line 1 has no text "prediction"'),
        ("[1]\n", r"line 1 holds list"),
        ("\xff\n", r"line 1 is no JSON"),
        ('{"id": "a", "prediction": "x", "region_cells": "many"}\n', r'"region_cells" is \'many\'; needed is a number'),
    ],
)
def test_predictions_that_do_not_fit_are_refused(
    data: Records, run: Settings, tmp_path: Path, lines: str, message: str
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_bytes(lines.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        evaluate(replace(run, model=None, shuffle_seed=None, predictions=file), records=data, progress=False)
    assert not (run.out / "metrics.json").exists()


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.err.strip() or captured.out


def test_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = command(capsys, "list")
    assert code == 0
    names, needs = out.splitlines()[::2], out.splitlines()[1::2]
    assert [line.split()[0] for line in names] == list(TASKS)
    assert [line.split()[0] for line in needs] == ["needs"] * len(TASKS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["referring-classification"], "needed: --data DIR and --out DIR"),
        (["referring-classification", "--data", "d", "--out", "o"], "either --model DIR"),
        (["captions", "--data", "d", "--out", "o", "--model", "m"], "invalid choice"),
        (
            ["region-caption", "--data", "d", "--out", "o", "--predictions", "p", "--shuffle-regions", "1"],
            "cannot go with",
        ),
        (["region-caption", "--data", "d", "--out", "o", "--model", "m", "--limit", "0"], "0 is not positive"),
    ],
)
def test_wrong_arguments_are_named(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    code, error = command(capsys, *arguments)
    assert code == 2
    assert message in error


def test_errors_are_one_line_and_leave_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: Records, run: Settings
) -> None:
    arguments = ["referring-classification", "--out", run.out, "--model", run.model]
    code, error = command(capsys, *arguments, "--data", tmp_path / "nothing")
    assert (code, error.count("\n")) == (1, 0)
    assert "holds no manifest.json" in error
    code, error = command(capsys, *arguments, "--data", run.data, "--question", "What is it?")
    assert (code, error.count("\n")) == (1, 0)
    assert "0 <mask> placeholders" in error
    assert not run.out.exists()


def test_a_half_written_result_is_never_left(data: Records, run: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(run, records=data, describer=knowing(data), progress=False)
    before = (run.out / "metrics.json").read_text()
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        evaluate(run, records=data, describer=knowing(data), progress=False)
    monkeypatch.undo()
    assert (run.out / "metrics.json").read_text() == before
    shutil.rmtree(run.out)
