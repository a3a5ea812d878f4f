"""All tasks at once: what the data allow, published rows, failures that keep the rest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from eval.__main__ import main
from eval.evaluation import Settings, evaluate
from eval.everything import Outcome, evaluate_all, named, table_of, tasks_for
from eval.profiles import PROFILES
from eval.published import PUBLISHED, comparability, published_rows
from eval.tasks import NEEDS, TASKS, VERBATIM

from .eval_fakes import FakeDescriber, Records, knowing, make_data, prepare_synthetic


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_synthetic(tmp_path_factory.mktemp("all"))


def run(folders: Path, out: Path, *data: Path, more: Sequence[object] = ()) -> int:
    paths = ["--model", folders / "model", "--data", *data, "--out", out, *more]
    return main(["all", *map(str, paths), "--max-new-tokens", "4", "--limit", "5"])


def test_every_task_that_the_data_allow_is_run_and_failures_keep_the_rest(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folders / "synthetic", broken)
    manifest = json.loads((broken / "manifest.json").read_text())
    (broken / "manifest.json").write_text(json.dumps(manifest | {"image_root": "nowhere"}))
    assert run(folders, tmp_path / "out", broken, folders / "refcoco", folders / "synthetic", tmp_path / "none") == 1
    found = json.loads((tmp_path / "out" / "all.json").read_text())
    states = {(row["task"], row["data"]): row["state"] for row in found["runs"]}
    assert states["referring-classification", "synthetic"] == "done"
    assert states["region-caption", "refcoco"] == "done"
    assert states["referring-classification", "broken"] == states["", "none"] == "failed"
    captured = capsys.readouterr()
    failed = [state for state in states.values() if state == "failed"]
    assert f"error: {len(failed)} of {len(states)} failed, the first: " in captured.err.splitlines()[-1]
    assert "tokeniz" not in captured.err
    for row in found["runs"]:
        if row["state"] == "done":
            own = json.loads((tmp_path / "out" / row["results"] / "metrics.json").read_text())
            assert own["metrics"] == row["metrics"]
            assert (tmp_path / "out" / row["results"] / "report.html").is_file()
        else:
            assert row["reason"]
    page = (tmp_path / "out" / "all.html").read_text()
    assert "holds no manifest.json" in page
    assert "Region caption" in page


def test_options_go_to_the_tasks_that_take_them(folders: Path, tmp_path: Path) -> None:
    options = ["--candidates", "names", "--objects", folders / "synthetic", "--shuffle-regions", 0, "--sample"]
    assert run(folders, tmp_path, folders / "refcoco", more=options) == 0
    found = {path.parent.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/*/metrics.json")}
    assert {task: metrics["headline"] for task, metrics in found.items()} == {
        "referring-classification": "top_1",
        "open-vocab-segmentation": "top_1",
        "region-caption": "CIDEr",
        "grounding": "mIoU",
    }
    assert {task for task, metrics in found.items() if "control" not in metrics} == {"grounding"}
    assert {task for task, metrics in found.items() if metrics["decoding"]["do_sample"]} == {"region-caption"}
    assert found["grounding"]["options"]["candidates"] == "objects of synthetic"
    assert found["region-caption"]["options"] == {}


def test_a_task_that_lacks_something_is_named_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = replace(TASKS["referring-classification"], name="judged", needs=("judge",))
    monkeypatch.setitem(TASKS, "judged", judged)
    records = make_data(tmp_path / "data", [["red"], ["blue"]])
    settings = settings_for(tmp_path)
    outcomes = all_of(settings, records, monkeypatch)
    assert [(outcome.task, outcome.state) for outcome in outcomes if outcome.task in {"judged", judged.name}] == [
        ("judged", "left out")
    ]
    assert outcomes[-1].reason == f"needs {NEEDS['judge']}"
    with pytest.raises(ValueError, match="judged needs a judge"):
        evaluate(replace(settings, task="judged", data=tmp_path / "data"), records=records, progress=False)


def settings_for(tmp_path: Path) -> Settings:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return Settings("all", tmp_path / "data", tmp_path / "out", model=tmp_path / "model")


def all_of(settings: Settings, records: Records, monkeypatch: pytest.MonkeyPatch) -> list[Outcome]:
    monkeypatch.setattr("eval.everything.open_records", lambda folder: records)
    return evaluate_all(settings, [settings.data], load=lambda: knowing(records), progress=False)


def test_the_model_is_loaded_once_and_a_failing_task_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = make_data(tmp_path / "data", [["red"], ["blue"]], [["the red one"], ["a blue thing"]])
    right = knowing(records).answer

    def answer(image: str, counts: str) -> str:
        return right(image, counts)

    describer, loaded = FakeDescriber(answer), []
    monkeypatch.setattr("eval.everything.load_describer", lambda *_, **__: loaded.append(1) or describer)
    monkeypatch.setattr("eval.everything.open_records", lambda folder: records)
    settings = settings_for(tmp_path)
    out = settings.out / "referring-classification" / "data"
    out.mkdir(parents=True)
    (out / "run.json").write_text(json.dumps({"task": "another"}))
    outcomes = evaluate_all(settings, [settings.data], progress=False)
    states = {outcome.task: outcome.state for outcome in outcomes}
    assert states["referring-classification"] == "failed"
    assert states["region-caption"] == states["grounding"] == "done"
    assert loaded == [1]


def test_data_that_no_task_can_use_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = make_data(tmp_path / "data", [["", " "]])
    assert tasks_for(records) == []
    outcomes = all_of(settings_for(tmp_path), records, monkeypatch)
    assert [(outcome.state, outcome.reason) for outcome in outcomes] == [
        ("failed", "no task finds anything to ask in it")
    ]


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    names = named([tmp_path / "val" / "objects", tmp_path / "test" / "objects", tmp_path / "lvis"])
    assert list(names) == ["val-objects", "test-objects", "lvis"]
    with pytest.raises(ValueError, match="two data folders are called"):
        named([tmp_path / "a", tmp_path / "a"])


def metrics_of(profile: str) -> dict[str, object]:
    return {
        "model": {"folder": "ours"},
        "profile": profile,
        "decoding": {"do_sample": False},
        "counts": {"regions": 3},
        "metrics": {"semantic_iou": {"value": 0.5, "low": None, "high": None}},
        "not_measured": {},
        "options": {},
        "headline": "semantic_iou",
    }


@pytest.mark.parametrize(("profile", "same"), [("osprey", {"Osprey-7B"}), ("clean", set())])
def test_published_rows_stand_below_ours_and_say_whether_they_compare(profile: str, same: set[str]) -> None:
    outcome = Outcome("referring-classification", "lvis-1k", "lvis", "done", metrics=metrics_of(profile))
    rows = table_of([outcome])
    assert rows[0]["ours"]
    assert rows[0]["system"] == "ours"
    published = rows[1:]
    assert {row["system"] for row in published} == {"Osprey-7B", "DAM-8B", "PAM-3B", "VideoRefer-VL3-7B"}
    assert {row["system"] for row in published if row["comparison"] == "same profile"} == same
    osprey = next(row for row in published if row["system"] == "Osprey-7B")
    assert osprey["scores"] == pytest.approx({"semantic_similarity": 0.6524, "semantic_iou": 0.3819})
    assert osprey["note"] == "sampled at temperature 0.2"


def test_published_rows_are_sourced_and_of_known_rules() -> None:
    assert all(row.paper and row.benchmark and row.scores for row in PUBLISHED)
    assert {row.profile for row in PUBLISHED} <= {"", VERBATIM, *PROFILES}
    assert all(0 < value < 2 for row in PUBLISHED for value in row.scores.values())
    assert published_rows("region-caption", "lvis") == []
    unknown = next(row for row in PUBLISHED if not row.profile)
    assert "not comparable" in comparability(unknown, "osprey")


def test_a_report_shows_published_rows_of_its_source(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", [["red"], ["blue"]])
    (tmp_path / "data" / "manifest.json").write_text(json.dumps({"source": "paco"}))
    settings = replace(settings_for(tmp_path), task="referring-classification", profile="osprey")
    evaluate(settings, records=records, describer=knowing(records), progress=False)
    page = (settings.out / "report.html").read_text()
    assert (
        page.index("Beside published systems") < page.index("52.7") < page.index("profile pixelrefer: not comparable")
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["all", "--predictions", "p", "--data", "d"], "go with one"),
        (["all", "--model", "m", "--data", "d", "--compare", "r"], "go with one"),
        (["region-caption", "--model", "m", "--data", "d", "e"], "takes one data folder, got 2; `all` takes several"),
    ],
)
def test_wrong_options_are_named(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*options, "--out", "o"])
    assert message in capsys.readouterr().err
