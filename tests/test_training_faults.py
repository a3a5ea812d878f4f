"""Faults of the machine in the middle of a run: one line that says what to do, nothing lost, and the run goes on."""

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from osprey_tp.training.arguments import load_settings
from osprey_tp.training.out_of_memory import advice
from osprey_tp.training.trainer import StageTrainer
from scripts import train

from .killable_training import WarmTraining
from .test_training_checkpoints import before_step, error_of, result_of
from .test_training_run import settings, write_records
from .tiny_models import save_tiny_model

STEPS = 4


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("start") / "model")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"), 8)


def arguments_of(start: Path, records: Path, *more: str) -> list[str]:
    steps = (f"max_steps={STEPS}", "batch_size=4", "save_every=2", *more)
    return [*settings(start, records, Path("unused"), *steps), "stage=3"]


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmTraining]:
    with WarmTraining(tmp_path_factory.mktemp("logs")) as training:
        yield training


@pytest.fixture(scope="module")
def whole(start: Path, records: Path, training: WarmTraining, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A run that nothing disturbs, and where it wrote."""
    output = tmp_path_factory.mktemp("whole") / "out"
    done = training.run(arguments_of(start, records), output)
    assert done["codes"] == [0], done["said"]
    return {**done, "output": output}


@pytest.mark.parametrize("share", [0.55, 0.97])
def test_a_disk_that_fills_up_ends_a_run_in_one_line_and_it_goes_on(
    share, whole, start, records, training, tmp_path
) -> None:
    """From a moment on nothing can be written: in a checkpoint, or when the result is written."""
    moment = int(whole["moments"] * share)
    full = training.run(arguments_of(start, records), tmp_path / "out", fault=(moment, errno.ENOSPC))
    assert full["codes"] == [1], full["said"]
    assert "Traceback" not in full["said"], full["said"]
    last = full["said"].splitlines()[-1]
    assert last.startswith("error: ") and "No space left on device" in last and str(tmp_path) in last
    assert not (tmp_path / "out").exists()
    done = training.run(arguments_of(start, records), tmp_path / "out")
    assert done["codes"] == [0], done["said"]
    assert result_of(tmp_path / "out") == result_of(whole["output"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_done(start, records, training, tmp_path) -> None:
    refused = training.run(arguments_of(start, records), tmp_path / "out", fault=(0, errno.EROFS))
    assert refused["codes"] == [1]
    assert refused["said"].splitlines()[-1].startswith("error: ") and "Read-only file system" in refused["said"]
    assert f"{tmp_path}/out.unfinished" in refused["said"] and "Traceback" not in refused["said"]
    assert not list(tmp_path.iterdir())


def test_data_that_vanish_end_a_run_in_one_line_and_it_goes_on_when_they_are_back(
    whole, start, records, tmp_path, capsys
) -> None:
    images, hidden = records.parent / "images", tmp_path / "hidden"
    arguments = [*arguments_of(start, records), f"output={tmp_path}/out"]
    with before_step(2, lambda: shutil.move(images, hidden)):
        code = train.main(arguments)
    shutil.move(hidden, images)
    error = error_of(capsys)
    assert code == 1, error
    assert error.startswith("error: picture ") and error.endswith("restore it, or set on_missing_image=skip")
    assert train.main(arguments) == 0
    assert result_of(tmp_path / "out") == result_of(whole["output"])


def test_data_that_vanish_are_skipped_only_as_far_as_allowed(start, records, tmp_path, capsys) -> None:
    images, hidden = records.parent / "images", tmp_path / "hidden"
    arguments = [*arguments_of(start, records, "on_missing_image=skip", "max_skipped=5"), f"output={tmp_path}/out"]
    with before_step(2, lambda: shutil.move(images, hidden)):
        code = train.main(arguments)
    shutil.move(hidden, images)
    error = error_of(capsys)
    assert code == 1 and "samples were skipped, max_skipped is 5; the last is record coco:" in error
    assert len((tmp_path / "out.unfinished" / "skipped.jsonl").read_text().splitlines()) > 5


def test_without_memory_on_the_gpu_the_settings_to_change_are_told_and_the_run_goes_on_with_them(
    whole, start, records, tmp_path, capsys, monkeypatch
) -> None:
    arguments = [*arguments_of(start, records), f"output={tmp_path}/out"]
    step, sizes = StageTrainer.training_step, []

    def small(trainer: StageTrainer, model: torch.nn.Module, inputs: dict, *rest: object) -> torch.Tensor:
        """A GPU that holds batches of two from the third step on."""
        sizes.append(len(inputs["input_ids"]))
        if trainer.state.global_step >= 2 and sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB. More words.")
        return step(trainer, model, inputs, *rest)

    monkeypatch.setattr(StageTrainer, "training_step", small)
    assert train.main(arguments) == 1
    assert error_of(capsys) == (
        "error: no memory is left on the GPU (CUDA out of memory); give the same command again with "
        "gradient_checkpointing=true, or batch_size=2 gradient_accumulation=2: it goes on from the newest checkpoint"
    )
    assert train.main([*arguments, "batch_size=2", "gradient_accumulation=2", "gradient_checkpointing=true"]) == 0
    assert f"going on from {tmp_path}/out.unfinished/checkpoint-2\n" in capsys.readouterr().out
    assert sizes == [4, 4, 4, 2, 2, 2, 2]
    losses = [
        [entry["loss"] for entry in json.loads((folder / "training_log.json").read_text())]
        for folder in (whole["output"], tmp_path / "out")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_what_needs_less_memory_depends_on_what_is_set(start, records) -> None:
    def told(*more: str) -> str:
        return advice(load_settings(None, [*arguments_of(start, records), *more]))

    assert told("batch_size=9", "gradient_accumulation=2", "gradient_checkpointing=true") == (
        "batch_size=3 gradient_accumulation=6"
    )
    assert told("batch_size=1") == "gradient_checkpointing=true"
    assert "zero3.json" in told("batch_size=1", "gradient_checkpointing=true")
