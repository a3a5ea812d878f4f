"""The client of chat endpoints, against a real server on this machine."""

import email.utils
import json
import os
import threading
import time

import pytest

from data_pipelines.generation.connection import retry_after
from data_pipelines.generation.endpoint import Budget, Endpoint, EndpointError, Outcome, ask
from data_pipelines.generation.replies import ChatRequest, ReplyLog

from .chat_endpoint import KEY, ChatServer, completion


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server():
    with ChatServer(lambda body: body["messages"][0]["content"].upper()) as running:
        yield running


def requests(count: int, **more) -> list[ChatRequest]:
    return [
        ChatRequest(f"r{n}", {"model": "m", "messages": [{"role": "user", "content": f"word {n}"}], **more})
        for n in range(count)
    ]


def endpoint(server: ChatServer, **changes) -> Endpoint:
    patience = {"first_wait": 0.01, "attempts": 3, "timeout": 5.0, "concurrency": 4}
    return Endpoint(server.url, key_variable="TEST_KEY", **{**patience, **changes})


def run(asked, server, path, budget=None, **changes) -> Outcome:
    with ReplyLog(path) as replies:
        return ask(asked, endpoint(server, **changes), replies, budget)


def texts(path, asked) -> list[str | None]:
    with ReplyLog(path) as replies:
        return [reply.text if (reply := replies.get(request)) else None for request in asked]


def test_every_request_is_sent_once_and_every_reply_is_kept_as_it_came(server, tmp_path):
    asked = requests(20, temperature=0.5, seed=3)
    outcome = run([*asked, *asked], server, tmp_path / "replies.jsonl")
    assert (outcome.answered, outcome.failed, outcome.left) == (20, {}, 0)
    came, sent = (
        sorted(json.dumps(body, sort_keys=True) for body in bodies)
        for bodies in (server.bodies, [dict(request.body) for request in asked])
    )
    assert came == sent
    lines = [json.loads(line) for line in (tmp_path / "replies.jsonl").read_text().splitlines()]
    assert {line["key"]: line["response"]["choices"][0]["message"]["content"] for line in lines} == {
        request.key: request.id.replace("r", "WORD ") for request in asked
    }
    assert KEY not in (tmp_path / "replies.jsonl").read_text()
    again = run(asked, server, tmp_path / "replies.jsonl")
    assert (again.known, again.answered, len(server.bodies)) == (20, 0, 20)


def test_the_key_of_a_request_is_that_of_its_content_alone():
    one, other = requests(2)
    assert one.key != other.key
    assert one.key == ChatRequest("another id", dict(reversed(one.body.items()))).key
    assert one.key != ChatRequest(one.id, {**one.body, "temperature": 0.0}).key


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_as_many_in_flight_as_allowed_and_no_more(server, tmp_path, concurrency):
    together = threading.Barrier(concurrency, timeout=20)
    server.model = lambda body: str(together.wait())
    run(requests(24), server, tmp_path / "replies.jsonl", concurrency=concurrency, timeout=30.0)
    assert server.most_at_once == concurrency


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"status": 503, "body": "<html>busy</html>"},
        {"status": 429},
        {"delay": 1.5},
        {"cut": 30},
        {"body": "{not json"},
        {"body": {"error": {"message": "overloaded"}}},
        {"body": {"choices": []}},
    ],
    ids=lambda fault: "-".join(map(str, fault.values()))[:20],
)
def test_what_passes_is_asked_again(server, tmp_path, fault):
    server.fault = lambda body, number: fault if number < 3 else None
    asked = requests(3)
    outcome = run(asked, server, tmp_path / "replies.jsonl", timeout=1.0)
    assert (outcome.answered, len(server.bodies)) == (3, 9)
    assert texts(tmp_path / "replies.jsonl", asked) == ["WORD 0", "WORD 1", "WORD 2"]


def test_retry_after_holds_back_every_request(server, tmp_path):
    """The first answer asks for a second; until it is over nothing else is sent."""
    fault = {"status": 429, "headers": {"Retry-After": "1"}}
    server.fault = lambda body, number: fault if len(server.bodies) == 1 else None
    outcome = run(requests(4), server, tmp_path / "replies.jsonl", concurrency=1)
    assert outcome.answered == 4
    assert server.times[1] - server.times[0] >= 1.0


def test_waits_grow(server, tmp_path):
    server.fault = lambda body, number: {"status": 500} if number < 5 else None
    run(requests(1), server, tmp_path / "replies.jsonl", attempts=5, first_wait=0.04)
    waits = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert [wait >= 0.5 * 0.04 * 2**n for n, wait in enumerate(waits)] == [True] * 4


def test_retry_after_in_every_form():
    assert retry_after({"retry-after": "7"}) == 7.0
    assert 58 < retry_after({"retry-after": email.utils.formatdate(time.time() + 60, usegmt=True)}) < 61
    assert [retry_after(headers) for headers in ({}, {"retry-after": "soon"}, {"retry-after": "-3"})] == [0.0] * 3
    assert [retry_after({"retry-after": value}) for value in ("nan", "inf")] == [0.0] * 2


def test_a_request_that_is_not_taken_does_not_stop_the_others(server, tmp_path):
    too_long = {"status": 400, "body": {"error": {"message": "too long"}}}
    server.fault = lambda body, number: too_long if "word 1" in str(body) else None
    asked = requests(4)
    outcome = run(asked, server, tmp_path / "replies.jsonl")
    assert outcome.answered == 3
    assert list(outcome.refused) == [asked[1].key]
    assert "400" in outcome.refused[asked[1].key]
    outcome.require_all()


def test_one_request_that_never_succeeds_leaves_the_others(server, tmp_path):
    server.fault = lambda body, number: {"status": 500} if "word 1" in str(body) else None
    outcome = run(requests(4), server, tmp_path / "replies.jsonl")
    assert (outcome.answered, len(outcome.failed), outcome.stopped) == (3, 1, "")
    with pytest.raises(EndpointError, match=r"answered 500.*3 replies are kept, 1 requests are left: run it again"):
        outcome.require_all()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_endpoint_that_takes_nothing_is_not_asked_on(server, tmp_path, monkeypatch, status):
    server.fault = lambda body, number: {"status": status, "body": {"error": {"message": f"no, {KEY}, no"}}}
    outcome = run(requests(50), server, tmp_path / "replies.jsonl", concurrency=2)
    assert len(server.bodies) <= 2
    assert len(outcome.failed) + outcome.left == 50
    assert f"answered {status}" in outcome.stopped
    assert KEY not in outcome.stopped + "".join(outcome.failed.values())


def test_used_up_quota_is_not_waited_for(server, tmp_path):
    answer = {"error": {"message": "pay", "code": "insufficient_quota"}}
    server.fault = lambda body, number: {"status": 429, "body": answer}
    run(requests(1), server, tmp_path / "replies.jsonl")
    assert len(server.bodies) == 1


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 400}], ids=str)
def test_nothing_more_is_asked_when_nothing_comes_back(server, tmp_path, fault):
    server.fault = lambda body, number: fault if "word 1" in str(body) else None
    outcome = run(requests(200), server, tmp_path / "replies.jsonl", attempts=1, concurrency=2)
    assert outcome.stopped
    assert 80 < outcome.left < 190
    assert outcome.answered + outcome.left + len(outcome.failed) + len(outcome.refused) == 200


def test_a_dead_endpoint_is_named(tmp_path):
    with ChatServer(str) as server:
        pass
    outcome = run(requests(3), server, tmp_path / "replies.jsonl", attempts=2)
    with pytest.raises(EndpointError, match=f"{server.url} cannot be reached: .*; 0 replies are kept, 3 requests"):
        outcome.require_all()


def test_a_budget_of_requests_counts_earlier_runs(server, tmp_path):
    asked = requests(10)
    outcome = run(asked, server, tmp_path / "replies.jsonl", Budget(requests=4))
    assert (outcome.answered, outcome.left, len(server.bodies)) == (4, 6, 4)
    with pytest.raises(EndpointError, match="budget of 4 requests is used up; 4 replies are kept, 6 requests are left"):
        outcome.require_all()
    outcome = run(asked, server, tmp_path / "replies.jsonl", Budget(requests=7))
    assert (outcome.known, outcome.answered, outcome.left, len(server.bodies)) == (4, 3, 3, 7)


@pytest.mark.parametrize("tokens", [50, 250, 1000])
def test_a_budget_of_tokens_is_never_exceeded(server, tmp_path, tokens):
    """Each reply costs 100; while it is out, it counts as the 99 that it allows and one of the prompt."""
    outcome = run(requests(20, max_tokens=99), server, tmp_path / "replies.jsonl", Budget(tokens=tokens))
    assert outcome.answered == tokens // 100
    with ReplyLog(tmp_path / "replies.jsonl") as replies:
        assert replies.tokens == 100 * (tokens // 100)


def test_an_endpoint_that_counts_no_tokens_is_estimated(server, tmp_path):
    answer = {"choices": [{"message": {"content": "x" * 400}}]}
    server.fault = lambda body, number: {"body": answer}
    run(requests(2), server, tmp_path / "replies.jsonl")
    with ReplyLog(tmp_path / "replies.jsonl") as replies:
        assert replies.tokens == 2 * (400 + 4) // 4


def test_a_line_cut_off_by_a_kill_is_dropped_and_asked_again(server, tmp_path):
    path, asked = tmp_path / "replies.jsonl", requests(3)
    run(asked, server, path, concurrency=1)
    whole = path.read_bytes()
    for cut in (1, 20, len(whole.splitlines()[-1])):
        path.write_bytes(whole[:-cut])
        outcome = run(asked, server, path)
        assert (outcome.known, outcome.answered) == (2, 1)
        assert path.read_bytes() == whole
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["r0", "r1", "r2"]


@pytest.mark.parametrize("line", ["[]", '{"key": "a"}', "\0\0", '{"key": "a", "request": {}, "response": {}}'])
def test_a_line_that_is_no_reply_is_named(tmp_path, line):
    path = tmp_path / "replies.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"replies.jsonl: line 1 is not a reply; take the line out"):
        ReplyLog(path)
    assert path.read_text() == f"{line}\n"


def test_a_reply_that_cannot_be_written_leaves_the_file_as_it_was(server, tmp_path, monkeypatch):
    path, asked = tmp_path / "replies.jsonl", requests(3)
    run(asked[:1], server, path)
    before = path.read_bytes()

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(asked, server, path)
    assert path.read_bytes() == before


def test_two_runs_do_not_share_a_file(tmp_path):
    with ReplyLog(tmp_path / "replies.jsonl"), pytest.raises(ValueError, match="in use by another run"):
        ReplyLog(tmp_path / "replies.jsonl")


def test_a_missing_key_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KEY", " ")
    with pytest.raises(ValueError, match="environment variable TEST_KEY holds no key"):
        run(requests(1), server, tmp_path / "replies.jsonl")
    assert server.bodies == []


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "http://user:secret@host/v1"])
def test_an_address_that_is_none_is_refused_without_repeating_secrets(url):
    with pytest.raises(ValueError, match="address") as error:
        Endpoint(url)
    assert "secret" not in str(error.value)


def test_texts_in_parts_and_replies_without_text(server, tmp_path):
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "b"}]
    server.fault = lambda body, number: {"body": completion(None if "word 0" in str(body) else parts)}
    assert run(asked := requests(2), server, tmp_path / "replies.jsonl").answered == 2
    assert texts(tmp_path / "replies.jsonl", asked) == ["", "ab"]
