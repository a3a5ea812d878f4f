"""`python -m app`: a quick help, and one line with a remedy for everything that keeps it from starting."""

import socket
import subprocess
import sys
import time

import pytest

from app.__main__ import main

from .tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("app") / "model")


def test_help_is_quick():
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "app", "--help"], capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 1
    assert "--segmenter" in done.stdout and "sam:CHECKPOINT" in done.stdout


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


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
