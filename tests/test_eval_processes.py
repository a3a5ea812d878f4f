"""Several processes share an evaluation: the same answers as one gives, whatever dies on the way."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from torch.distributed import HashStore

from data_pipelines.prepare import prepare
from data_pipelines.synthetic.writer import write_scenes
from eval.__main__ import main
from eval.asking import Asking
from eval.evaluation import Settings, evaluate
from eval.loading import own_device
from eval.predictions import PredictionLog, line_of, read_predictions
from eval.questions import collect_questions
from eval.runner import CONTROL_FILE, PREDICTIONS_FILE, ask_all
from eval.shards import gather, part_of, share_of
from eval.tasks import TASKS
from eval.team import Team, TeammateGone, TeammateLost

from . import preloaded
from .eval_fakes import FakeDescriber, FakeSession, OpensMany, Records, knowing, make_data
from .tiny_models import save_tiny_model

ROOT = Path(__file__).resolve().parents[1]
TASK = TASKS["referring-classification"]
NAMES = [["red", "green", "blue"], ["red"], ["blue", "green", "yellow", "red", "red", "blue"], ["green", "red"]]
ASKING = Asking(batch_size=2, max_new_tokens=9)


@drawn(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 9))
def test_shares_are_whole_and_balanced(sizes: list[int], processes: int) -> None:
    plans = [[(picture, region) for region in range(size)] for picture, size in enumerate(sizes)]
    shares = [share_of(plans, rank, processes) for rank in range(processes)]
    assert sorted(item for share in shares for plan in share for item in plan) == [x for plan in plans for x in plan]
    assert all(share == sorted(share) for share in shares)
    loads = [sum(map(len, share)) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)


def in_threads(size: int, work: Any, patience: float = 30.0) -> list[Any]:
    """`work(team)` for each of `size` processes; returns what each gave or raised."""
    store = HashStore()
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            with Team(rank, size, store, patience) as team:
                results[rank] = work(team)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def ask(records: Records, out: Path, size: int, make: Any = knowing) -> list[FakeDescriber]:
    """Ask all with so many processes; what any of them raises is raised, the first process's error before others."""
    describers = [make(records) for _ in range(size)]
    questions = collect_questions(TASK, records)

    def work(team: Team) -> None:
        with team.step("all") as step:
            ask_all(TASK, questions, describers[team.rank], out, ASKING, shuffle_seed=1, progress=False, step=step)

    for result in in_threads(size, work):
        if result is not None:
            raise result
    return describers


def asked(describers: list[FakeDescriber]) -> int:
    return sum(size for describer in describers for _, size, _, _ in describer.asked)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_several_processes_write_what_one_writes(tmp_path: Path, size: int) -> None:
    records = make_data(tmp_path / "data", NAMES)
    ask(records, tmp_path / "one", 1)
    describers = ask(records, tmp_path / "several", size)
    for file in (PREDICTIONS_FILE, CONTROL_FILE):
        assert (tmp_path / "several" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
    assert {path.name for path in (tmp_path / "several").iterdir()} == {PREDICTIONS_FILE, CONTROL_FILE}
    opened = Counter(name for describer in describers for name in describer.opened)
    assert opened == {f"{number}.png": 1 for number in range(len(NAMES))}


class BreaksOff(FakeDescriber):
    """Fails at the answer of the given number."""

    def __init__(self, records: Records, answers: int) -> None:
        right, given = knowing(records).answer, []

        def answer(image: str, counts: str) -> str:
            if len(given) == answers:
                raise RuntimeError("out of\nmemory")
            given.append(counts)
            return right(image, counts)

        super().__init__(answer)


def test_a_run_goes_on_with_any_number_of_processes_and_asks_nothing_twice(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", NAMES)
    done = []
    for size in (3, 2, 1):
        with pytest.raises((TeammateLost, RuntimeError)):
            ask(records, tmp_path / "out", size, lambda records: BreaksOff(records, 2))
        found = [path for path in (tmp_path / "out").glob("*.jsonl") if "rank" in path.name or size == 1]
        assert found
        done.append(sum(len(read_predictions(path)) for path in (tmp_path / "out").glob("*.jsonl")))
    assert done == sorted(set(done))
    describers = ask(records, tmp_path / "out", 2)
    ask(records, tmp_path / "one", 1)
    for file in (PREDICTIONS_FILE, CONTROL_FILE):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
    whole = sum(len(read_predictions(tmp_path / "one" / file)) for file in (PREDICTIONS_FILE, CONTROL_FILE))
    assert asked(describers) == whole - done[-1]


def test_the_failure_of_one_is_told_to_the_one_that_waits(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", NAMES)
    questions = collect_questions(TASK, records)

    def work(team: Team) -> None:
        describer = BreaksOff(records, 0) if team.rank else knowing(records)
        with team.step("all") as step:
            ask_all(TASK, questions, describer, tmp_path / "out", ASKING, progress=False, step=step)

    first, second = in_threads(2, work)
    assert isinstance(second, RuntimeError)
    assert isinstance(first, TeammateLost)
    assert "process 1 of 2 failed: RuntimeError: out of memory; answers so far are kept" in str(first)
    assert len(read_predictions(part_of(tmp_path / "out" / PREDICTIONS_FILE, 0))) == 6


def test_a_process_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", NAMES)
    questions = collect_questions(TASK, records)

    def work(team: Team) -> None:
        if team.rank:
            return  # ends at once, as a process that was killed while it loaded the model
        with team.step("all") as step:
            ask_all(TASK, questions, knowing(records), tmp_path / "out", ASKING, progress=False, step=step)

    begun = time.monotonic()
    first, _ = in_threads(2, work, patience=0.6)
    assert 0.5 < time.monotonic() - begun < 10
    assert isinstance(first, TeammateGone)
    assert "process 1 of 2 has given no sign of life for 0.6 s; answers so far are kept" in str(first)


def test_a_kill_while_answers_are_gathered_repeats_none(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", NAMES)
    ask(records, tmp_path / "out", 1)
    path = tmp_path / "out" / PREDICTIONS_FILE
    whole, answers = path.read_bytes(), read_predictions(path)
    part_of(path, 3).write_text("".join(map(line_of, answers[4:6])))  # gathered already, but not yet removed
    path.with_name(path.name + ".part").write_text("half")
    gather(path, [item.id for item in answers])
    assert path.read_bytes() == whole
    path.write_text("".join(map(line_of, reversed(answers[2:]))))
    part_of(path, 0).write_text("".join(map(line_of, answers[:2])) + '{"id": "fake')
    gather(path, [item.id for item in answers])
    assert path.read_bytes() == whole
    assert not part_of(path, 0).exists()


def test_two_runs_cannot_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / PREDICTIONS_FILE
    with (
        PredictionLog(part_of(path, 1)),
        pytest.raises(ValueError, match=r"predictions\.rank1\.jsonl is being written by another process"),
    ):
        gather(path, [])


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "must be whole numbers"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2, WORLD_SIZE is 2"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR expected"),
    ],
)
def test_wrong_surroundings_are_named(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["region-caption", "--data", "d", "--out", "o", "--model", "m"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "own", "gpus", "expected"),
    [
        (None, "3", 4, "cuda:3"),
        ("cuda", "5", 4, "cuda:1"),
        ("cuda:2", "1", 4, "cuda:2"),
        ("cpu", "1", 4, "cpu"),
        (None, "1", 0, None),
        (None, None, 4, None),
    ],
)
def test_each_process_takes_a_gpu_of_its_own(
    given: str | None, own: str | None, gpus: int, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if own is not None:
        monkeypatch.setenv("LOCAL_RANK", own)
    assert own_device(given) == expected


def test_answers_that_are_there_are_scored_by_one_process(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", NAMES)
    settings = Settings(TASK.name, tmp_path / "data", tmp_path / "out", predictions=tmp_path / "mine.jsonl")
    with pytest.raises(ValueError, match="scored by one process, not by 2"):
        evaluate(settings, records=records, team=Team(1, 2))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("processes")
    write_scenes(root / "scenes", {"test": 3}, progress=False)
    annotations = root / "scenes" / "annotations" / "instances_test.json"
    prepare("synthetic", annotations, root / "scenes" / "images" / "test", root / "data", progress=False)
    save_tiny_model(root / "model")
    return root


def arguments(folders: Path, out: Path, *options: str) -> list[str]:
    common = ["referring-classification", "--model", folders / "model", "--data", folders / "data", "--out", out]
    return [str(argument) for argument in (*common, "--max-new-tokens", "5", "--shuffle-regions", "1", *options)]


def lines(out: Path) -> list[list[str]]:
    return [sorted((out / file).read_text().splitlines()) for file in (PREDICTIONS_FILE, CONTROL_FILE)]


@pytest.fixture(scope="module")
def alone(folders: Path) -> list[list[str]]:
    assert main(arguments(folders, folders / "alone", "--batch-size", "16")) == 0
    return lines(folders / "alone")


def test_batches_of_one_and_of_sixteen_answer_alike(folders: Path, alone: list[list[str]], tmp_path: Path) -> None:
    assert main(arguments(folders, tmp_path, "--batch-size", "1", "--workers", "0")) == 0
    assert lines(tmp_path) == alone


def run(python: str, *command: str) -> subprocess.CompletedProcess[str]:
    surroundings = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [python, "-m", *command], cwd=ROOT, env=surroundings, capture_output=True, text=True, timeout=240
    )


def test_two_processes_answer_as_one(folders: Path, alone: list[list[str]], tmp_path: Path) -> None:
    launcher = ("torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "eval")
    done = run(preloaded.python(), *launcher, *arguments(folders, tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert lines(tmp_path) == alone
    assert not list(tmp_path.glob("*rank*"))
    assert done.stdout.count("report:") == 1
    assert (tmp_path / "report.html").is_file()


def test_a_run_killed_three_times_answers_as_one_that_was_not(
    folders: Path, alone: list[list[str]], tmp_path: Path
) -> None:
    done = run(preloaded.python(), "tests.eval_killed", "1,2,1", *arguments(folders, tmp_path, "--batch-size", "2"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert lines(tmp_path) == alone


def test_a_broken_picture_stops_the_run_at_its_place(tmp_path: Path) -> None:
    records = make_data(tmp_path / "data", NAMES)
    (tmp_path / "data" / "2.png").write_bytes(b"no picture")
    questions = collect_questions(TASK, records)
    describer = BySize(records)
    with pytest.raises(ValueError, match=r"2\.png"):
        ask_all(TASK, questions, describer, tmp_path / "out", ASKING, progress=False, workers=2)
    found = [item.id for item in read_predictions(tmp_path / "out" / PREDICTIONS_FILE)]
    assert found == [question.id for question in questions if question.image in {"0.png", "1.png"}]


class BySize(OpensMany):
    """A describer that takes pixels, as workers hand them over."""

    def __init__(self, records: Records) -> None:
        super().__init__()
        self.inner = replace(knowing(records), answer=lambda image, counts: "x")

    def open(self, image: Any, overview: str = "") -> Any:
        return FakeSession(self.inner, Path("pixels"), image.height, image.width)
