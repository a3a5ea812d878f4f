"""What the tests of serving share: a server of the real command, pictures for it, and servers inside the process."""

import base64
import io
import os
import socket
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def scene(colour="crimson", size=(320, 200)) -> Image.Image:
    image = Image.new("RGB", size, (150, 160, 150))
    ImageDraw.Draw(image).ellipse((30, 30, 110, 110), fill=colour)
    return image


def encoded(image: Image.Image, kind="PNG", **options) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def data_url(content: bytes, kind="png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def message(text, regions=(), url=None, role="user"):
    """A message with a picture, regions and text, those that are given."""
    content = [{"type": "image_url", "image_url": {"url": url}}] if url else []
    content += [{"type": "regions", "regions": list(regions)}] if regions else []
    return {"role": role, "content": [*content, {"type": "text", "text": text}]}


class Served:
    """The command in a process of its own.

    Attributes:
        address: Where it listens.
        pid: Its process.
        said: Its standard output up to the line that tells the address.
    """

    def __init__(self, folder: Path, *options):
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self._log = folder / f"log{port}.txt"
        command = [
            sys.executable,
            "-m",
            "app",
            "--model",
            folder / "model",
            "--device",
            "cpu",
            "--port",
            port,
            *options,
        ]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self.pid = self._process.pid
        self.said = ""
        while f"open {self.address}" not in self.said:
            line = self._process.stdout.readline()
            assert line, self.log
            self.said += line

    @property
    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> int:
        """Tells it to stop as service managers do; its exit code."""
        self._process.terminate()
        try:
            self.said += self._process.communicate(timeout=30)[0]
            return self._process.returncode
        finally:
            self._process.kill()
