"""A Python interpreter that has torch and transformers imported already; `python()` stands for `sys.executable`.

What it runs is a process of its own, forked from one that has imported `PACKAGES`, and nothing of the project, once. It
has its own number, arguments, environment, folder, open files and random numbers, and what it starts with
`sys.executable` is run in the same way. Whoever starts it holds a small process that stands for it
(`preloaded_stand_in.py`): signals are passed on, a kill of one is a kill of both, and both end alike. Only `-m MODULE`
and `-c CODE` are run so; the real interpreter runs everything else, and each `cold` module the first time, so that a
command that needs imports of others is found out.
"""

import ast
import atexit
import contextlib
import functools
import gc
import importlib
import os
import random
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from PIL import Image

from .preloaded_stand_in import LENGTH

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    *("accelerate", "datasets", "jinja2", "peft", "pycocotools.mask", "torch.utils.tensorboard", "tqdm", "yaml"),
    *("torchvision.transforms.v2", "transformers.generation", "transformers.models.auto.modeling_auto"),
    *("transformers.models.clip.modeling_clip", "transformers.models.llama.modeling_llama", "transformers.trainer"),
)
MOST_FILES = 64


class Request(NamedTuple):
    """What a stand-in asks for."""

    executable: str
    arguments: list[str]
    unbuffered: bool
    files: list[int]
    folder: str
    environment: dict[str, str]


class Fork(NamedTuple):
    """In the new process: what to run, and the files that were sent, in the order of those that they are to be."""

    request: Request
    sent: list[int]


class Server:
    """Forks on request. One thread waits for stand-ins and for the processes that they stand for."""

    def __init__(self, address: str) -> None:
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(address)
        self.listening.listen(64)
        self.waiting = selectors.DefaultSelector()
        self.waiting.register(self.listening, selectors.EVENT_READ)
        self.waiting.register(0, selectors.EVENT_READ)
        self.running: dict[int, tuple[int, socket.socket]] = {}

    def serve(self) -> Fork | None:
        """Forks returns in each new process, and nothing in this one when its standard input ends."""
        while True:
            for key, _ in self.waiting.select():
                if key.fileobj == 0:
                    return None
                if key.fileobj is self.listening:
                    fork = self._fork(self.listening.accept()[0])
                    if fork is not None:
                        return fork
                elif isinstance(key.fileobj, socket.socket):
                    self._pass_on(key.fileobj, key.data)
                else:
                    self._end(key.fd, key.data)

    def _fork(self, stand_in: socket.socket) -> Fork | None:
        head, sent, _, _ = socket.recv_fds(stand_in, LENGTH, MOST_FILES)
        with stand_in.makefile("rb") as reading:
            request = Request(*ast.literal_eval(reading.read(int.from_bytes(head, "little")).decode()))
        process = os.fork()
        if not process:
            for other in [self.listening, stand_in, *(each for _, each in self.running.values())]:
                other.close()
            for watch in self.running:
                os.close(watch)
            self.waiting.close()
            return Fork(request, sent)
        for file in sent:
            os.close(file)
        watch = os.pidfd_open(process)
        self.running[watch] = process, stand_in
        self.waiting.register(watch, selectors.EVENT_READ, process)
        self.waiting.register(stand_in, selectors.EVENT_READ, process)
        return None

    def _pass_on(self, stand_in: socket.socket, process: int) -> None:
        """Signals of a stand-in, or its death."""
        try:
            numbers = stand_in.recv(64)
        except ConnectionError:
            numbers = b""
        if not numbers:
            self.waiting.unregister(stand_in)
        for number in numbers or [signal.SIGKILL]:
            os.kill(process, number)

    def _end(self, watch: int, process: int) -> None:
        _, status = os.waitpid(process, 0)
        _, stand_in = self.running.pop(watch)
        self.waiting.unregister(watch)
        os.close(watch)
        with contextlib.suppress(KeyError):
            self.waiting.unregister(stand_in)
        with stand_in, contextlib.suppress(ConnectionError):
            stand_in.sendall(os.waitstatus_to_exitcode(status).to_bytes(LENGTH, "little", signed=True))

    def close(self) -> None:
        """Kill what still runs."""
        for process, _ in self.running.values():
            os.kill(process, signal.SIGKILL)


def become(fork: Fork) -> None:
    """Make this process what was asked for."""
    request = fork.request
    above = max([2, *request.files, *fork.sent]) + 1
    moved = []
    for place, file in enumerate(fork.sent):
        os.dup2(file, above + place)
        os.close(file)
        moved.append(above + place)
    os.close(0)
    for file, wanted in zip(moved, request.files, strict=True):
        os.dup2(file, wanted, inheritable=True)
        os.close(file)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if request.unbuffered:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)
    sys.executable = request.executable
    sys.path[0] = request.folder if request.arguments[0] == "-m" else ""
    importlib.invalidate_caches()


def run(arguments: Sequence[str]) -> None:
    """As the interpreter does with `-m MODULE ...` and `-c CODE ...`."""
    kind, what, *rest = arguments
    sys.argv = [kind, *rest]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(sys.modules["__main__"]))


class Ending:
    """The last of what a process does at its end: it leaves without giving back its memory, which takes seconds.

    Attributes:
        status: Exit status; negative the signal that ends it. None where the interpreter may go on to its end.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        atexit.register(self.leave)  # before any other, hence called after all of them

    def watch(self, arguments: Sequence[str]) -> None:
        """Run something and note how it ends."""
        self.status = 1
        try:
            run(arguments)
            self.status = 0
        except SystemExit as end:
            self.status = end.code if isinstance(end.code, int) else int(end.code is not None)
            raise
        except KeyboardInterrupt:
            self.status = -signal.SIGINT
            raise

    def leave(self) -> None:
        if self.status is None:
            return
        sys.stdout.flush()
        sys.stderr.flush()
        if self.status < 0:
            signal.signal(-self.status, signal.SIG_DFL)
            os.kill(os.getpid(), -self.status)
        os._exit(self.status & 0xFF)


@functools.cache
def _served(*packages: str) -> Path:
    """Folder with the socket of a process that forks; it ends when this one does."""
    folder = Path(tempfile.mkdtemp(prefix="preloaded"))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.preloaded", str(folder / "socket"), *packages],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    atexit.register(process.communicate)
    assert process.stdout.readline() == b"ready\n"
    return folder


def python(cold: Sequence[str] = (), packages: Sequence[str] = PACKAGES) -> str:
    """Path of the interpreter; `cold` modules are run by the real one the first time."""
    folder = _served(*packages)
    own = Path(tempfile.mkdtemp(dir=folder))
    for module in cold:
        (own / module).touch()
    stand_in = Path(__file__).with_name("preloaded_stand_in.py")
    command = shlex.join([sys.executable, "-IS", str(stand_in), str(folder / "socket"), str(own), sys.executable])
    path = own / "python"
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    path.chmod(0o755)
    return str(path)


def load(modules: Sequence[str]) -> None:
    """Import them, and spare forks the search for garbage among what they made."""
    gc.disable()
    for module in modules:
        importlib.import_module(module)
    Image.init()  # imports its formats
    gc.freeze()
    gc.enable()


def main(address: str, *packages: str) -> None:
    """Import the packages, say so, and fork on request until standard input ends."""
    ending = Ending()
    load(packages)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = Server(address)
    os.write(1, b"ready\n")
    fork = server.serve()
    if fork is None:
        server.close()
        shutil.rmtree(Path(address).parent)
        ending.status = 0
        return
    become(fork)
    ending.watch(fork.request.arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
