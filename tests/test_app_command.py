"""`python -m app`: a help, and one line with a remedy for everything that keeps it from starting."""

import socket
import subprocess
import sys

import pytest

from app.__main__ import main, read_users

from .tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("app") / "model")


def test_the_help_tells_of_segmenters():
    done = subprocess.run([sys.executable, "-m", "app", "--help"], capture_output=True, text=True, check=True)
    assert "--segmenter" in done.stdout and "sam:PATH" in done.stdout


def refusal(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("app: ")
    return error


def test_a_missing_model(capsys, tmp_path):
    assert "no model in" in refusal(capsys, "--model", tmp_path / "none")


def test_a_model_without_its_processor(capsys, tmp_path, free_port):
    (tmp_path / "config.json").write_text("{}")
    assert "processor_config.json" in refusal(capsys, "--model", tmp_path, "--port", free_port)


def test_a_port_that_is_taken(capsys, model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = refusal(capsys, "--model", model, "--port", port)
    assert f"127.0.0.1:{port}" in error and "--port" in error
    assert "--port" in refusal(capsys, "--model", model, "--port", 99999)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--segmenter", "magic"], "unknown segmenter 'magic'"),
        (["--segmenter", "sam:none.pth"], "no checkpoint of Segment Anything at none.pth"),
        (["--examples", "none"], "no folder none"),
    ],
)
def test_what_cannot_be_loaded(capsys, model, free_port, options, message):
    assert message in refusal(capsys, "--model", model, "--port", free_port, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--queue", "-1"], "--queue must be 0 or more, got -1"),
        (["--max-pictures", "0"], "--max-pictures must be 1 or more"),
        (["--max-pixels", "0"], "--max-pixels must be 1 or more"),
        (["--request-seconds", "0"], "--request-seconds must be more than 0"),
        (["--max-upload-mb", "nan"], "--max-upload-mb must be more than 0"),
        (["--cache-mb", "inf"], "--cache-mb must be more than 0"),
        (["--auth", "ann"], "user 1 of --auth is not USER:PASSWORD"),
    ],
)
def test_limits_and_users_that_make_no_sense(capsys, model, free_port, options, message):
    assert message in refusal(capsys, "--model", model, "--port", free_port, *options)


def test_users_come_from_texts_and_files(tmp_path):
    (tmp_path / "users").write_text("# who may use it\nbob:a:b\n\neve:x\n")
    assert read_users(["ann:secret", str(tmp_path / "users")]) == [("ann", "secret"), ("bob", "a:b"), ("eve", "x")]
    assert read_users([]) == read_users(["", " "]) == []
    (tmp_path / "none").write_text("# nobody yet\n")
    wrong = {str(tmp_path / "none"): "names no user", "ann:": "user 1", ":secret": "user 1", "x" * 5000: "user 1"}
    for entry, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            read_users([entry])
    with pytest.raises(ValueError, match="user ann twice") as error:
        read_users(["ann:secret", "ann:other"])
    assert "secret" not in str(error.value)


def test_users_are_read_from_the_environment_too(capsys, model, free_port, monkeypatch):
    monkeypatch.setenv("OSPREY_TP_AUTH", "ann:secret\nbob")
    assert "user 2 of --auth" in refusal(capsys, "--model", model, "--port", free_port)


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
