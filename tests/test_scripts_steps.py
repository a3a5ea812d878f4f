"""Steps are resumed where they were, run anew when what they depend on changed, and fail in one line."""

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.steps import Progress, Step, StepError, clock, keys_of, run_steps

from .waiting import wait_until

ROOT = Path(__file__).resolve().parents[1]
JOB = """
import sys, time
from pathlib import Path
kind, out = sys.argv[1], Path(sys.argv[2])
with open("calls", "a") as calls:
    print(kind, out.name, file=calls)
print("something about", out.name)
if kind == "fail":
    sys.exit("error: no such picture: cat.jpg" + 1000 * "?")
if kind == "nothing":
    sys.exit(0)
if kind == "wait":
    time.sleep(60)
if kind == "half":
    with open(f"{out}.unfinished", "a") as unfinished:
        print("first", file=unfinished)
    sys.exit("error: power failure")
out.mkdir()
if kind == "bars":
    sys.stderr.write("a:  10%|# | 30/300 [00:01<00:09]\\r")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("job.py").write_text(JOB)
    return tmp_path / "run"


def step(folder: Path, name: str, kind: str = "make", **fields) -> Step:
    return Step(name, f"Do {name}", ("job", kind, str(folder / name)), folder / name, 10.0, **fields)


def run(steps: list[Step], folder: Path) -> tuple[list[str], str]:
    """The commands that were called, and what was shown."""
    screen = io.StringIO()
    Path("calls").write_text("")
    try:
        run_steps(steps, folder, screen)
    finally:
        calls = Path("calls").read_text().splitlines()
    return calls, screen.getvalue()


def test_finished_steps_are_not_run_again(folder: Path) -> None:
    steps = [step(folder, "a"), step(folder, "b", after=("a",))]
    calls, shown = run(steps, folder)
    assert calls == ["make a", "make b"]
    assert f"$ python -m job make {folder / 'a'}" in shown and "left" in shown
    assert (folder / "logs" / "a.log").read_text() == f"$ {steps[0]}\nsomething about a\n"
    calls, shown = run(steps, folder)
    assert calls == [] and shown.count("done before") == 2


def test_what_a_step_depends_on_decides_whether_it_runs_again(folder: Path) -> None:
    settings = Path("settings.yaml")
    settings.write_text("rate: 1")
    steps = [step(folder, "a", reads=(settings,)), step(folder, "b", after=("a",)), step(folder, "c")]
    run(steps, folder)
    settings.write_text("rate: 2")
    assert run(steps, folder)[0] == ["make a", "make b"]
    steps[1] = step(folder, "b", "bars", after=("a",))
    assert run(steps, folder)[0] == ["bars b"]
    (folder / "c").rmdir()
    assert run(steps, folder)[0] == ["make c"]


def test_a_failing_step_ends_with_one_line_and_is_where_the_next_run_goes_on(folder: Path) -> None:
    with pytest.raises(StepError) as failure:
        run([step(folder, "a"), step(folder, "b", "fail"), step(folder, "c")], folder)
    message = str(failure.value)
    assert message.startswith("step b failed: no such picture: cat.jpg???") and len(message) < 600
    assert str(folder / "logs" / "b.log") in message and "run the same command again" in message
    assert "\n" not in message
    assert run([step(folder, "a"), step(folder, "b"), step(folder, "c")], folder)[0] == ["make b", "make c"]


def test_a_step_must_leave_its_output(folder: Path) -> None:
    with pytest.raises(StepError, match="ended without leaving"):
        run([step(folder, "a", "nothing")], folder)


def test_a_command_goes_on_from_what_it_left_unless_it_is_to_make_something_else(folder: Path) -> None:
    half = step(folder, "a", "half", unfinished=folder / "a.unfinished")
    for expected in (["first"], ["first", "first"]):
        with pytest.raises(StepError, match="power failure"):
            run([half], folder)
        assert (folder / "a.unfinished").read_text().split() == expected
        assert not (folder / "a").exists()
    changed = dataclasses.replace(half, command=(*half.command, "changed"))
    with pytest.raises(StepError, match="power failure"):
        run([changed], folder)
    assert (folder / "a.unfinished").read_text().split() == ["first"]


def test_a_command_may_go_on_from_its_output_itself(folder: Path) -> None:
    answers = folder / "a.unfinished"
    half = Step("a", "Do a", ("job", "half", str(folder / "a")), answers, 10.0, unfinished=answers)
    for expected in (["first"], ["first", "first"]):
        with pytest.raises(StepError, match="power failure"):
            run([half], folder)
        assert (folder / "a.unfinished").read_text().split() == expected


def test_output_of_a_failed_command_is_removed_before_it_runs_again(folder: Path) -> None:
    (folder / "a").mkdir(parents=True)
    assert run([step(folder, "a")], folder)[0] == ["make a"]


def test_a_step_cannot_come_before_what_it_needs(folder: Path) -> None:
    with pytest.raises(ValueError, match="step b comes before a"):
        keys_of([step(folder, "b", after=("a",)), step(folder, "a")])


def test_a_second_run_in_the_folder_is_refused_and_an_ended_one_takes_its_command_along(folder: Path) -> None:
    code = (
        "import signal, sys; from pathlib import Path; from scripts.steps import Step, run_steps\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"run_steps([Step('w', 'Wait', ('job', 'wait', {str(folder / 'w')!r}), Path({str(folder / 'w')!r}), 1.0)],"
        f" Path({str(folder)!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    log = folder / "logs" / "w.log"
    wait_until(lambda: log.exists() and "something" in log.read_text())
    with pytest.raises(StepError, match="another process works in"):
        run([step(folder, "a")], folder)
    first.send_signal(signal.SIGTERM)
    assert first.wait(20) == 143
    assert run([step(folder, "a")], folder)[0] == ["make a"]


def test_remaining_time_follows_the_measured_pace_and_the_widest_bar(folder: Path) -> None:
    steps = [step(folder, name) for name in "abc"]
    progress = Progress(steps, io.StringIO())
    progress.begin(1, steps[0])
    assert progress.remaining(steps[0], 4.0) == pytest.approx(26.0)
    progress.learn(steps[0], 80.0)
    pace = (60 + 80) / (60 + 10)
    progress.begin(2, steps[1])
    assert progress.remaining(steps[1], 4.0) == pytest.approx(20 * pace - 4.0)
    progress.show(steps[1], 5.0, b"outer: 25%| | 75/300 [00:05<00:15]\rinner: 90%| | 9/10 [00:00<00:00]\r")
    progress.show(steps[1], 5.0, b"Loading weights: 90%| | 450/500 [00:00<00:00]\r")
    assert progress.remaining(steps[1], 5.0) == pytest.approx(15.0 + 10 * pace)


def test_progress_is_rewritten_on_a_terminal_and_written_line_by_line_elsewhere(folder: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for screen, interval in ((Terminal(), 0.6), (io.StringIO(), 16.0)):
        steps = [step(folder, "a"), step(folder, "b")]
        progress = Progress(steps, screen)
        progress.begin(1, steps[0])
        progress.show(steps[0], interval, b"x: 30%| | 30/100 [00:01<00:02]\r")
        progress.show(steps[0], interval + 0.1, b"")
        shown = screen.getvalue().split("\n", 2)[2]
        assert len(re.findall(r"30 of 100, .* left", shown)) == 1
        assert shown.startswith("\r") == screen.isatty() and shown.endswith("\n") == (not screen.isatty())


def test_stamps_say_how_long_each_command_took(folder: Path) -> None:
    only = step(folder, "a")
    run([only], folder)
    stamp = json.loads((folder / "steps" / "a.json").read_text())
    assert stamp["command"] == str(only) and 0 <= stamp["seconds"] < 60
    assert [clock(seconds) for seconds in (0, 59.6, 725)] == ["0:00", "1:00", "12:05"]
