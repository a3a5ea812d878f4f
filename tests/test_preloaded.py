"""What the preloaded interpreter of the tests runs is a process of its own, started, ended and killed as any other."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from . import preloaded

ROOT = Path(__file__).resolve().parents[1]
SURROUNDINGS = """
import os, sys
print(os.getcwd(), os.environ["COLOUR"], sys.argv, sys.stdin.read())
print("colorsys" in sys.modules, "netrc" in sys.modules)
print("to here", file=sys.stderr)
os.write(int(os.environ["FILE"]), str(os.getpid()).encode())
sys.exit(7)
"""
WAIT = "import os, signal, time; print(os.getpid(), flush=True); time.sleep(600)"


@pytest.fixture(scope="module")
def python() -> str:
    return preloaded.python(cold=["this"], packages=["colorsys"])


def test_surroundings_are_those_of_whoever_starts_it(python: str, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    done = subprocess.run(
        [python, "-c", SURROUNDINGS, "a b", "ü"],
        cwd=tmp_path,
        env={"COLOUR": "red", "FILE": str(writing)},
        input="said",
        capture_output=True,
        text=True,
        pass_fds=[writing],
    )
    assert done.stdout == f"{tmp_path} red ['-c', 'a b', 'ü'] said\nTrue False\n"
    assert (done.returncode, done.stderr) == (7, "to here\n")
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        assert int(file.read()) not in (0, os.getpid())


def test_modules_and_what_they_start_are_run_alike(python: str) -> None:
    inner = "import sys; print('colorsys' in sys.modules)"
    code = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-u', '-c', {inner!r}]).returncode)"
    done = subprocess.run([python, "-u", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n")
    done = subprocess.run([python, "-m", "data_pipelines", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage:")


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("raise ValueError('no such picture')", 1, "ValueError: no such picture\n"),
        ("import atexit; atexit.register(print, 'last'); raise SystemExit", 0, "last\n"),
        (
            "import threading, time; threading.Thread(target=lambda: time.sleep(0.1) or print('late')).start()",
            0,
            "late\n",
        ),
        ("raise SystemExit('error: 3 records')", 1, "error: 3 records\n"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
    ],
)
def test_it_ends_as_a_process_does(python: str, code: str, status: int, said: str) -> None:
    for interpreter in (python, sys.executable):
        done = subprocess.run([interpreter, "-c", code], capture_output=True, text=True)
        assert done.returncode == status and (done.stdout + done.stderr).endswith(said)


def test_no_two_draw_the_same(python: str) -> None:
    draw = [python, "-c", "import random; print(random.random())"]
    random.seed(0)
    assert len({subprocess.check_output(draw) for _ in range(3)}) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_signals_reach_it(python: str, number: int) -> None:
    with subprocess.Popen([python, "-c", WAIT], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as stand_in:
        process = int(stand_in.stdout.readline())
        assert process != stand_in.pid
        stand_in.send_signal(number)
        assert stand_in.wait(20) == -number
        assert stand_in.stdout.read() == b""  # ends when the process does


def test_a_cold_module_is_run_by_the_real_one_once(python: str) -> None:
    talkative = {"PYTHONVERBOSE": "1"}  # an interpreter that starts says what it imports
    first, second, other = (
        subprocess.run([python, *arguments], env=talkative, capture_output=True, text=True)
        for arguments in (["-m", "this"], ["-m", "this"], ["--version"])
    )
    assert first.stdout == second.stdout and "Zen" in first.stdout
    assert "import 'encodings" in first.stderr and second.stderr == ""
    assert other.stdout == f"Python {sys.version.split()[0]}\n"
