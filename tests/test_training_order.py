"""The samples that training sees: the same when a run breaks off and goes on, and for two processes as for one."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from scripts import train

from . import preloaded
from .order_under_torchrun import run, run_interrupted
from .test_training_run import settings, write_records
from .tiny_models import save_tiny_model

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = 7


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("start") / "model")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven samples an epoch: two records twice each, and three of nine."""
    folder = tmp_path_factory.mktemp("mixture")
    write_records(folder / "often", 2, "often")
    write_records(folder / "rarely", 9, "rarely")
    file = folder / "mixture.yaml"
    entries = [{"path": "often/records", "weight": 2, "max_regions": 1}, {"path": "rarely/records", "limit": 3}]
    file.write_text(yaml.safe_dump({"folders": entries}))
    return file


def steps_of(seen: list) -> list[list]:
    """The samples of each optimiser step."""
    return [[sample for step, sample in seen if step == number] for number in range(seen[-1][0] + 1)]


def test_a_run_that_goes_on_in_its_second_epoch_sees_the_same_samples(start, mixture, tmp_path) -> None:
    # Four optimiser steps an epoch; the checkpoint lies in the middle of the second.
    arguments = [*settings(start, mixture, tmp_path), "max_steps=11", "save_every=6", "batch_size=2", "workers=2"]
    whole = run([*arguments, f"output={tmp_path}/whole"])
    resumed = run_interrupted([*arguments, f"output={tmp_path}/resumed"], steps=8, saved=6)
    assert resumed == whole
    steps = steps_of(whole)
    assert [len(samples) for samples in steps] == [2] * 11
    epochs = [[sample for step in steps[first : first + 4] for sample in step] for first in (0, 4)]
    assert all(epoch[SAMPLES:] == epoch[:1] for epoch in epochs)
    assert all(sum(sample[0].startswith("often") for sample in epoch[:SAMPLES]) == 4 for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_two_processes_see_the_order_of_one(start, mixture, tmp_path) -> None:
    arguments = [*settings(start, mixture, tmp_path), "max_steps=7", "save_every=5", "batch_size=1", "workers=1"]
    alone = run([*arguments, f"output={tmp_path}/alone", "gradient_accumulation=2"])
    done = subprocess.run(
        [
            *(preloaded.python(), "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"),
            *("-m", "tests.order_under_torchrun", str(tmp_path), "6", "5", *arguments),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    wanted = json.loads(json.dumps(steps_of(alone)))
    for name in ("whole", "resumed"):
        of_ranks = [steps_of(rank[name]) for rank in ranks]
        together = [first + second for first, second in zip(*of_ranks, strict=True)]
        assert together == wanted, name


def test_a_mixture_that_changes_under_an_interrupted_run_is_refused(start, mixture, tmp_path, capsys) -> None:
    file = mixture.with_name("changing.yaml")
    file.write_text(mixture.read_text())
    arguments = [*settings(start, file, tmp_path), f"output={tmp_path}/out"]
    run(arguments, steps=3)
    assert (tmp_path / "out.unfinished" / "checkpoint-2").is_dir()
    file.write_text(mixture.read_text().replace("limit: 3", "limit: 4"))
    assert train.main(arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path}/out.unfinished holds a run with other data")
    assert train.main([*arguments, "resume=never", "max_steps=1"]) == 0
    saved = json.loads((tmp_path / "out" / "training_data.json").read_text())
    assert [folder["samples"] for folder in saved["folders"]] == [4, 4]


def test_a_mixture_stands_alone(start, mixture, tmp_path, capsys) -> None:
    records = mixture.parent / "often" / "records"
    assert train.main([*settings(start, records, tmp_path / "out"), f"data=[{mixture}, {records}]"]) == 1
    assert "a mixture, and more; add the other folders to the mixture" in capsys.readouterr().err
    assert train.main([*settings(start, mixture.with_name("absent.yaml"), tmp_path / "out")]) == 1
    assert "absent.yaml" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())
