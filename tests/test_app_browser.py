"""The app as a user meets it: the real command, a real (tiny, random) model, a real browser."""

import io
import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Page, expect, sync_playwright

from osprey_tp import RegionDescriber
from osprey_tp.grabcut import GrabCutSegmenter
from osprey_tp.prompts import CATEGORY_QUESTION, DETAILED_DESCRIPTION_QUESTION

from .tiny_models import save_tiny_model

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds a model, two examples, a large picture and a file that only pretends to be one."""
    folder = tmp_path_factory.mktemp("app")
    save_tiny_model(folder / "model")
    scene(SHAPES, (1600, 1200)).save(folder / "large.png")
    (folder / "notes.png").write_text("This is no picture.")
    (folder / "examples").mkdir()
    scene({"disc": (30, 30, 110, 110)}, (320, 200)).save(folder / "examples" / "a.png")
    scene({"square": (200, 60, 260, 120)}, (320, 200)).save(folder / "examples" / "b.png")
    return folder


def scene(shapes, size) -> Image.Image:
    image = Image.new("RGB", size, (150, 160, 150))
    draw = ImageDraw.Draw(image)
    for (name, box), colour in zip(shapes.items(), ("crimson", "navy", "gold"), strict=False):
        (draw.ellipse if name == "disc" else draw.rectangle)(box, fill=colour)
    return image


@pytest.fixture(scope="module")
def address(folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "app", "--model", folder / "model", "--examples", folder / "examples"]
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu"],
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
    assert "Traceback" not in (folder / "log.txt").read_text()


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def browser():
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert executable, "the app's tests need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=BROWSER_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """An open page; afterwards it must have asked nobody else for anything, and have logged no error."""
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    outside, errors = [], []
    page.on(
        "request", lambda request: request.url.startswith((address, "data:", "blob:")) or outside.append(request.url)
    )
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)
    page.goto(address)
    expect(status(page)).to_have_text("Upload a picture or pick an example.")
    yield page
    page.close()
    assert outside == []
    assert errors == []


def status(page: Page):
    return page.locator("#status .status")


def upload(page: Page, path: Path) -> None:
    page.set_input_files("#picture input[type=file]", path)
    expect(status(page)).to_have_text("Click an object in the picture.")


def click(page: Page, x: float, y: float) -> None:
    """Clicks at the shares x, y of the picture's width and height, wherever and however small it is shown."""
    page.locator("#picture img").wait_for()
    left, top, width, height = page.locator("#picture img").evaluate(
        """image => {
            const box = image.getBoundingClientRect(), scale = Math.min(
                box.width / image.naturalWidth, box.height / image.naturalHeight);
            const width = image.naturalWidth * scale, height = image.naturalHeight * scale;
            return [box.x + (box.width - width) / 2, box.y + (box.height - height) / 2, width, height];
        }"""
    )
    page.mouse.click(left + x * width, top + y * height)


def shown(page: Page) -> np.ndarray:
    """The picture as the browser has it, (height, width, 3)."""
    content = page.request.get(page.locator("#picture img").get_attribute("src")).body()
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def answer(page: Page) -> str:
    expect(page.locator("#status .done")).to_be_visible()
    return page.input_value("#answer textarea")


@pytest.mark.parametrize("name", SHAPES)
def test_the_object_under_the_pointer_is_selected_and_described(page, folder, name):
    x0, y0, x1, y1 = SHAPES[name]
    upload(page, folder / "large.png")
    assert page.locator("#picture img").bounding_box()["width"] < 800
    before = shown(page)
    point = ((x0 + x1) / 2, (y0 + y1) / 2)
    click(page, point[0] / 1600, point[1] / 1200)
    text = answer(page)

    scale = before.shape[1] / 1600
    changed = np.abs(shown(page) - before).sum(-1) > 90
    ys, xs = np.nonzero(changed)
    found = np.array([xs.min(), ys.min(), xs.max(), ys.max()]) / scale
    assert np.abs(found - SHAPES[name]).max() < 12

    assert text == expected_answers(folder, point, [(CATEGORY_QUESTION, 32)])[0]
    expect(page.locator("#question")).to_contain_text(CATEGORY_QUESTION)


def test_answers_stream_and_another_question_ends_them(page, folder):
    upload(page, folder / "large.png")
    page.get_by_label("Detailed description").check()
    page.evaluate(
        """() => { window.seen = []; setInterval(() => {
            const text = document.querySelector("#answer textarea").value;
            if (text && text !== window.seen.at(-1)) window.seen.push(text);
            if (window.seen.length === 4 && !window.changed) {
                window.changed = true;
                window.whileAsked = document.querySelector("#status").innerText;
                document.querySelector("#kind input").click();
            }
        }, 2); }"""
    )
    point = (360.0, 360.0)
    click(page, point[0] / 1600, point[1] / 1200)
    expect(page.locator("#question")).to_contain_text(CATEGORY_QUESTION)

    detailed, short = expected_answers(folder, point, [(DETAILED_DESCRIPTION_QUESTION, 512), (CATEGORY_QUESTION, 32)])
    expect(page.locator("#answer textarea")).to_have_value(short)
    seen = page.evaluate("window.seen")
    pieces = [text for text in seen if is_opening(text, detailed)]
    assert len(pieces) >= 4 and page.evaluate("window.whileAsked") == "Answering …"
    assert all(len(later) > len(earlier) for earlier, later in itertools.pairwise(pieces[:4]))


def is_opening(text: str, answer: str) -> bool:
    """A piece may end within a character of several bytes, which is not decoded yet."""
    return answer.startswith(text.rstrip("\ufffd"))


def expected_answers(folder: Path, point: tuple[float, float], questions: list[tuple[str, int]]) -> list[str]:
    """What the model says about the object at a point of the large picture, asked without the app."""
    image = Image.open(folder / "large.png").convert("RGB")
    mask = GrabCutSegmenter().open(image).segment([point], [True])[0].mask
    session = RegionDescriber.from_pretrained(folder / "model", device="cpu").open(image)
    return [session.ask([mask], question, max_new_tokens=limit)[0].strip() for question, limit in questions]


def test_refining_choosing_and_clearing(page, folder):
    upload(page, folder / "large.png")
    blank = shown(page)
    click(page, 360 / 1600, 360 / 1200)
    answer(page)
    one = shown(page)
    page.get_by_label("Add to it").check()
    click(page, 1265 / 1600, 265 / 1200)
    page.wait_for_function("src => document.querySelector('#picture img').src !== src", arg=source(page))
    answer(page)
    two = shown(page)
    assert (np.abs(two - blank).sum(-1) > 90).sum() > 1.5 * (np.abs(one - blank).sum(-1) > 90).sum()
    before = source(page)
    page.locator("#undo").click()
    page.wait_for_function("src => document.querySelector('#picture img').src !== src", arg=before)
    answer(page)
    assert np.abs(shown(page) - one).max() < 40
    page.locator("#clear").click()
    expect(status(page)).to_have_text("Click an object in the picture.")
    assert np.abs(shown(page) - blank).max() < 40
    expect(page.locator("#answer textarea")).to_have_value("")


def source(page: Page) -> str:
    return page.locator("#picture img").get_attribute("src")


def test_an_own_question_about_an_example(page):
    page.locator("#examples button").nth(1).click()
    expect(status(page)).to_have_text("Click an object in the picture.")
    page.get_by_label("Your own question").check()
    click(page, 230 / 320, 90 / 200)
    expect(status(page)).to_have_text("Write your question and press Ask.")
    page.locator("#own textarea").fill("Is it round?")
    page.locator("#ask").click()
    assert answer(page)
    expect(page.locator("#question")).to_contain_text("region1<mask>. Is it round?")
    page.locator("#own textarea").fill("<mask> or <mask>?")
    page.locator("#ask").click()
    expect(page.locator("#status .error")).to_contain_text("2 <mask>")


def test_of_quick_clicks_the_last_one_counts(page, folder):
    upload(page, folder / "large.png")
    blank = shown(page)
    for name in ("disc", "bar", "square"):
        click(page, (SHAPES[name][0] + SHAPES[name][2]) / 3200, (SHAPES[name][1] + SHAPES[name][3]) / 2400)
    inside = (slice(210, 320), slice(1210, 1320))
    page.wait_for_function("image => document.querySelector('#picture img').src !== image", arg=source(page))
    deadline = time.monotonic() + 30
    while np.abs(shown(page)[inside] - blank[inside]).mean() < 40:
        assert time.monotonic() < deadline
    answer(page)
    assert np.abs(shown(page)[310:410, 310:410] - blank[310:410, 310:410]).mean() < 10


def test_an_example_can_be_picked_again_after_another_picture(page, folder):
    page.locator("#examples button").nth(1).click()
    expect(status(page)).to_have_text("Click an object in the picture.")
    page.wait_for_function("document.querySelector('#picture img')?.naturalWidth === 720")
    example = shown(page)
    click(page, 230 / 320, 90 / 200)
    assert answer(page)
    upload(page, folder / "large.png")  # the status changes back once the server has opened it
    page.locator("#examples button").nth(1).click()
    page.wait_for_function("document.querySelector('#picture img')?.naturalWidth === 720")
    assert np.array_equal(shown(page), example)


def test_errors_are_shown_and_the_page_goes_on(page, folder):
    page.locator("#ask").click()
    expect(page.locator("#status .error")).to_have_text("Open a picture first.")
    page.set_input_files("#picture input[type=file]", folder / "notes.png")
    expect(page.locator("#status .error")).to_contain_text("notes.png")
    expect(page.locator("#status .error")).not_to_contain_text("/")
    page.locator("#picture input[type=file]").wait_for(state="attached")
    upload(page, folder / "large.png")
    page.locator("#ask").click()
    expect(page.locator("#status .error")).to_have_text("Click an object first.")
    click(page, 360 / 1600, 360 / 1200)
    assert answer(page)
    page.get_by_label("Remove Image").click()
    expect(status(page)).to_have_text("Upload a picture or pick an example.")
    page.locator("#ask").click()
    expect(page.locator("#status .error")).to_have_text("Open a picture first.")
