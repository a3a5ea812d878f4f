"""A real HTTP server that speaks enough of `/v1/chat/completions`, with faults to order."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-test-0123456789"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # of 5, as usual, the kernel drops connections of a burst, which then come a second later


class ChatServer:
    """Answers with `model(body)`; `fault(body, number)` may return what goes wrong at the number-th request of a kind.

    Attributes:
        bodies: Everything that was asked, failed attempts included.
        times: When, in seconds.
        most_at_once: Most requests that were being answered at the same time.
    """

    def __init__(self, model: Callable[[dict], str], delay: float = 0.0) -> None:
        self.model = model
        self.delay = delay
        self.fault: Callable[[dict, int], dict | None] = lambda body, number: None
        self.bodies: list[dict] = []
        self.times: list[float] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._seen: Counter[str] = Counter()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "ChatServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def enter(self, body: dict) -> dict:
        with self._lock:
            self.bodies.append(body)
            self.times.append(time.monotonic())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            kind = json.dumps(body, sort_keys=True)
            self._seen[kind] += 1
            return self.fault(body, self._seen[kind]) or {}

    def leave(self) -> None:
        with self._lock:
            self._at_once -= 1

    def _handler(server: "ChatServer"):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fault = server.enter(body)
                try:
                    time.sleep(fault.get("delay", server.delay))
                    if self.path != "/v1/chat/completions":
                        fault = {"status": 404}
                    elif self.headers["Authorization"] != f"Bearer {KEY}":
                        fault = {
                            "status": 401,
                            "body": {"error": {"message": f"{self.headers['Authorization']} is bad"}},
                        }
                    self._answer(body, fault)
                finally:
                    server.leave()

            def _answer(self, body: dict, fault: dict) -> None:
                status = fault.get("status", 200)
                answer = fault.get("body", completion(server.model(body)) if status == 200 else {"error": {}})
                data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    for name, value in fault.get("headers", {}).items():
                        self.send_header(name, value)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data[: fault.get("cut", len(data))])
                    self.close_connection = "cut" in fault
                except OSError:
                    self.close_connection = True

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler


def completion(text: str | None, finish_reason: str = "stop", tokens: int = 100) -> dict:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": tokens - 20, "completion_tokens": 20, "total_tokens": tokens}
    return {
        "object": "chat.completion",
        "choices": [{"message": message, "finish_reason": finish_reason}],
        "usage": usage,
    }


def regions_asked(body: dict) -> dict[int, str]:
    """Number and name of each region of a request."""
    lines = re.findall(r"^<region(\d+)>: (.*) \[[\d, ]+\]$", body["messages"][1]["content"], re.MULTILINE)
    return {int(number): name for number, name in lines}


def obedient(body: dict) -> str:
    """A model that does what it is told, the same each time."""
    regions = regions_asked(body)
    task = body["messages"][0]["content"].rsplit("{", 2)[-2]
    if "descriptions" in task:
        items = [{"region": f"<region{n}>", "description": f"A {name} in plain sight."} for n, name in regions.items()]
        return json.dumps({"descriptions": items})
    if "turns" in task:
        items = [
            {"question": f"What does <region{n}> do?", "answer": f"The {name} rests."} for n, name in regions.items()
        ]
        return json.dumps({"turns": (3 * items)[:4]})
    items = [{"question": f"What kind of thing is <region{n}>?", "answer": name} for n, name in regions.items()]
    return json.dumps({"questions": items})
