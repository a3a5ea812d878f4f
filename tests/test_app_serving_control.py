"""Who is let in, who waits, who has gone, what fails: real servers inside the process, over a model that is told what
to do.
"""

import json
import threading

import httpx
import pytest
from gradio_client import Client
from PIL import Image

from app.interface import build_interface
from app.server import Access, start
from app.service import Limits, Service
from osprey_tp.segmenters import Candidate

from .serving import data_url, encoded, free_port, message, scene

PATIENCE = 30.0  # seconds, after which a test that hangs fails
USERS = (("ann", "secret-1"), ("bob", "secret-2"))
KEY = "key-123"


class Model:
    """Describer, segmenter and session at once.

    Attributes:
        gate: While it is not set, the making of an answer stops after its first piece.
        begun: Set when an answer has been begun.
        ended: Set when one has been closed or has come to its end.
        error: Raised instead of an answer.
    """

    description = "Squares"

    def __init__(self):
        self.reset()

    def reset(self):
        self.gate, self.begun, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.error, self.pieces, self.batches, self.asked = None, ["a ", "b ", "c"], 0, threading.Event()

    def open(self, image: Image.Image):
        return self

    def segment(self, points, labels, box=None):
        return [Candidate(None, 1.0)]

    def converse(self, turns, regions=(), **options):
        if turns == [("user", "?")]:  # the health check
            if self.error:
                raise self.error
            yield "!"
            return
        self.begun.set()
        try:
            if self.error:
                raise self.error
            for index, piece in enumerate(self.pieces):
                yield piece
                assert index or self.gate.wait(PATIENCE)
        finally:
            self.ended.set()

    def ask(self, regions, question, **options):
        self.batches += 1
        self.asked.set()
        assert self.batches < 2 or self.gate.wait(PATIENCE)
        return ["thing"] * len(regions)


class Running:
    def __init__(self, access=None, **limits):
        self.model = Model()
        self.service = Service(self.model, self.model, Limits(**limits), name="test/model")
        self.blocks = build_interface(self.service)
        self.address = start(self.blocks, self.service, access, host="127.0.0.1", port=free_port()).rstrip("/")
        self.chat = f"{self.address}/v1/chat/completions"

    def stop(self):
        self.model.gate.set()
        self.service.line.close()
        self.blocks.close(verbose=False)

    def eventually(self, holds):
        """Waits until something holds that another thread brings about."""
        deadline = threading.Event()
        timer = threading.Timer(PATIENCE, deadline.set)
        timer.start()
        while not holds():
            assert not deadline.wait(0.02)
        timer.cancel()

    def at_rest(self):
        self.eventually(lambda: not self.service.line.busy)


def body(**options):
    return {"model": "test/model", "messages": [message("Hi", url=data_url(encoded(scene())))], **options}


@pytest.fixture(scope="module")
def running():
    running = Running(waiting=1, request_seconds=PATIENCE)
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def fresh(request):
    if "running" in request.fixturenames:
        running = request.getfixturevalue("running")
        running.model.reset()
        yield
        running.model.gate.set()
        running.at_rest()
    else:
        yield


@pytest.fixture
def in_thread():
    """Runs functions in threads and returns what gives their results."""
    threads = []

    def run(function):
        results = []
        thread = threading.Thread(target=lambda: results.append(function()))
        thread.start()
        threads.append(thread)

        def result():
            thread.join(PATIENCE)
            return results[0]

        return result

    yield run
    for thread in threads:
        thread.join(PATIENCE)


def test_a_client_that_goes_away_while_an_answer_is_streamed_ends_it(running):
    running.model.pieces = ("word " for _ in iter(int, 1))  # without end
    running.model.gate.set()
    with httpx.stream("POST", running.chat, json=body(stream=True)) as stream:
        lines = stream.iter_lines()  # held: dropped, it would close the connection
        assert stream.status_code == 200 and any("word" in line for line in lines)
        assert running.service.line.busy
    assert running.model.ended.wait(PATIENCE)
    running.at_rest()


def test_a_client_that_goes_away_while_it_waits_gives_up_its_place(running, in_thread):
    first = in_thread(lambda: httpx.post(running.chat, json=body(), timeout=PATIENCE))
    assert running.model.begun.wait(PATIENCE)
    with httpx.Client() as impatient, pytest.raises(httpx.ReadTimeout):
        impatient.post(running.chat, json=body(), timeout=httpx.Timeout(PATIENCE, read=0.5))
    running.eventually(lambda: running.service.line.waiting == 0)
    running.model.gate.set()
    assert first().json()["choices"][0]["message"]["content"] == "a b c"


def test_a_full_line_says_so_and_health_tells_who_waits(running, in_thread):
    answers = [in_thread(lambda: httpx.post(running.chat, json=body(), timeout=PATIENCE)) for _ in range(2)]
    running.eventually(lambda: running.service.line.waiting == 1)
    refused = httpx.post(running.chat, json=body(), timeout=PATIENCE)
    assert refused.status_code == 429 and refused.headers["Retry-After"]
    assert refused.json()["error"]["code"] == "line_full" and "try again" in refused.json()["error"]["message"]
    health = httpx.get(f"{running.address}/health")
    assert health.status_code == 200 and (health.json()["busy"], health.json()["waiting_requests"]) == (True, 1)
    running.model.gate.set()
    assert [answer().status_code for answer in answers] == [200, 200]


def test_an_answer_that_takes_too_long_is_stopped(running, monkeypatch):
    monkeypatch.setattr(running.service.line, "seconds", 0.2)
    running.model.pieces = ("word " for _ in iter(int, 1))
    running.model.gate.set()
    late = httpx.post(running.chat, json=body(), timeout=PATIENCE)
    assert late.status_code == 503 and late.json()["error"]["code"] == "time_limit"
    assert running.model.ended.is_set()
    lines = httpx.post(running.chat, json=body(stream=True), timeout=PATIENCE).text.split("\n\n")
    assert json.loads(lines[-3].removeprefix("data: "))["error"]["code"] == "time_limit"
    assert lines[-2] == "data: [DONE]"


def test_what_nobody_foresaw_is_logged_and_told_in_short(running, caplog):
    running.model.error = RuntimeError("secret detail")
    failed = httpx.post(running.chat, json=body(), timeout=PATIENCE)
    assert failed.status_code == 500 and failed.json()["error"]["type"] == "server_error"
    assert "secret" not in failed.text and "secret detail" in caplog.text
    health = httpx.get(f"{running.address}/health")
    assert health.status_code == 503 and health.json()["failure"] == "RuntimeError"
    running.model.error = None
    assert httpx.get(f"{running.address}/health").status_code == 200


def upload(running, **options):
    files = {"files": ("scene.png", encoded(scene()))}
    return httpx.post(f"{running.address}/gradio_api/upload", files=files, **options)


def test_a_tab_that_is_closed_during_the_work_ends_it(running):
    image = {"path": upload(running).json()[0], "meta": {"_type": "gradio.FileData"}}
    values = [image, [{"box": [1, 1, 50, 50]}] * 64, "What is <mask>?", 4]
    event = httpx.post(f"{running.address}/gradio_api/call/describe", json={"data": values}).json()["event_id"]
    with httpx.stream("GET", f"{running.address}/gradio_api/call/describe/{event}", timeout=PATIENCE) as stream:
        assert "working" in next(line for line in stream.iter_lines() if line.startswith("data: "))
        running.eventually(lambda: running.model.batches == 2)
    jobs = running.blocks._queue.active_jobs
    running.eventually(lambda: not any(event.alive for events in jobs if events for event in events))
    running.model.gate.set()
    running.at_rest()
    assert running.model.batches <= 3


def test_only_those_who_are_let_in_are_served():
    running = Running(Access(USERS, KEY))
    try:
        running.model.gate.set()
        behind_the_lock = [
            "",
            "/config",
            "/gradio_api/info",
            "/gradio_api/file=x",
            "/gradio_api/queue/data?session_hash=1",
        ]
        for path in behind_the_lock[1:]:
            assert httpx.get(f"{running.address}{path}").status_code == 401, path
        assert "secret-1" not in httpx.get(running.address).text
        assert upload(running).status_code == 401
        assert httpx.post(f"{running.address}/gradio_api/call/describe", json={"data": []}).status_code == 401
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
            for path in ("models", "nowhere"):
                refused = httpx.get(f"{running.address}/v1/{path}", headers=headers)
                assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
            assert httpx.post(running.chat, json=body(), headers=headers).status_code == 401
        key = {"Authorization": f"Bearer {KEY}"}
        assert httpx.post(running.chat, json=body(), headers=key).status_code == 200
        assert httpx.get(f"{running.address}/health").json() == {"status": "ok"}
        assert httpx.get(f"{running.address}/health", headers=key).json()["model"] == "test/model"
        with pytest.raises(Exception, match=r"401|[Aa]uth|login|credentials"):
            Client(running.address, auth=("ann", "secret-2"), verbose=False)
        client = Client(running.address, auth=USERS[1], verbose=False)
        assert "/describe" in client.view_api(return_format="dict")["named_endpoints"]
        client.close()
    finally:
        running.stop()


def test_a_locked_page_without_a_key_closes_v1_too():
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from app.chat_completions import chat_router

    service = Service(Model(), Model())
    for key, closed, token, status in ((None, True, KEY, 401), (None, False, "", 200), (KEY, False, "", 401)):
        application = FastAPI()
        application.include_router(chat_router(service, key, closed=closed))
        answer = TestClient(application).get("/v1/models", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == status
