"""Checkpoints: exact resumption, broken ones, signals, one run at a time, what the finished folder holds."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from osprey_tp.training import ranks
from osprey_tp.training.arguments import load_settings
from osprey_tp.training.checkpoints import SEAL_FILE, checkpoint_to_resume, keep_newest, newest_sound
from osprey_tp.training.interruption import leave_signals_to_the_run
from osprey_tp.training.outputs import RunFolder
from osprey_tp.training.trainer import StageTrainer
from scripts import train

from .test_training_run import settings, write_records
from .tiny_models import tiny_model
from .training_logs import reproducible_log

STEPS = 8


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that draws random numbers in every step."""
    folder = tmp_path_factory.mktemp("start") / "model"
    model, processor = tiny_model()
    model.config.text_config.attention_dropout = 0.2
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def arguments(start: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three optimiser steps an epoch, the last of one batch; a log entry every five steps."""
    records = write_records(tmp_path_factory.mktemp("records"), 10)
    more = (f"max_steps={STEPS}", "batch_size=2", "gradient_accumulation=2", "log_every=5", "save_every=2")
    return [*settings(start, records, Path("unused"), *more), "stage=3"]


@pytest.fixture(scope="module")
def whole(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing interrupts."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert train.main([*arguments, f"output={output}"]) == 0
    return output


@contextmanager
def before_step(number: int, action: Callable[[], None]) -> Iterator[None]:
    """Do something, once, when the first batch of an optimiser step (from 1) is about to be trained on."""
    original = StageTrainer.training_step
    actions = [action]

    def step(self: StageTrainer, *rest: object) -> torch.Tensor:
        if self.state.global_step + 1 == number and actions:
            actions.pop()()
        return original(self, *rest)

    StageTrainer.training_step = step
    try:
        yield
    finally:
        StageTrainer.training_step = original


def break_off() -> None:
    raise KeyboardInterrupt


def run_until(step: int, arguments: list[str], output: Path) -> Path:
    """Break a run off in a step; its work folder."""
    with before_step(step, break_off), pytest.raises(KeyboardInterrupt):
        train.main([*arguments, f"output={output}"])
    assert not output.exists()
    return output.with_name(f"{output.name}.unfinished")


def result_of(output: Path) -> tuple[bytes, bytes]:
    return (output / "model.safetensors").read_bytes(), reproducible_log(output / "training_log.json")


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("save_every", "step", "more"),
    [
        (4, 6, ("workers=2",)),  # in the middle of an epoch
        (3, 5, ("workers=2",)),  # at the end of one
        (3, 5, ("workers=0",)),
    ],
)
def test_a_run_goes_on_to_the_bit(save_every, step, more, arguments, whole, tmp_path, capsys) -> None:
    other = [*arguments, f"save_every={save_every}", *more]
    run_until(step, other, tmp_path / "out")
    assert train.main([*other, f"output={tmp_path}/out"]) == 0
    assert f"going on from {tmp_path}/out.unfinished/checkpoint-{save_every}\n" in capsys.readouterr().out
    assert result_of(tmp_path / "out") == result_of(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_complete_run_is_not_trained_on_when_it_ended_while_it_was_written(
    arguments, whole, tmp_path, monkeypatch
) -> None:
    output = f"output={tmp_path}/out"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("osprey_tp.training.outputs.RunFolder.publish", lambda _: break_off())
        train.main([*arguments, output])
    with before_step(STEPS + 1, lambda: pytest.fail("a step too many")):
        assert train.main([*arguments, output]) == 0
    assert result_of(tmp_path / "out") == result_of(whole)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


BREAKAGES = [
    ("model.safetensors", truncate, r"model.safetensors has \d+ bytes, not \d+"),
    ("optimizer.pt", flip_a_bit, "optimizer.pt differs from its checksum"),
    ("rng_state.pth", Path.unlink, "rng_state.pth is missing"),
    (SEAL_FILE, Path.unlink, "seal.json is missing"),
    (SEAL_FILE, lambda file: os.truncate(file, 99), "seal.json cannot be read"),
    (SEAL_FILE, lambda file: file.write_text("{}"), "seal.json is not of the format"),
]


@pytest.fixture(scope="module")
def interrupted(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a run that broke off in its sixth step: checkpoints 2 and 4."""
    return run_until(6, arguments, tmp_path_factory.mktemp("interrupted") / "out")


@pytest.mark.parametrize(("name", "breaking", "reason"), BREAKAGES)
def test_a_broken_checkpoint_is_told_from_a_sound_one(name, breaking, reason, interrupted, tmp_path) -> None:
    work = shutil.copytree(interrupted, tmp_path / "work")
    assert newest_sound(work, 0, ranks.gather) == (work / "checkpoint-4", [])
    breaking(work / "checkpoint-4" / name)
    found, (broken,) = newest_sound(work, 0, ranks.gather)
    assert found == work / "checkpoint-2"
    assert broken.folder == work / "checkpoint-4"
    assert re.search(reason, broken.reason)


def test_every_file_of_a_checkpoint_is_sealed(interrupted) -> None:
    checkpoint = interrupted / "checkpoint-4"
    sealed = json.loads((checkpoint / SEAL_FILE).read_text())["files"]
    found = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    assert set(sealed) == found - {SEAL_FILE}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= set(sealed)


def test_the_checkpoint_before_a_broken_one_is_used(interrupted, arguments, whole, tmp_path, capsys) -> None:
    work = shutil.copytree(interrupted, tmp_path / "out.unfinished")
    truncate(work / "checkpoint-4" / "optimizer.pt")
    (work / "checkpoint.writing" / "checkpoint-6").mkdir(parents=True)
    (work / "checkpoint-1.removing").mkdir()
    assert train.main([*arguments, f"output={tmp_path}/out"]) == 0
    said = capsys.readouterr().out
    assert f"{work}/checkpoint-4 is broken: optimizer.pt has" in said
    assert f"going on from {work}/checkpoint-2\n" in said
    assert result_of(tmp_path / "out") == result_of(whole)


def test_where_all_are_broken_nothing_is_thrown_away(interrupted, arguments, tmp_path, capsys) -> None:
    work = shutil.copytree(interrupted, tmp_path / "out.unfinished")
    for checkpoint in (work / "checkpoint-2", work / "checkpoint-4"):
        truncate(checkpoint / "scheduler.pt")
    assert train.main([*arguments, f"output={tmp_path}/out"]) == 1
    error = error_of(capsys)
    assert error.startswith(f"error: {work} holds no sound checkpoint: checkpoint-4 (scheduler.pt has")
    assert error.endswith("or set resume=never to start from the beginning")
    assert (work / "checkpoint-2").is_dir() and (work / "checkpoint-4").is_dir()


def test_another_number_of_processes_is_refused(interrupted) -> None:
    assert checkpoint_to_resume(interrupted, 0, ranks.gather) == (interrupted / "checkpoint-4", [])
    with pytest.raises(ValueError, match="was written by a run of 1 processes, this one has 2; start 1, or"):
        checkpoint_to_resume(interrupted, 0, lambda value: [value, None])


def test_as_many_checkpoints_are_kept_as_asked_for(arguments, tmp_path) -> None:
    work = run_until(7, [*arguments, "save_every=1", "keep_checkpoints=3"], tmp_path / "out")
    names = sorted(path.name for path in work.glob("checkpoint*"))
    assert names == ["checkpoint-4", "checkpoint-5", "checkpoint-6"]
    keep_newest(work, 1)
    assert sorted(path.name for path in work.glob("checkpoint*")) == ["checkpoint-6"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_ones_before(arguments, tmp_path, monkeypatch, capsys) -> None:
    save = torch.save

    def full(value: object, file: object, *rest: object) -> None:
        if "checkpoint-4" in str(file):
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nmore")
        save(value, file, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        assert train.main([*arguments, f"output={tmp_path}/out"]) == 1
    error = error_of(capsys)
    assert error.startswith(f"error: checkpoint-4 cannot be written to {tmp_path}/out.unfinished: [enforce fail")
    assert newest_sound(tmp_path / "out.unfinished", 0, ranks.gather)[0].name == "checkpoint-2"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_after_its_step(number, code, arguments, whole, tmp_path, capsys) -> None:
    before = signal.getsignal(number)
    with before_step(3, lambda: os.kill(os.getpid(), number)):
        assert train.main([*arguments, "workers=1", f"output={tmp_path}/out"]) == code
    assert not multiprocessing.active_children()  # the process that loads data is gone, too
    assert signal.getsignal(number) is before
    checkpoint = tmp_path / "out.unfinished" / "checkpoint-3"
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"ended by {number.name} after step 3; give the same command again to go on from {checkpoint}"
    assert train.main([*arguments, f"output={tmp_path}/out"]) == 0
    assert f"going on from {checkpoint}\n" in capsys.readouterr().out
    assert result_of(tmp_path / "out") == result_of(whole)


def test_a_second_ctrl_c_ends_a_run_at_once(arguments, tmp_path) -> None:
    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with before_step(3, twice), pytest.raises(KeyboardInterrupt):
        train.main([*arguments, f"output={tmp_path}/out"])


def test_processes_that_load_data_outlive_signals_that_are_not_of_the_run() -> None:
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        leave_signals_to_the_run()
        while True:
            os.write(writing, b"1")
            time.sleep(0.01)
    try:
        os.read(reading, 1)
        os.kill(process, signal.SIGINT)
        subprocess.run(["kill", "-TERM", str(process)], check=True)
        os.read(reading, 1000)
        assert os.read(reading, 1) == b"1"
        os.kill(process, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    finally:
        os.close(reading)
        os.close(writing)


def test_two_runs_do_not_share_a_folder(arguments, tmp_path, capsys) -> None:
    folder = RunFolder.of(load_settings(None, [*arguments, f"output={tmp_path}/out"]))
    ready, held_by_child = os.pipe()
    done, tell = os.pipe()
    process = os.fork()
    if not process:
        with folder.held():
            os.write(held_by_child, b"1")
            os.read(done, 1)
        os._exit(0)
    os.read(ready, 1)
    try:
        assert train.main([*arguments, f"output={tmp_path}/out"]) == 1
        assert error_of(capsys).startswith(f"error: another run works in {tmp_path}/out.unfinished: wait for it")
    finally:
        os.write(tell, b"1")
        os.waitpid(process, 0)
    assert not list(tmp_path.iterdir())


def test_what_is_left_beside_a_finished_folder_is_removed(arguments, whole, capsys) -> None:
    left = whole.with_name(f"{whole.name}.unfinished")
    (left / "checkpoint-8").mkdir(parents=True)
    (left / "skipped.jsonl").touch()
    assert train.main([*arguments, f"output={whole}"]) == 0
    assert "is finished; nothing to do" in capsys.readouterr().out
    assert not left.exists()


def test_the_finished_folder_tells_how_it_was_made(whole, start, arguments) -> None:
    def read(name: str) -> dict:
        return json.loads((whole / name).read_text())

    configuration = read("run_configuration.json")
    assert configuration["settings"]["gradient_accumulation"] == 2
    assert configuration["stage"]["learning_rates"]["projector"] == 1e-3
    assert configuration["processes"] == 1
    assert configuration["training_arguments"]["max_steps"] == STEPS
    assert configuration["versions"]["torch"] == torch.__version__.partition("+")[0]
    (manifest,) = read("data_manifests.json").values()
    assert manifest["counts"]["out"]["records"] == 10
    assert [entry["step"] for entry in read("training_log.json")] == [5]
    assert (whole / "skipped.jsonl").read_text() == ""
    assert {"processor_config.json", "chat_template.jinja", "config.json", "trained_parts.json"} <= {
        path.name for path in whole.iterdir()
    }


def test_resume_never_starts_anew_in_a_folder_that_is_held(interrupted, arguments, whole, tmp_path, capsys) -> None:
    shutil.copytree(interrupted, tmp_path / "out.unfinished")
    assert train.main([*arguments, f"output={tmp_path}/out", "resume=never"]) == 0
    assert "going on from" not in capsys.readouterr().out
    assert result_of(tmp_path / "out") == result_of(whole)


def test_weights_that_were_not_gathered_are_no_result(tmp_path) -> None:
    folder = RunFolder(tmp_path / "out", tmp_path / "out.unfinished")
    folder.result.mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no weights; under ZeRO-3 the DeepSpeed file must set"):
        folder.publish()
    assert not folder.output.exists()
