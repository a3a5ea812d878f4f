"""`python -m app.load_test`: many users at once against a served app on this machine, every answer checked.

Each user has a picture and regions of an own. What the server answers about them alone, beforehand, is what it must
answer while all users ask at once: another text would be another user's answer, or one that load has changed.

The users ask through gradio_client (`describe`, `find`) and through `/v1/chat/completions` (whole and streamed), by
turns. Told are the seconds an answer takes, errors, wrong answers, and what the server's process holds after all users
have asked once, and at the end.
"""

import argparse
import base64
import io
import ipaddress
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

MOST_USERS, MOST_SECONDS = 64, 600.0
PICTURE_SIZE = (240, 320)  # (height, width)
NEW_TOKENS = 8
MEBIBYTE = 2**20


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m app.load_test", description="Load a served app on this machine.")
    parser.add_argument(
        "--address", default="http://127.0.0.1:7860", help="of the app, on this machine (default: %(default)s)"
    )
    parser.add_argument("--users", type=int, default=20, metavar="N", help="at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120, metavar="S", help="how long (default: %(default)s)")
    parser.add_argument("--pid", type=int, help="of the server's process, to watch its memory, files and threads")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="as the app was given")
    parser.add_argument("--api-key", metavar="KEY", help="as the app was given")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 1 if an answer was wrong or missing."""
    options = build_parser().parse_args(arguments)
    try:
        require_loopback(options.address)
        require_bounds(options.users, options.seconds)
        auth = tuple(options.auth.split(":", 1)) if options.auth else None
        figures = load(options.address, options.users, options.seconds, options.pid, auth, options.api_key)
        if options.out:
            options.out.write_text(json.dumps(asdict(figures), indent=1) + "\n", encoding="utf-8")
    except (OSError, ValueError, ImportError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    sys.stdout.write(f"{figures}\n")
    return 0 if figures.good else 1


def require_loopback(address: str) -> None:
    """Raises `ValueError` for an address that is not this machine's own: no other may be put under load."""
    host = urlsplit(address).hostname or ""
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ValueError(f"{address} is not on this machine; the load test takes loopback addresses alone")


def require_bounds(users: int, seconds: float) -> None:
    """Raises `ValueError` for more load than is sensible."""
    if not 1 <= users <= MOST_USERS:
        raise ValueError(f"--users must be from 1 to {MOST_USERS}, got {users}")
    if not 0 < seconds <= MOST_SECONDS:
        raise ValueError(f"--seconds must be more than 0 and at most {MOST_SECONDS:g}, got {seconds:g}")


@dataclass(frozen=True)
class Held:
    """What a process holds."""

    memory_mib: float
    files: int
    threads: int

    @classmethod
    def by(cls, pid: int) -> "Held":
        """By a process and its children. Raises `OSError` if there is none of that number."""
        import psutil

        try:
            process = psutil.Process(pid)
            family = [process, *process.children(recursive=True)]
            memory = sum(one.memory_info().rss for one in family)
            return cls(
                memory / MEBIBYTE, sum(one.num_fds() for one in family), sum(one.num_threads() for one in family)
            )
        except psutil.Error as error:
            raise OSError(f"cannot look at process {pid}: {error}") from error

    def __str__(self) -> str:
        """In a line."""
        return f"{self.memory_mib:.1f} MiB, {self.files} open files, {self.threads} threads"


@dataclass
class Figures:
    """What came of it.

    Attributes:
        users: At once.
        seconds: That they asked.
        latencies: Seconds of every answer, by kind of request.
        wrong: Answers that were not those given alone.
        errors: Requests that failed, what they said.
        warm: What the server held after every user had asked everything once, all at once.
        end: What it held at the end.
    """

    users: int
    seconds: float
    latencies: dict[str, list[float]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warm: Held | None = None
    end: Held | None = None

    @property
    def good(self) -> bool:
        """Whether every request was answered rightly."""
        return not self.wrong and not self.errors and bool(self.latencies)

    def __str__(self) -> str:
        """As a table."""
        everything = [seconds for kind in self.latencies.values() for seconds in kind]
        lines = [
            f"{self.users} users, {self.seconds:.0f} s: {len(everything)} answers, {len(self.wrong)} wrong, "
            f"{len(self.errors)} errors",
            f"{'request':16}{'answers':>8}{'p50 s':>8}{'p95 s':>8}{'worst s':>9}",
        ]
        for kind, seconds in [*sorted(self.latencies.items()), ("all", everything)]:
            if seconds:
                middle, late = np.quantile(seconds, [0.5, 0.95])
                lines.append(f"{kind:16}{len(seconds):8}{middle:8.2f}{late:8.2f}{max(seconds):9.2f}")
        lines += [f"server when warm: {self.warm}", f"server at the end: {self.end}"] if self.warm else []
        return "\n".join([*lines, *(f"wrong: {text}" for text in self.wrong[:5]), *self.errors[:5]])


class User:
    """One user: a picture, regions in it, and the answers that are expected."""

    def __init__(self, number: int, folder: Path, address: str, auth: Any, api_key: str | None) -> None:
        from gradio_client import Client, handle_file
        from openai import OpenAI
        from PIL import Image

        self.name = f"user{number}"
        path = folder / f"{self.name}.png"
        Image.fromarray(draw_scene(number)).save(path)
        self._image = handle_file(str(path))
        content = io.BytesIO(path.read_bytes())
        self._url = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
        self._regions: list[dict[str, Any]] = [{"box": box} for box in boxes(number)]
        self._gradio = Client(address, auth=auth, verbose=False, analytics_enabled=False)
        self._chat = OpenAI(base_url=f"{address.rstrip('/')}/v1", api_key=api_key or "none", max_retries=0)
        self._model = self._chat.models.list().data[0].id
        self.requests: dict[str, Callable[[], str]] = {
            "describe": self._describe,
            "chat": self._complete,
            "find": self._find,
            "streamed chat": self._stream,
        }
        self.expected: dict[str, str] = {}

    def close(self) -> None:
        """Leaves."""
        self._gradio.close()
        self._chat.close()

    def _describe(self) -> str:
        told = self._gradio.predict(
            image=self._image, regions=self._regions, max_new_tokens=NEW_TOKENS, api_name="/describe"
        )
        return json.dumps(told["answers"])

    def _find(self) -> str:
        told = self._gradio.predict(
            image=self._image, expression=f"the {self.name}", regions=self._regions, api_name="/find"
        )
        return json.dumps([match["index"] for match in told["matches"]])

    def _complete(self) -> str:
        answer = self._chat.chat.completions.create(**self._question("What is region1 next to?"))
        return str(answer.choices[0].message.content)

    def _stream(self) -> str:
        chunks = self._chat.chat.completions.create(**self._question("Tell me about region2."), stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    def _question(self, text: str) -> dict[str, Any]:
        content = [
            {"type": "image_url", "image_url": {"url": self._url}},
            {"type": "regions", "regions": self._regions},
            {"type": "text", "text": text},
        ]
        messages = [{"role": "user", "content": content}]
        return {"model": self._model, "messages": messages, "max_tokens": NEW_TOKENS}


def draw_scene(number: int) -> NDArray[np.uint8]:
    """A picture (height, width, 3) of coloured noise and rectangles that is this user's alone."""
    random = np.random.default_rng(number)
    height, width = PICTURE_SIZE
    scene = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
    for x0, y0, x1, y1 in boxes(number):
        scene[y0:y1, x0:x1] += random.integers(60, 190, 3, dtype=np.uint8)
    return scene


def boxes(number: int) -> list[tuple[int, int, int, int]]:
    """Two rectangles (x0, y0, x1, y1) in source pixels, of this user."""
    random = np.random.default_rng([number, 1])
    height, width = PICTURE_SIZE
    corners = random.integers(0, (width // 2, height // 2), (2, 2))
    return [(int(x), int(y), int(x) + width // 3, int(y) + height // 3) for x, y in corners]


def load(
    address: str, users: int, seconds: float, pid: int | None = None, auth: Any = None, api_key: str | None = None
) -> Figures:
    """Lets so many users ask for so many seconds.

    Args:
        address: Of the app.
        users: At once.
        seconds: After which nobody asks any more; requests under way are answered.
        pid: Of the server's process.
        auth: (name, password) for gradio_client.
        api_key: For `/v1`.

    Raises:
        ValueError: if the server does not answer as it should even a single user.
    """
    figures = Figures(users, seconds)
    with _all_users(users, address, auth, api_key) as everybody, ThreadPoolExecutor(users) as threads:
        for user in everybody:
            user.expected = {kind: ask() for kind, ask in user.requests.items()}
        told = [json.dumps(user.expected, sort_keys=True) for user in everybody]
        if len(set(told)) < len(told):
            raise ValueError(
                "some users get the same answers about different pictures: nothing could be told from them"
            )
        lock = threading.Lock()
        _everybody_asks(threads, everybody, figures, lock, rounds=1)
        figures.latencies = {}  # of the warm-up
        figures.warm = Held.by(pid) if pid else None
        started = time.monotonic()
        _everybody_asks(threads, everybody, figures, lock, until=started + seconds)
        figures.seconds = time.monotonic() - started
        figures.end = Held.by(pid) if pid else None
    return figures


@contextmanager
def _all_users(count: int, address: str, auth: Any, api_key: str | None) -> Iterator[list[User]]:
    with tempfile.TemporaryDirectory() as folder:
        everybody: list[User] = []
        try:
            for number in range(count):
                everybody.append(User(number, Path(folder), address, auth, api_key))
            yield everybody
        finally:
            for user in everybody:
                user.close()


def _everybody_asks(
    threads: ThreadPoolExecutor,
    everybody: Sequence[User],
    figures: Figures,
    lock: threading.Lock,
    until: float = float("inf"),
    rounds: int | None = None,
) -> None:
    """All users at once, each going through its requests again and again."""

    def asks(user: User) -> None:
        done = 0
        while time.monotonic() < until and (rounds is None or done < rounds):
            for kind, ask in user.requests.items():
                if time.monotonic() >= until:
                    return
                _timed(user, kind, ask, figures, lock)
            done += 1

    list(threads.map(asks, everybody))


def _timed(user: User, kind: str, ask: Callable[[], str], figures: Figures, lock: threading.Lock) -> None:
    started = time.monotonic()
    try:
        answer = ask()
    except Exception as error:
        with lock:
            figures.errors.append(f"{user.name}, {kind}: {type(error).__name__} {error}")
        return
    seconds = time.monotonic() - started
    with lock:
        figures.latencies.setdefault(kind, []).append(seconds)
        if answer != user.expected[kind]:
            figures.wrong.append(f"{user.name}, {kind}: {answer!r} instead of {user.expected[kind]!r}")


if __name__ == "__main__":
    sys.exit(main())
