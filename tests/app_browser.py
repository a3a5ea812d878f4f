"""A real browser before the real command: what the app's browser tests share."""

import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from . import preloaded

BROWSER_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SHAPES = {"disc": (300, 300, 420, 420), "square": (1200, 200, 1330, 330), "bar": (1000, 900, 1400, 980)}
READY = "Click an object in the picture."
PATIENCE = 60_000  # milliseconds, on a busy machine


def scene(shapes: dict, size: tuple[int, int]) -> Image.Image:
    image = Image.new("RGB", size, (150, 160, 150))
    draw = ImageDraw.Draw(image)
    for (name, box), colour in zip(shapes.items(), ("crimson", "navy", "gold"), strict=False):
        (draw.ellipse if name == "disc" else draw.rectangle)(box, fill=colour)
    return image


@contextmanager
def serving(folder: Path, *options: object) -> Iterator[str]:
    """The address of `python -m app --model FOLDER/model`, whose log must not tell of an error in the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [preloaded.python(), "-m", "app", "--model", folder / "model", "--port", str(port), "--device", "cpu"]
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen(
            [*command, *map(str, options)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not answers(address):
            assert server.poll() is None and time.monotonic() < deadline, (folder / "log.txt").read_text()
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=20)
    assert "Traceback" not in (folder / "log.txt").read_text(), (folder / "log.txt").read_text()


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


@contextmanager
def chromium() -> Iterator[Browser]:
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert executable, "the app's tests need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=BROWSER_ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def visiting(browser: Browser, address: str, **context_options: object) -> Iterator[Page]:
    """An open page; afterwards it must have asked nobody else for anything, and have logged no error."""
    context = browser.new_context(**({"viewport": {"width": 1200, "height": 800}} | context_options))
    page = context.new_page()
    outside, errors = [], []
    page.on(
        "request", lambda request: request.url.startswith((address, "data:", "blob:")) or outside.append(request.url)
    )
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page.goto(address)
    expect(status(page)).to_have_text("Drop a picture, or pick an example.")
    expect(page.locator(".canvas[data-state=empty]")).to_be_visible()
    yield page
    context.close()
    assert outside == []
    assert errors == []


def status(page: Page) -> Locator:
    return page.locator("#status .status")


def upload(page: Page, path: Path) -> None:
    """Opens a picture and waits until the model has looked at it."""
    page.set_input_files("#picture input[type=file]", path)
    expect(page.locator(".canvas[data-state=ready]")).to_be_visible()
    expect(status(page)).to_have_text(READY)


def use(page: Page, tool: str) -> None:
    page.locator(f"#picture button[data-tool={tool}]").click()


def on_screen(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where a place of the large picture, in source pixels, is shown."""
    frame = page.locator("#picture .frame")
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    return box["x"] + x / 1600 * box["width"], box["y"] + y / 1200 * box["height"]


def click(page: Page, x: float, y: float, **options: object) -> None:
    page.mouse.click(*on_screen(page, x, y), **options)


def drag(page: Page, *places: tuple[float, float]) -> None:
    first, *others = places
    page.mouse.move(*on_screen(page, *first))
    page.mouse.down()
    for place in others:
        page.mouse.move(*on_screen(page, *place), steps=4)
    page.mouse.up()


def settled(page: Page) -> None:
    """Waits until everything that was done is answered."""
    expect(page.locator(".canvas[data-pending=false]")).to_be_visible()
    expect(page.locator("#status .busy")).to_have_count(0)


def extent(page: Page, name: str = "selection") -> list[float]:
    """[x0, y0, x1, y1] in source pixels of a region, as it is drawn."""
    path = page.locator(f"#picture .drawing [data-name={name}] .outer").get_attribute("d")
    corners = [tuple(map(float, pair.split())) for pair in re.findall(r"[\d.]+ [\d.]+", path)]
    xs, ys = zip(*corners, strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]


def is_near(found: list[float], expected: tuple[float, ...], tolerance: float = 12) -> bool:
    return max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= tolerance


def middle(name: str) -> tuple[float, float]:
    x0, y0, x1, y1 = SHAPES[name]
    return (x0 + x1) / 2, (y0 + y1) / 2
