"""The app as a user meets it: the real command, a real (tiny, random) model, a real browser. Pointing and asking."""

import itertools
import json
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from osprey_tp import RegionDescriber
from osprey_tp.grabcut import GrabCutSegmenter
from osprey_tp.prompts import CATEGORY_QUESTION

from .app_browser import (
    READY,
    SHAPES,
    click,
    drag,
    extent,
    is_near,
    middle,
    on_screen,
    scene,
    serving,
    settled,
    status,
    upload,
    use,
    visiting,
)
from .tiny_models import save_tiny_model
from .waiting import wait_until


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds a model, a large picture and a file that only pretends to be one."""
    folder = tmp_path_factory.mktemp("app")
    save_tiny_model(folder / "model")
    scene(SHAPES, (1600, 1200)).save(folder / "large.png")
    (folder / "notes.png").write_text("This is no picture.")
    return folder


@pytest.fixture(scope="module")
def address(folder):
    with serving(folder) as address:
        yield address


@pytest.fixture
def page(browser, address):
    with visiting(browser, address) as page:
        yield page


def region(page: Page, name: str):
    return page.locator(f"#picture .drawing [data-name={name}]")


def test_pointing(page, folder):
    """Clicks, negative points, undo, box and brush on a 1600 x 1200 picture that is shown small."""
    sent = []
    page.on("response", lambda response: "/file=" in response.url and "picture.jpg" in response.url and sent.append(1))
    upload(page, folder / "large.png")
    assert page.locator("#picture .frame").bounding_box()["width"] < 800

    for name, box in SHAPES.items():
        click(page, *middle(name))
        settled(page)
        assert is_near(extent(page), box), name
    assert page.locator("#answer .text").inner_text() == expected_answer(folder, middle("bar"))
    expect(page.locator("#answer .question")).to_have_text(
        "What is the category of this region? Using only one word or phrase."
    )

    use(page, "add")
    click(page, *middle("square"))
    settled(page)
    both = extent(page)
    assert is_near(both, (1000, 200, 1400, 980))
    click(page, *middle("square"), button="right")
    settled(page)
    assert page.locator(".point.negative").count() == 1
    without = extent(page)
    page.locator("#picture .frame").press("Control+z")
    settled(page)
    assert extent(page) == both and page.locator(".point").count() == 2
    page.locator("[data-do=undo]").click()
    settled(page)
    assert is_near(extent(page), SHAPES["bar"]) and without != both

    use(page, "box")
    drag(page, (280, 280), (350, 400), (440, 440))
    settled(page)
    assert is_near(extent(page), SHAPES["disc"]) and page.locator(".box").count() == 2
    use(page, "brush")
    drag(page, (600, 600), (700, 600), (900, 600))
    settled(page)
    width = 1600 * float(page.locator(".brush input").input_value()) / 500
    assert is_near(extent(page), (600 - width / 2, 600 - width / 2, 900 + width / 2, 600 + width / 2))
    page.locator("[data-do=clear]").click()
    settled(page)
    expect(status(page)).to_have_text(READY)
    expect(region(page, "selection")).to_have_count(0)
    assert len(sent) == 1  # the picture itself, in spite of all the clicks


def expected_answer(folder: Path, point: tuple[float, float]) -> str:
    """What the model says about the object at a point of the large picture, asked without the app."""
    image = Image.open(folder / "large.png").convert("RGB")
    mask = GrabCutSegmenter().open(image).segment([point], [True])[0].mask
    session = RegionDescriber.from_pretrained(folder / "model", device="cpu").open(image)
    return session.ask([mask], CATEGORY_QUESTION, max_new_tokens=32)[0].strip()


def test_a_conversation_about_two_regions(page, folder):
    upload(page, folder / "large.png")
    for name in ("disc", "square"):
        click(page, *middle(name))
        settled(page)
        page.locator("#keep").click()
        expect(region(page, "selection")).to_have_count(0)
    assert is_near(extent(page, "region1"), SHAPES["disc"]) and is_near(extent(page, "region2"), SHAPES["square"])

    page.locator("#message textarea").fill("What is region1 doing to region2?")
    page.locator("#message textarea").press("Enter")
    expect(page.locator("#chat .model:not(.unfinished)")).to_have_count(1)
    settled(page)
    first = page.locator("#chat .model").inner_text()
    assert first.strip()
    expect(page.locator("#message textarea")).to_have_value("")
    name = page.locator("#chat .user [data-region=region2]").first
    assert name.evaluate("name => getComputedStyle(name).boxShadow").startswith("rgb(30, 144, 255)")

    name.hover()
    expect(region(page, "region2")).to_have_class("region hot")
    expect(region(page, "region1")).to_have_class("region")
    page.mouse.move(*on_screen(page, *middle("disc")))
    expect(region(page, "region1")).to_have_class("region hot")
    expect(page.locator("#regions [data-region=region1]")).to_have_class("region hot")
    page.locator("#regions [data-region=region2]").focus()
    expect(region(page, "region2")).to_have_class("region hot")

    page.locator("#regenerate").click()
    expect(page.locator("#chat .model.unfinished")).to_have_count(1)
    expect(page.locator("#chat .model:not(.unfinished)")).to_have_text(first, use_inner_text=True)
    page.get_by_label("Remove region1").click()
    expect(region(page, "region1")).to_have_count(0)
    send(page, "And region9?")
    expect(page.locator("#status .error")).to_contain_text("region9, but the regions are: region1, region2")


def test_an_answer_streams_and_is_stopped(page, folder):
    upload(page, folder / "large.png")
    click(page, *middle("disc"))
    settled(page)
    page.evaluate(
        """() => { window.seen = []; new MutationObserver(() => {
            const text = document.querySelector("#chat .model")?.innerText;
            if (text && text !== window.seen.at(-1)) window.seen.push(text);
            if (window.seen.length === 2) document.querySelector("#stop").click();
        }).observe(document.querySelector("#chat"), {subtree: true, childList: true, characterData: true}); }"""
    )
    expect(page.locator("#stop")).to_be_hidden()
    send(page, "Tell me everything.")
    expect(status(page)).to_have_text("Stopped.")
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator("#chat .model.unfinished")).to_have_count(1)
    seen = page.evaluate("window.seen")
    # A piece may end within a character of several bytes, which is not decoded yet.
    assert all(later.startswith(earlier.rstrip("\ufffd")) for earlier, later in itertools.pairwise(seen))
    said = page.locator("#chat .model").inner_text()
    send(page, "Go on.")
    expect(page.locator("#chat .model")).to_have_count(2)
    assert page.locator("#chat .model").first.inner_text() == said


def test_a_new_picture_and_a_closed_page_end_a_running_answer(page, folder, browser, address):
    upload(page, folder / "large.png")
    click(page, *middle("disc"))
    settled(page)
    begin_long_answer(page)
    page.locator("#examples button").first.click()
    expect(status(page)).to_have_text(READY)
    expect(page.locator("#chat .turn")).to_have_count(0)
    expect(page.locator("#answer .empty")).to_be_visible()
    assert page.locator("#picture img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 720

    with visiting(browser, address) as other:
        upload(other, folder / "large.png")
        begin_long_answer(other)
        send(page, "Tell me everything.")
    expect(page.locator("#chat .model:not(.unfinished)")).to_have_count(1)
    wait_until(lambda: not health(address)["busy"])
    assert health(address)["waiting_requests"] == 0
    expect(page.locator("#chat .turn")).to_have_count(2)  # and nothing of the other page's


def begin_long_answer(page: Page) -> None:
    send(page, "Tell me everything.")
    expect(page.locator("#chat .model")).not_to_have_text("")


def send(page: Page, message: str) -> None:
    page.locator("#message textarea").fill(message)
    page.locator("#send").click()


def health(address: str) -> dict:
    with urllib.request.urlopen(f"{address}/health", timeout=30) as answer:
        return json.load(answer)


def test_of_quick_clicks_the_last_one_counts(page, folder):
    """Even of those before the model has looked at the picture."""
    page.set_input_files("#picture input[type=file]", folder / "large.png")
    expect(page.locator("#picture .frame")).to_be_visible()
    for name in ("disc", "bar", "square"):
        click(page, *middle(name))
    use(page, "add")
    click(page, *middle("bar"))
    settled(page)
    assert page.locator(".point").count() == 2 and is_near(extent(page), (1000, 200, 1400, 980))


def test_own_questions_errors_and_the_keyboard(page, folder):
    page.locator("#ask").click()
    expect(page.locator("#status .error")).to_have_text("Open a picture first.")
    page.set_input_files("#picture input[type=file]", folder / "notes.png")
    expect(page.locator("#status .error")).to_contain_text("notes.png")
    expect(page.locator("#status .error")).not_to_contain_text("/")
    expect(page.locator(".canvas[data-state=empty]")).to_be_visible()
    upload(page, folder / "large.png")
    page.locator("#ask").click()
    expect(page.locator("#status .error")).to_have_text("Click an object first.")
    page.locator("#keep").click()
    expect(page.locator("#status .error")).to_have_text("Select a region first, then keep it.")

    page.get_by_label("Your own question").check()
    frame = page.locator("#picture .frame")
    frame.focus()
    for key in ["ArrowRight"] * 12 + ["ArrowDown"] * 10 + ["Enter"]:  # from the centre to (1184, 920)
        frame.press(key)
    expect(status(page)).to_have_text("Write your question and press Ask.")
    assert is_near(extent(page), SHAPES["bar"])
    frame.press("Escape")
    expect(region(page, "selection")).to_have_count(0)
    frame.press("4")
    frame.press("Enter")
    frame.press("ArrowRight")
    frame.press("ArrowDown")
    expect(page.locator(".box")).to_have_count(2)
    frame.press("Escape")
    click_own = page.locator("#own textarea")
    use(page, "select")
    click(page, *middle("bar"))
    expect(status(page)).to_have_text("Write your question and press Ask.")
    click_own.fill("Is it round?")
    page.locator("#ask").click()
    expect(page.locator("#answer .question")).to_contain_text("this region. Is it round?")
    settled(page)
    click_own.fill("<mask> or <mask>?")
    page.locator("#ask").click()
    expect(page.locator("#status .error")).to_contain_text("2 <mask>")
    page.locator("[data-do=close]").click()
    expect(status(page)).to_have_text("Drop a picture, or pick an example.")
    expect(page.locator(".canvas[data-state=empty]")).to_be_visible()


def test_on_a_phone(browser, address, folder):
    phone = {"viewport": {"width": 375, "height": 812}, "has_touch": True, "is_mobile": True}
    with visiting(browser, address, **phone) as page:
        upload(page, folder / "large.png")
        frame = page.locator("#picture .frame").bounding_box()
        assert frame["width"] > 300 and frame["x"] >= 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        for button in page.locator("#picture .tools button").all():
            box = button.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 375 and box["height"] >= 40
        page.touchscreen.tap(*on_screen(page, *middle("disc")))
        settled(page)
        assert is_near(extent(page), SHAPES["disc"])
        answer, examples = (page.locator(name).bounding_box()["y"] for name in ("#answer", "#examples"))
        assert frame["y"] < answer < examples
