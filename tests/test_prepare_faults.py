"""`prepare` that is told to end, that may not write, and that is run twice: nothing half-done, and the same bytes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines import chunks
from data_pipelines.__main__ import main
from data_pipelines.chunks import ChunkReader

from .annotation_files import write_simple_instances

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "LARGEST_CHUNK", 3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_simple_instances(tmp_path, pictures=8)
    return tmp_path


def arguments(source: Path, out: Path, *more: str) -> list[str]:
    files = ["--annotations", source / "instances.json", "--images", source / "images", "--out", out]
    return ["prepare", "coco", *map(str, files), *more]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def test_sigterm_ends_it_in_order_and_the_same_command_goes_on(source, monkeypatch, capsys) -> None:
    read, done = ChunkReader.read, []

    def ended(*given: object, **options: object) -> object:
        result = read(*given, **options)
        done.append(result)
        os.kill(os.getpid(), 15)
        return result

    with monkeypatch.context() as patched:
        patched.setattr(ChunkReader, "read", ended)
        assert main(arguments(source, source / "ended")) == 143
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("interrupted; `prepare` goes on when the same command is given again")
    assert len(done) == 1 and not (source / "ended").exists()
    assert main(arguments(source, source / "ended")) == 0
    assert main(arguments(source, source / "whole")) == 0
    assert files_of(source / "ended") == files_of(source / "whole")


def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_left(source, monkeypatch, capsys) -> None:
    import errno

    mkdir = Path.mkdir

    def refused(path: Path, *given: object, **options: object) -> None:
        if path.is_relative_to(source / "readonly"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        mkdir(path, *given, **options)

    monkeypatch.setattr(Path, "mkdir", refused)
    assert main(arguments(source, source / "readonly" / "out")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "error: [Errno 30] Read-only file system" in error and f"{source}/readonly" in error
    assert not (source / "readonly").exists()


def test_a_seed_decides_it_whatever_the_order_of_sets(source) -> None:
    """Two processes that hash texts differently draw and write the same."""
    found = []
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-m", "data_pipelines", *arguments(source, source / seed, "--sample", "5", "--seed", "3")],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        )
        found.append(files_of(source / seed))
    assert found[0] == found[1]
