"""A run that is killed with -9, whenever that is, goes on from what it left and comes to the same weights and log."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from .killable_training import WarmTraining
from .test_training_run import settings, write_records
from .tiny_models import save_tiny_model
from .training_logs import reproducible_log

ROOT = Path(__file__).resolve().parents[1]
KILLS = 10
STEPS = 7


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("start") / "model")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"), 10)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmTraining]:
    with WarmTraining(tmp_path_factory.mktemp("logs"), "deepspeed", "accelerate.utils.deepspeed") as training:
        yield training


def arguments_of(start: Path, records: Path) -> list[str]:
    """Three optimiser steps an epoch, the last of one batch; a checkpoint every two, a log entry every three."""
    more = (f"max_steps={STEPS}", "batch_size=2", "gradient_accumulation=2", "save_every=2", "log_every=3")
    return [*settings(start, records, Path("unused"), *more), "stage=3"]


def result_of(output: Path) -> tuple[bytes, bytes]:
    return (output / "model.safetensors").read_bytes(), reproducible_log(output / "training_log.json")


def test_killed_at_ten_moments_a_run_comes_to_the_same_weights_and_log(start, records, tmp_path, training) -> None:
    arguments = arguments_of(start, records)
    whole = training.run(arguments, tmp_path / "whole")
    assert whole["codes"] == [0], whole["said"]
    moments = whole["moments"]
    chosen = random.Random(4)
    kills = [chosen.randrange(moments * part // KILLS, moments * (part + 1) // KILLS) + 1 for part in range(KILLS)]
    for kill in kills:
        output = tmp_path / f"killed{kill}"
        assert training.run(arguments, output, kill)["codes"] == [-9]
        resumed = training.run(arguments, output)
        assert resumed["codes"] == [0], resumed["said"]
        assert result_of(output) == result_of(tmp_path / "whole"), f"killed at moment {kill} of {moments}"
        assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(f"killed{kill}.")]


@pytest.mark.parametrize("zero", [2, 3])
def test_two_processes_under_zero_go_on_to_the_same_loss(start, records, tmp_path, training, zero) -> None:
    file = ROOT / "scripts" / "configs" / "deepspeed" / f"zero{zero}.json"
    arguments = [*arguments_of(start, records), "batch_size=1", "max_steps=5", "log_every=1", f"deepspeed={file}"]
    whole, output = tmp_path / "whole", tmp_path / "killed"
    found = training.run(arguments, whole, processes=2)
    assert found["codes"] == [0, 0], found["said"]
    kill = random.Random(zero).randrange(found["moments"] * 3 // 10, found["moments"] * 7 // 10)
    assert training.run(arguments, output, kill, processes=2)["codes"] == [-9, -9]
    assert not output.exists()
    resumed = training.run(arguments, output, processes=2)
    assert resumed["codes"] == [0, 0], resumed["said"]
    assert f"going on from {output}.unfinished/checkpoint-" in resumed["said"]
    logs = [json.loads((folder / "training_log.json").read_text()) for folder in (whole, output)]
    assert [entry["loss"] for entry in logs[1]] == pytest.approx([entry["loss"] for entry in logs[0]], abs=5e-5)
    weights = [load_file(folder / "model.safetensors") for folder in (whole, output)]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[1][name] - value).abs().max() < 1e-5 for name, value in weights[0].items())


def test_a_signal_to_one_process_ends_both_with_a_checkpoint(start, records, tmp_path, training) -> None:
    arguments = [*arguments_of(start, records), "batch_size=1"]
    ended = training.run(arguments, tmp_path / "out", processes=2, terminate=(1, 6))
    assert ended["codes"] == [0, 0], ended["said"]
    assert ended["said"].count("ended by SIGTERM after step 3; give the same command again") == 1
    resumed = training.run(arguments, tmp_path / "out", processes=2)
    assert resumed["codes"] == [0, 0], resumed["said"]
    assert f"going on from {tmp_path}/out.unfinished/checkpoint-3\n" in resumed["said"]


def test_a_process_whose_batches_are_all_skipped_keeps_up(start, records, tmp_path, training) -> None:
    damaged = shutil.copytree(records.parent, tmp_path / "data") / "records"
    for place in (1, 3, 5, 7, 9):  # every second batch of one sample is that of the second process
        (damaged.parent / "images" / f"{place}.png").unlink()
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text("folders: [{path: data/records}]\n")
    arguments = [*arguments_of(start, mixture), "batch_size=1", "on_missing_image=skip", "log_every=1"]
    done = training.run(arguments, tmp_path / "out", processes=2)
    assert done["codes"] == [0, 0], done["said"]
    skips = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert {int(skip["id"].removeprefix("coco:")) % 2 for skip in skips} == {1}
    assert {skip["step"] for skip in skips} <= set(range(1, STEPS + 1))
    assert done["said"].count("skipped record") == len(skips)
    alone = training.run([*arguments, "batch_size=2"], tmp_path / "alone")
    assert alone["codes"] == [0], alone["said"]
    logs = [json.loads((tmp_path / name / "training_log.json").read_text()) for name in ("out", "alone")]
    assert [entry["loss"] for entry in logs[0]] == pytest.approx([entry["loss"] for entry in logs[1]], rel=1e-4)
