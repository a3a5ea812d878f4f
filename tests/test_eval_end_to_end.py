"""The command on real parts: synthetic scenes, prepared records, a tiny random model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data_pipelines.prepare import prepare
from data_pipelines.records import RecordFolder
from data_pipelines.synthetic.writer import write_scenes
from eval.__main__ import main
from eval.predictions import read_predictions
from osprey_tp import RegionDescriber
from osprey_tp.coverage import area_coverage
from osprey_tp.images import load_image
from osprey_tp.masks import to_runs
from osprey_tp.prompts import CATEGORY_QUESTION

from .tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("evaluation")
    write_scenes(root / "scenes", {"test": 3}, progress=False)
    for source, file in (("synthetic", "instances_test.json"), ("refcoco", "refs_test.json")):
        annotations = root / "scenes" / "annotations" / file
        prepare(source, annotations, root / "scenes" / "images" / "test", root / source, progress=False)
    return {"root": root, "model": save_tiny_model(root / "model")}


def run_command(folders: dict[str, Path], task: str, source: str, out: Path, *options: str) -> int:
    arguments = [task, "--model", folders["model"], "--data", folders["root"] / source, "--out", out, *options]
    return main([str(argument) for argument in arguments])


def test_the_command_asks_what_the_session_answers(folders: dict[str, Path], tmp_path: Path) -> None:
    options = ("--batch-size", "3", "--max-new-tokens", "6", "--shuffle-regions", "1", "--profile", "osprey")
    assert run_command(folders, "referring-classification", "synthetic", tmp_path, *options) == 0
    found = {prediction.id: prediction for prediction in read_predictions(tmp_path / "predictions.jsonl")}
    records = RecordFolder.open(folders["root"] / "synthetic")
    assert len(found) == sum(len(record.regions) for record in records)

    describer = RegionDescriber.from_pretrained(folders["model"])
    tiling = describer.processor.image_processor.tiling
    for record in records:
        session = describer.open(load_image(records.image_path(record)))
        for number, region in enumerate(record.regions, start=1):
            prediction = found[f"{record.id}#{number}"]
            assert session.ask([region.segmentation], CATEGORY_QUESTION, max_new_tokens=6) == [prediction.prediction]
            assert prediction.references == (region.name,)
            runs = to_runs(region.segmentation, record.height, record.width)
            coverage = area_coverage([runs], tiling.plan(record.height, record.width))
            assert prediction.region_cells == pytest.approx(coverage.sum(), rel=1e-4)
            assert prediction.area_share == pytest.approx(runs.area / (record.height * record.width))

    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["profile"] == "osprey"
    assert metrics["control"]["counts"]["regions"] == len(found)
    assert metrics["metrics"]["all_attributes"]["chance"] == pytest.approx(1 / 144)
    assert "Lowest scores" in (tmp_path / "report.html").read_text()


def test_expressions_are_captioned(folders: dict[str, Path], tmp_path: Path) -> None:
    assert run_command(folders, "region-caption", "refcoco", tmp_path, "--limit", "4", "--max-new-tokens", "4") == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["counts"]["regions"] == 4
    assert {"METEOR", "CIDEr", "ROUGE_L", "Bleu_4"} <= set(metrics["metrics"])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    return error


def test_what_is_missing_is_said_in_one_line(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(folders, "region-caption", "scenes", tmp_path / "out") == 1
    assert "data_pipelines prepare" in one_line(capsys)
    bare = tmp_path / "bare"
    shutil.copytree(folders["model"], bare)
    (bare / "processor_config.json").unlink()
    assert run_command(folders | {"model": bare}, "referring-classification", "synthetic", tmp_path / "out") == 1
    assert "processor" in one_line(capsys)
    question = ("--question", "What are <mask> and <mask>?")
    assert run_command(folders, "referring-classification", "synthetic", tmp_path / "out", *question) == 1
    assert "2 <mask> placeholders" in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_a_picture_that_cannot_be_read_keeps_the_answers_so_far(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folders["root"] / "scenes", tmp_path / "scenes")
    shutil.copytree(folders["root"] / "synthetic", tmp_path / "synthetic")
    records = list(RecordFolder.open(folders["root"] / "synthetic"))
    broken = next((tmp_path / "scenes" / "images").rglob(Path(records[-1].image).name))
    broken.write_bytes(b"no picture")
    here, out = folders | {"root": tmp_path}, tmp_path / "out"
    options = ("--max-new-tokens", "2")
    assert run_command(here, "referring-classification", "synthetic", out, *options) == 1
    assert broken.name in capsys.readouterr().err.splitlines()[-1]
    kept = read_predictions(out / "predictions.jsonl")
    assert len(kept) == sum(len(record.regions) for record in records[:-1])
    assert not (out / "metrics.json").exists()

    shutil.copy(folders["root"] / "scenes" / broken.relative_to(tmp_path / "scenes"), broken)
    assert run_command(here, "referring-classification", "synthetic", out, *options) == 0
    assert read_predictions(out / "predictions.jsonl")[: len(kept)] == kept
