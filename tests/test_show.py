"""The page of records, in a real browser: what it shows is what the processor makes of the records."""

import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from data_pipelines.__main__ import main
from data_pipelines.conversations import conversation_of
from data_pipelines.lengths import Wording
from data_pipelines.records import RecordFolder, Region, RegionRecord, Turn
from data_pipelines.rendering import messages_of, prompt_of
from data_pipelines.writing import RecordWriter
from osprey_tp.images import load_image

from .annotation_files import HEIGHT, WIDTH, box_mask, compressed, write_picture
from .tiny_models import save_tiny_model, tiny_processor_and_config

REGIONS = tuple(
    Region(compressed(box_mask(x, 5, x + 12, 30)), name)
    for x, name in ((2, "cat"), (20, "naïve <b>dog</b>"), (45, "犬"))
)
RECORDS = [
    RegionRecord("coco:1", "coco", "1.png", HEIGHT, WIDTH, REGIONS),
    RegionRecord(
        "osprey-conversation:2",
        "osprey-conversation",
        "1.png",
        HEIGHT,
        WIDTH,
        REGIONS,
        (Turn("user", "Is <region3> like <region1>?"), Turn("assistant", "No, <region3> is & stays smaller.")),
        {"split": "val"},
    ),
    RegionRecord(
        "captions:3", "captions", "1.png", HEIGHT, WIDTH, turns=(Turn("user", ""), Turn("assistant", "A picture."))
    ),
    RegionRecord("llava:4", "llava", "", 0, 0, turns=(Turn("user", "Hello?"), Turn("assistant", "One,\ntwo <i>."))),
]
OPEN = RegionRecord("pope:5", "pope", "1.png", HEIGHT, WIDTH, turns=(Turn("user", "Is there a dog?"),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, training records of every kind, and one question for evaluation."""
    folder = tmp_path_factory.mktemp("show")
    save_tiny_model(folder / "model", language="qwen3")
    write_picture(folder / "images", "1.png")
    for name, purpose, records in (("records", "training", RECORDS), ("open", "evaluation", [OPEN])):
        with RecordWriter(folder / name, source="mixed", purpose=purpose, image_root=folder / "images") as writer:
            for record in records:
                writer.add(record)
    return folder


@pytest.fixture(scope="module")
def browser():
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert executable, "the tests of pages need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def opened(browser, path: Path, width: int):
    """The page, which asks nobody for anything and is not wider than the window."""
    page = browser.new_page(viewport={"width": width, "height": 800})
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    assert [url for url in requests if not url.startswith("data:image/jpeg")] == [path.as_uri()]
    assert errors == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    return page


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_shows_what_the_model_sees(folder, browser, width):
    out = folder / f"page{width}.html"
    assert main(["show", str(folder / "records"), "--out", str(out), "--model", str(folder / "model")]) == 0
    page = opened(browser, out, width)
    processor, config = tiny_processor_and_config(language="qwen3")
    articles = page.locator("article")
    assert articles.locator("h2").all_inner_texts() == [record.id for record in RECORDS]
    for index, record in enumerate(RECORDS):
        article = articles.nth(index)
        image = load_image(folder / "images" / "1.png") if record.image else None
        batch = processor.prepare([conversation_of(record, image)], return_labels=True)
        tokens, labels = batch["input_ids"][0], batch["labels"][0]
        visual, regions = int((tokens == config.image_token_id).sum()), int((tokens == config.region_token_id).sum())
        shown = article.locator(".prompt").inner_text().replace("↵", "").replace(f"picture × {visual}", "")
        expected = processor.tokenizer.decode(tokens).replace("<image>", "")
        badges = article.locator(".prompt .badge").all_inner_texts()
        assert len(badges) == regions
        for number in badges:
            expected = expected.replace("<mask>", number, 1)
        assert shown.split() == expected.split()
        learned = "".join(article.locator(".learned").all_inner_texts()).replace("↵", "")
        assert learned.split() == processor.tokenizer.decode(tokens[labels != -100]).split()
        counts = dict(
            zip(article.locator("dt").all_inner_texts(), article.locator("dd").all_inner_texts(), strict=False)
        )
        taught = int((labels != -100).sum())
        numbers = {"visual": visual, "regions": regions, "learned": taught, "total": len(tokens)}
        assert {name.strip(): int(value) for name, value in counts.items()} == {
            **numbers,
            "other text": len(tokens) - visual - regions - taught,
        }
        if not record.image:
            assert article.locator("img, svg").count() == 0
            continue
        assert article.locator("img").evaluate("image => image.complete && image.naturalWidth > 0")
        rows, cols = batch["tile_grids"][0].tolist()
        assert f"{rows} × {cols} tiles" in article.locator(".grid").inner_text()
        labels_shown = [f"{number} {region.name}" for number, region in enumerate(record.regions, start=1)]
        assert article.locator(".label").all_inner_texts() == labels_shown
        picture = article.locator("img").bounding_box()
        for label in article.locator(".label").all():
            box = label.bounding_box()
            assert picture["x"] - 1 <= box["x"] and box["x"] + box["width"] <= picture["x"] + picture["width"] + 1
    page.close()


def test_a_question_that_is_left_open_is_shown_so(folder, browser):
    for options, place in (([], ".side"), (["--model", str(folder / "model")], ".prompt")):
        out = folder / "open.html"
        assert main(["show", str(folder / "open"), "--out", str(out), *options]) == 0
        page = opened(browser, out, 390)
        assert page.locator(f"{place} .open").inner_text() == "the model answers here"
        assert page.locator(".learned").count() == 0 or options
        page.close()


def test_without_a_model_the_messages_are_shown_and_the_page_says_what_is_missing(folder, browser):
    out = folder / "messages.html"
    assert main(["show", str(folder / "records"), "--out", str(out)]) == 0
    page = opened(browser, out, 390)
    assert "--model DIR" in page.locator(".note").inner_text()
    assert page.locator(".counts").count() == 0
    assert page.locator("article").nth(3).locator(".assistant").inner_text().replace("↵", "") == "One,\ntwo <i>."
    assert page.locator("article").nth(1).locator(".user .badge").all_inner_texts() == ["1", "3"]
    page.close()


@pytest.mark.parametrize("language", ["llama", "qwen3"])
def test_pieces_are_all_of_the_tokens(folder, language):
    processor, _ = tiny_processor_and_config(language=language)
    for record in RecordFolder.open(folder / "records"):
        prompt = prompt_of(record, processor, Wording())
        plan = processor.image_processor.tiling.plan(HEIGHT, WIDTH) if record.image else None
        batch = processor.prepare([conversation_of(record, plan)])
        assert sum(piece.tokens for piece in prompt.pieces) == prompt.counts.total == batch["input_ids"].shape[1]
        assert "".join(piece.text for piece in prompt.pieces) == processor.tokenizer.decode(batch["input_ids"][0])
        assert sum(piece.tokens for piece in prompt.pieces if piece.learned) == prompt.counts.answers
        assert prompt.plan == plan
        places = [piece.region for piece in prompt.pieces if piece.kind == "region"]
        said = [piece.region for message in messages_of(record, Wording()) for piece in message.pieces if piece.region]
        assert places == said


def test_equal_masks_are_told_apart(folder):
    processor, _ = tiny_processor_and_config()
    twins = tuple(Region(dict(REGIONS[0].segmentation), name) for name in "ab")
    record = RegionRecord("coco:1", "coco", "1.png", HEIGHT, WIDTH, twins)
    prompt = prompt_of(record, processor, Wording())
    answers = iter([piece.text.strip() for piece in prompt.pieces if piece.learned and piece.kind == "text"])
    asked = [piece.region for piece in prompt.pieces if piece.kind == "region"]
    assert sorted(asked) == [1, 2]
    assert [" ab"[number] for number in asked] == list(answers)


def test_the_page_is_one_file_without_outside_references(folder):
    out = folder / "alone.html"
    main(["show", str(folder / "records"), "--out", str(out), "--model", str(folder / "model"), "--published-prompts"])
    text = out.read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["'](?!data:)|@import|url\(""", text)
    assert "naïve &lt;b&gt;dog&lt;/b&gt;" in text
    assert "In the conversation below" in text
