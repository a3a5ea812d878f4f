"""Faults of the machine while an evaluation runs: one line that says what to do, no answer lost, and it goes on."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data_pipelines.generation.replies import ReplyLog
from eval.__main__ import main
from eval.judge import REPLIES_FILE
from eval.predictions import PredictionLog, read_predictions
from osprey_tp import shared_prefix

from .chat_endpoint import KEY, ChatServer
from .eval_fakes import prepare_synthetic
from .judged_fakes import overlap_judge, prepare_descriptions


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_synthetic(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def whole(root: Path) -> Path:
    """The results of a run that nothing disturbs."""
    assert evaluate(root, root / "whole") == 0
    return root / "whole"


def evaluate(root: Path, out: Path, *more: str) -> int:
    given = {"--model": root / "model", "--data": root / "synthetic", "--out": out}
    arguments = [str(part) for pair in given.items() for part in pair]
    return main(["referring-classification", *arguments, "--max-new-tokens", "3", "--device", "cpu", *more])


def answers_in(out: Path) -> dict[str, str]:
    return {item.id: item.prediction for item in read_predictions(out / "predictions.jsonl")}


def test_the_same_command_gives_the_same_bytes(root, tmp_path) -> None:
    drawn = ("--sample", "--temperature", "0.9", "--seed", "5", "--shuffle-regions", "2")
    for out in ("one", "other"):
        assert evaluate(root, tmp_path / out, *drawn) == 0
    for name in ("predictions.jsonl", "predictions_shuffled.jsonl", "metrics.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name


def full_gpu(room: int, enter: Callable) -> Callable:
    """In place of what reads questions into the batch: a GPU with room for so many."""

    def entering(batch: object, rows: list) -> None:
        if len(rows) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. More words.")
        enter(batch, rows)

    return entering


def test_a_full_gpu_halves_the_batch_and_goes_on(root, whole, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(shared_prefix._Batch, "enter", full_gpu(1, shared_prefix._Batch.enter))
    assert evaluate(root, tmp_path) == 0
    assert answers_in(tmp_path) == answers_in(whole)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("no memory for")]
    assert said[-1].endswith("questions at a time; going on with 1")
    assert len(said) == len(set(said))  # what there is room for is found out once, not for every picture


def test_a_gpu_without_room_for_one_question_is_said_in_one_line(root, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(shared_prefix._Batch, "enter", full_gpu(0, shared_prefix._Batch.enter))
    assert evaluate(root, tmp_path) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: no memory is left on the GPU, even for one question (CUDA out of memory); answers")


def test_a_full_disk_keeps_the_answers_so_far_and_the_run_goes_on(root, whole, tmp_path, monkeypatch, capsys) -> None:
    append = PredictionLog.append

    def onto_a_full_disk(log: PredictionLog, predictions: list) -> None:
        """Room for half of what is written after the first batch."""
        if not log.predictions:
            append(log, predictions)
            return
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 99, before[1]))
        try:
            append(log, predictions)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    with monkeypatch.context() as patched:
        patched.setattr(PredictionLog, "append", onto_a_full_disk)
        assert evaluate(root, tmp_path, "--batch-size", "1") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path}/predictions.jsonl cannot be written: File too large; answers so far")
    assert len(answers_in(tmp_path)) == 1
    assert not (tmp_path / "metrics.json").exists()
    assert evaluate(root, tmp_path) == 0
    assert answers_in(tmp_path) == answers_in(whole)


def test_sigterm_ends_a_run_in_order_and_it_goes_on(root, whole, tmp_path, monkeypatch, capsys) -> None:
    before, append = signal.getsignal(signal.SIGTERM), PredictionLog.append

    def ended(log: PredictionLog, predictions: list) -> None:
        append(log, predictions)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(PredictionLog, "append", ended)
        assert evaluate(root, tmp_path, "--batch-size", "1") == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err.endswith(f"answers so far are in {tmp_path}, the same command goes on from there\n")
    assert len(answers_in(tmp_path)) == 1
    assert evaluate(root, tmp_path) == 0
    assert answers_in(tmp_path) == answers_in(whole)


def test_a_judge_that_hangs_is_given_up_in_one_line_and_what_it_judged_is_kept(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("data_pipelines.generation.endpoint.random.uniform", lambda low, high: 0.001)
    texts = ["a red cat asleep", "two green birds", "grey stone wall"]
    data = prepare_descriptions(tmp_path, [[text] for text in texts])
    given = [{"id": f"osprey-detailed-description:{n}#1", "prediction": text} for n, text in enumerate(texts)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in given))
    options = {"--data": data, "--out": tmp_path / "out", "--predictions": tmp_path / "answers.jsonl"}
    options |= {"--judge-model": "judge-8b", "--judge-key-variable": "TEST_KEY", "--judge-concurrency": 1}
    with ChatServer(overlap_judge) as server:
        server.fault = lambda body, number: None if "cat" in str(body["messages"]) else {"delay": 0.8}
        options |= {"--judge": server.url, "--judge-timeout": 0.5}
        command = ["description", *(str(part) for pair in options.items() for part in pair)]
        assert main(command) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: the judge judge-8b did not answer everything: ")
        assert "gave no answer within 0.5 s; 1 replies are kept, 2 requests are left: run it again to go on" in error
        with ReplyLog(tmp_path / "out" / REPLIES_FILE) as replies:
            assert len(replies) == 1
        server.fault = lambda body, number: None
        assert main(command) == 0
