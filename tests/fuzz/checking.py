"""What every reader of files from outside owes: a result that is right, or one line that says what is wrong."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

REFUSALS = (ValueError, OSError)


def outcome(read: Callable[[], Any]) -> Any:
    """What `read` returns; None if it refuses its input as it should.

    Raises:
        AssertionError: if a refusal is not one line.
        Exception: whatever else `read` raises.
    """
    try:
        return read()
    except REFUSALS as error:
        message = str(error)
        assert message, f"a refusal without a word: {error!r}"
        assert len(message.splitlines()) == 1, f"a refusal of several lines: {message!r}"
        if isinstance(error, ValueError):  # the system's own errors repeat the whole path
            assert len(message) < 4000, f"a refusal of {len(message)} characters: {message[:200]!r}"
        return None


class Folder:
    """A folder for the files of one target, in memory where the system has such a file system."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        self._folder = TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self.path = Path(self._folder.name)

    def file(self, name: str, data: bytes) -> Path:
        """A file of this name with these bytes."""
        path = self.path / name
        path.write_bytes(data)
        return path
