"""Nothing half-written has its final name; what is held is held against others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from osprey_tp.files import (
    LOCK_FILE,
    file_aside,
    folder_aside,
    held,
    name_folder,
    remove_folder,
    write_json,
    write_text,
)

ROOT = Path(__file__).resolve().parents[1]


def in_child(action) -> int:
    """Exit code of a forked process: 0 if it could do it, 1 if it was told that another process holds the folder."""
    process = os.fork()
    if not process:
        try:
            action()
        except BlockingIOError:
            os._exit(1)
        except BaseException:
            os._exit(2)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_a_file_is_replaced_at_the_end_or_not_at_all(tmp_path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    with file_aside(file) as aside:
        aside.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    with pytest.raises(RuntimeError), file_aside(file) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert file.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_texts_are_written_into_folders_that_are_not_there_yet(tmp_path) -> None:
    write_text(tmp_path / "a" / "b" / "text", "größer")
    write_json(tmp_path / "a" / "value.json", {"one": [1]})
    assert (tmp_path / "a" / "b" / "text").read_text(encoding="utf-8") == "größer"
    assert (tmp_path / "a" / "value.json").read_text() == '{\n "one": [\n  1\n ]\n}\n'


def test_a_folder_appears_at_the_end_or_not_at_all(tmp_path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with folder_aside(folder) as aside:
        (aside / "inner").mkdir()
        (aside / "inner" / "file").write_text("new")
        assert not any(folder.iterdir())
    assert (folder / "inner" / "file").read_text() == "new"
    with pytest.raises(FileExistsError, match="exists already"), folder_aside(folder) as aside:
        (aside / "file").touch()
    with pytest.raises(KeyboardInterrupt), folder_aside(folder, replace=True) as aside:
        raise KeyboardInterrupt
    assert (folder / "inner" / "file").read_text() == "new"
    with folder_aside(folder, replace=True) as aside:
        (aside / "other").touch()
    assert [path.name for path in folder.iterdir()] == ["other"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_what_an_ended_process_left_aside_is_not_taken_over(tmp_path) -> None:
    (tmp_path / ".folder.partial").mkdir()
    (tmp_path / ".folder.partial" / "stale").touch()
    with folder_aside(tmp_path / "folder"):
        pass
    assert not any((tmp_path / "folder").iterdir())


def test_a_folder_that_cannot_take_the_place_leaves_the_old_one(tmp_path, monkeypatch) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    rename = Path.rename

    def refusing(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError("refused")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(OSError, match="refused"):
        name_folder(tmp_path / "new", tmp_path / "old", replace=True)
    assert (tmp_path / "old" / "old").exists()


def test_removing_ends_a_name_before_its_contents(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").touch()
    seen = []
    monkeypatch.setattr("osprey_tp.files.shutil.rmtree", lambda path, **_: seen.append((path.name, folder.exists())))
    remove_folder(folder)
    assert seen == [("folder.removing", True), ("folder.removing", False)]
    monkeypatch.undo()
    remove_folder(folder)
    remove_folder(folder)
    assert not any(tmp_path.iterdir())


def test_a_held_folder_keeps_others_out_and_leaves_nothing(tmp_path) -> None:
    folder = tmp_path / "work"

    def take() -> None:
        with held(folder):
            pass

    with held(folder) as locked:
        assert locked
        assert in_child(take) == 1
        assert (folder / LOCK_FILE).exists()
    assert not folder.exists()
    assert in_child(take) == 0
    with held(folder):
        (folder / "kept").touch()
    assert (folder / "kept").exists()
    assert in_child(take) == 0


def test_the_lock_ends_with_its_process_though_its_children_live(tmp_path) -> None:
    program = (
        "import os, sys, time\nfrom pathlib import Path\nfrom osprey_tp.files import held\n"
        "with held(Path(sys.argv[1])):\n"
        "    child = os.fork()\n"
        "    if not child: time.sleep(60)\n"
        "    print(child, flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "work")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())

    def take() -> None:
        with held(tmp_path / "work"):
            pass

    try:
        assert in_child(take) == 1
        process.kill()
        process.wait()
        os.kill(child, 0)  # still alive
        assert in_child(take) == 0
    finally:
        os.kill(child, 9)
        process.stdout.close()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch) -> None:
    import fcntl

    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    with held(tmp_path / "work") as locked:
        assert not locked
