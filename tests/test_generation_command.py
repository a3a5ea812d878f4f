"""`python -m data_pipelines generate` against a real server on this machine."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.__main__ import main
from data_pipelines.conversations import conversation_of
from data_pipelines.generation.command import POSITIVE_NEGATIVE, TASK_SUMMARIES
from data_pipelines.generation.tasks import TASKS
from data_pipelines.records import RecordFolder, read_manifest, record_problems

from .chat_endpoint import KEY, ChatServer, completion, obedient, regions_asked
from .generation_records import record, write_folder
from .waiting import wait_until

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server():
    with ChatServer(obedient) as running:
        yield running


@pytest.fixture
def records(tmp_path):
    """Records of two regions each; the third has an unnamed one, the last one none at all."""
    made = [record(number, "dog", f"cat {number}", split="train") for number in range(6)]
    turns = ["", "Nothing to point at."]
    return write_folder(tmp_path / "records", *made, record(6, "dog", "", turns=turns), record(7, turns=turns))


def command(server: ChatServer, records: Path, out: Path, *more: str, task: str = "conversation") -> list[str]:
    endpoint = ["--endpoint", server.url, "--model", "m", "--key-variable", "TEST_KEY", "--attempts", "1"]
    return ["generate", task, str(records), "--out", str(out), *endpoint, *more]


def errors(capsys) -> str:
    lines = [line for line in re.split(r"[\r\n]+", capsys.readouterr().err) if "error:" in line]
    assert len(lines) == 1
    assert KEY not in lines[0]
    return lines[0]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_task_of_the_command_is_there():
    assert list(TASK_SUMMARIES) == [*TASKS, POSITIVE_NEGATIVE]


@pytest.mark.parametrize(
    ("task", "source", "exchanges"),
    [
        ("detailed-description", "osprey-detailed-description", 2),
        ("conversation", "osprey-conversation", 4),
        ("short-form", "osprey-short-form", 2),
    ],
)
def test_each_task_gives_records_that_training_reads(server, records, tmp_path, capsys, task, source, exchanges):
    assert main(command(server, records, tmp_path / "out", task=task)) == 0
    folder = RecordFolder.open(tmp_path / "out")
    assert [made.id for made in folder] == [f"{source}:coco:{number}" for number in range(7)]
    assert {made.source for made in folder} == {source}
    first, *_, last = folder
    assert (len(first.turns) // 2, [region.name for region in first.regions]) == (exchanges, ["dog", "cat 0"])
    assert (first.metadata, [region.name for region in last.regions]) == ({"split": "train"}, ["dog"])
    assert folder.image_path(first) == (tmp_path / "images" / "000000000000.jpg").resolve()
    for made in folder:
        assert record_problems(made) == []
        assert len(conversation_of(made, None)[0]["content"][0]["regions"]) >= 1
    manifest = read_manifest(tmp_path / "out")
    counts = {"records": 8, "requests": 7, "requests_with_captions": 1, "replies": 7, "tokens": 700}
    assert manifest["counts"]["in"] == counts
    assert manifest["rejections"]["region without a name"]["first_ids"] == ["coco:6#a1"]
    assert manifest["rejections"]["record without regions"]["first_ids"] == ["coco:7"]
    assert KEY not in "".join(path.read_text("utf-8", "replace") for path in (tmp_path / "out").iterdir())
    assert "7 records with 13 regions" in capsys.readouterr().out


def test_parts(server, tmp_path):
    one = record(1, "dog", "dog:ear", "dog:tail", source="paco")
    records = write_folder(tmp_path / "paco", one, record(2, "cat", source="paco"))
    for task, source in (("short-form", "osprey-part-level"), ("conversation", "osprey-conversation")):
        out = tmp_path / task
        assert main(command(server, records, out, "--level", "part", task=task)) == 0
        (made,) = RecordFolder.open(out)
        assert (made.id, [region.name for region in made.regions]) == (
            f"{source}:paco:1/parts",
            ["dog:ear", "dog:tail"],
        )
    assert regions_asked(server.bodies[0]) == {1: "ear (part of: dog)", 2: "tail (part of: dog)"}
    assert "part of a larger object" in server.bodies[0]["messages"][0]["content"]


def test_captions_and_parameters_reach_the_model(server, records, tmp_path):
    said = [record(n, source="captions", turns=["", f"Sentence {n}."]) for n in (0, 1, 99)]
    captions = write_folder(tmp_path / "captions", *said)
    more = ["--captions", str(captions), "--temperature", "0.3", "--seed", "5", "--max-tokens", "77"]
    more += ["--parameter", 'reasoning_effort="low"', "--parameter", "response_format=null", "--limit", "2"]
    assert main(command(server, records, tmp_path / "out", *more)) == 0
    assert len(server.bodies) == 2
    for body in server.bodies:
        assert "- Sentence " in body["messages"][1]["content"]
        assert {name: value for name, value in body.items() if name != "messages"} == {
            "model": "m",
            "temperature": 0.3,
            "seed": 5,
            "max_tokens": 77,
            "reasoning_effort": "low",
        }
    manifest = read_manifest(tmp_path / "out")
    assert manifest["counts"]["in"]["requests_with_captions"] == 2
    assert len(manifest["inputs"]) == 2


def test_rejected_replies_are_counted_with_their_ids(server, records, tmp_path):
    def fault(body, number):
        return {
            "cat 0": {"body": completion("no JSON")},
            "cat 1": {"body": completion(obedient(body), "length")},
            "cat 2": {"body": completion("", "content_filter")},
            "cat 3": {"body": completion(None)},
            "cat 4": {"status": 400, "body": {"error": {"message": "filtered"}}},
        }.get(regions_asked(body).get(2))

    server.fault = fault
    assert main(command(server, records, tmp_path / "out")) == 0
    manifest = read_manifest(tmp_path / "out")
    found = {reason: entry["first_ids"] for reason, entry in manifest["rejections"].items()}
    assert found == {
        "reply is not JSON": ["coco:0"],
        "reply cut off at its longest length": ["coco:1"],
        "reply withheld by the endpoint": ["coco:2"],
        "empty reply": ["coco:3"],
        "request refused by the endpoint": ["coco:4"],
        "region without a name": ["coco:6#a1"],
        "record without regions": ["coco:7"],
    }
    assert manifest["rejections"]["reply is not JSON"]["annotations"] == 2
    assert [made.id for made in RecordFolder.open(tmp_path / "out")] == [
        f"osprey-conversation:coco:{n}" for n in (5, 6)
    ]
    assert (tmp_path / "out.replies.jsonl").read_text().count("\n") == 6


def test_the_order_is_that_of_the_records_whatever_comes_first(server, records, tmp_path):
    kept = tmp_path / "out.replies.jsonl"

    def first_record_last(body: dict) -> str:
        if "cat 0" in str(body):
            wait_until(lambda: kept.read_text().count("\n") == 6)
        return obedient(body)

    server.model = first_record_last
    assert main(command(server, records, tmp_path / "out")) == 0
    replies = [json.loads(line) for line in kept.read_text().splitlines()]
    assert replies[-1]["id"] == "coco:0"
    assert RecordFolder.open(tmp_path / "out")[0].id == "osprey-conversation:coco:0"


def test_a_dry_run_asks_nothing_and_shows_what_would_be_asked(server, records, tmp_path, capsys):
    arguments = ["generate", "short-form", str(records), "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(arguments) == 0
    summary, tokens, _, example = capsys.readouterr().out.split("\n", 3)
    assert summary == "7 requests about 13 regions, 1 of them with captions; 0 are answered already"
    assert re.fullmatch(r"the others: about [1-9]\d+ tokens of prompts and [1-9]\d+ of replies .*", tokens)
    assert "<region2>: cat 0 [2, 5, 12, 15]" in json.loads(example)["messages"][1]["content"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records"]
    main(command(server, records, tmp_path / "out", "--budget-requests", "3", task="short-form"))
    capsys.readouterr()
    asked = len(server.bodies)
    assert main(command(server, records, tmp_path / "out", "--dry-run", task="short-form")) == 0
    assert "3 are answered already" in capsys.readouterr().out
    assert len(server.bodies) == asked


def test_a_budget_ends_the_run_and_partial_writes_what_there_is(server, records, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(server, records, out, "--budget-requests", "2", "--concurrency", "1")) == 1
    assert "budget of 2 requests is used up; 2 replies are kept, 5 requests are left" in errors(capsys)
    assert not out.exists()
    assert main(command(server, records, out, "--budget-requests", "2", "--partial")) == 0
    assert read_manifest(out)["rejections"]["request without an answer"]["count"] == 5
    assert len(server.bodies) == 2
    assert main(command(server, records, out, "--overwrite")) == 0
    assert (len(RecordFolder.open(out)), len(server.bodies)) == (7, 7)


def test_a_dead_endpoint_keeps_what_was_finished(server, records, tmp_path, capsys):
    server.fault = lambda body, number: {"status": 503} if "cat 5" in str(body) else None
    assert main(command(server, records, tmp_path / "out", "--concurrency", "1")) == 1
    assert "answered 503" in errors(capsys)
    server.fault = lambda body, number: None
    assert main(command(server, records, tmp_path / "out")) == 0
    assert len(server.bodies) == 8


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--key-variable", "NO_SUCH_KEY"], "environment variable NO_SUCH_KEY holds no key"),
        (["--endpoint", "nowhere"], "'nowhere' is not the address of an endpoint"),
        (["--endpoint", ""], "--endpoint URL and --model NAME"),
        (["--level", "part"], "no record has a named region of the level part"),
        (["--captions", "{}/others"], "others shares no picture with the records"),
        (["--captions", "{}/nothing"], "not a folder of records"),
        (["--limit", "0"], "the limit is 0"),
        (["--max-regions", "0"], "the most regions is 0"),
        (["--concurrency", "0"], "the endpoint's concurrency is 0"),
        (["--budget-tokens", "0"], "the budget of tokens is 0"),
        (["--out", "{}/records"], "exists already"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(server, records, tmp_path, capsys, more, message):
    write_folder(tmp_path / "others", record(1, source="captions", image="x.jpg", turns=["", "A dog."]))
    before = sorted(tmp_path.iterdir())
    assert main(command(server, records, tmp_path / "out", *(word.format(tmp_path) for word in more))) == 1
    assert message in errors(capsys)
    assert server.bodies == []
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("text", ["temperature", "=1", "model=1", "stop=word"])
def test_a_parameter_that_is_none_is_refused(server, records, tmp_path, text):
    with pytest.raises(SystemExit):
        main(command(server, records, tmp_path / "out", "--parameter", text))


def test_a_wrong_key_is_not_repeated(server, records, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "sk-wrong-key")
    assert main(command(server, records, tmp_path / "out")) == 1
    message = errors(capsys)
    assert "answered 401" in message
    assert "sk-wrong-key" not in message


def test_records_for_evaluation_are_refused(server, tmp_path, capsys):
    records = write_folder(tmp_path / "records", record(1, "dog"), purpose="evaluation")
    for task in ("conversation", POSITIVE_NEGATIVE):
        more = [] if task == POSITIVE_NEGATIVE else command(server, records, tmp_path)[5:]
        assert main(["generate", task, str(records), "--out", str(tmp_path / "out"), *more]) == 1
        assert "is for evaluation" in errors(capsys)


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(tmp_path):
    """Killed with -9 in the middle; then nothing that was on the disk is asked again, and the folder is the same."""
    folder = write_folder(tmp_path / "records", *(record(number, "dog", f"cat {number}") for number in range(40)))
    out, replies = tmp_path / "out", tmp_path / "out.replies.jsonl"
    with ChatServer(obedient, delay=0.1) as server:
        arguments = [sys.executable, "-m", "data_pipelines", *command(server, folder, out, "--concurrency", "3")]
        running = subprocess.Popen(arguments, cwd=ROOT, env=dict(os.environ), stderr=subprocess.DEVNULL)
        wait_until(lambda: replies.is_file() and replies.read_bytes().count(b"\n") >= 10)
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        assert not out.exists()
        with replies.open("ab") as file:
            file.write(b'{"key": "half a li')
        kept = [json.loads(line)["request"] for line in replies.read_bytes().splitlines()[:-1]]
        assert 10 <= len(kept) < 40
        server.bodies.clear()
        server.delay = 0.0
        assert subprocess.run(arguments, cwd=ROOT, env=dict(os.environ), capture_output=True).returncode == 0
        assert [body for body in server.bodies if body in kept] == []
        assert len(server.bodies) == 40 - len(kept)
        assert main(command(server, folder, tmp_path / "at once")) == 0
    assert files_of(out) == files_of(tmp_path / "at once")
