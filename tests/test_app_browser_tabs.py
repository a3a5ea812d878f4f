"""Segment Anything, Everything and Find as a user meets them: the real command, real tiny models, a real browser."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from pycocotools.coco import COCO
from segment_anything import SamPredictor

from osprey_tp.masks import to_rle
from osprey_tp.segmenters import load_segmenter

from .app_browser import click, drag, extent, is_near, scene, serving, settled, status, upload, use, visiting
from .tiny_models import save_tiny_model
from .tiny_segmenters import confident_sam

SIZE = (480, 320)
SEED = 1  # of a Segment Anything with three masks for a click
SHAPES = {"disc": (60, 60, 160, 160), "square": (300, 40, 400, 140), "bar": (120, 220, 380, 260)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tabs")
    save_tiny_model(folder / "model")
    torch.save(confident_sam(SEED).state_dict(), folder / "sam.pth")
    scene(SHAPES, SIZE).save(folder / "shapes.png")
    return folder


@pytest.fixture(scope="module")
def address(folder):
    with serving(folder, "--segmenter", f"sam:{folder / 'sam.pth'}") as address:
        yield address


@pytest.fixture
def page(browser, address, folder):
    with visiting(browser, address) as page:
        upload(page, folder / "shapes.png")
        yield page


@pytest.fixture
def own_masks(page, folder):
    """What the file holds whose three regions the page shows."""
    images = [{"id": 1, "file_name": "shapes.png", "width": SIZE[0], "height": SIZE[1]}]
    regions = [to_rle({"box": list(box)}, SIZE[1], SIZE[0]) for box in SHAPES.values()]
    content = {
        "images": images,
        "annotations": [
            {"id": 10 + index, "image_id": 1, "segmentation": region, "category_id": 1}
            for index, region in enumerate(regions)
        ],
        "categories": [{"id": 1, "name": "my <b>shape</b>"}],
    }
    opened(page, "Everything")
    take_masks(page, folder / "own.json", content)
    expect(table(page, "everything")).to_have_count(3)
    expect(status(page)).to_contain_text("3 regions described")
    return content


def take_masks(page: Page, path, content: dict) -> None:
    path.write_text(json.dumps(content))
    page.set_input_files("#own-masks input[type=file], input#own-masks, input[accept='.json']", path)


def opened(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def table(page: Page, name: str) -> Locator:
    return page.locator(f"#{name}-table tbody tr")


def column(page: Page, number: int) -> list[str]:
    return page.locator(f"#everything-table tbody td:nth-child({number})").evaluate_all(
        "cells => cells.map(cell => cell.dataset.value ?? cell.textContent)"
    )


def downloaded(page: Page, button: str, path) -> str:
    with page.expect_download() as download:
        page.locator(f"#{button}").click()
    download.value.save_as(path)
    return download.value.suggested_filename


def corners(mask: np.ndarray) -> list[int]:
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def large(x: float, y: float) -> tuple[float, float]:
    """A place of this picture as the helpers take it, which count in those of the large one."""
    return x * 1600 / SIZE[0], y * 1200 / SIZE[1]


def test_a_click_has_the_masks_of_segment_anything_to_choose_from(page, folder):
    expect(page.locator("#header")).to_contain_text("Segment Anything")
    predictor = SamPredictor(confident_sam(SEED))
    with Image.open(folder / "shapes.png") as image:
        predictor.set_image(np.array(image.convert("RGB")))

    click(page, *large(110, 110))
    settled(page)
    masks, scores, _ = predictor.predict(np.array([[110, 110]]), np.ones(1))
    expected = [masks[index] for index in np.argsort(-scores, kind="stable") if masks[index].any()]
    choices = page.locator("#masks input[type=radio]")
    expect(page.locator("#masks")).to_be_visible()
    expect(choices).to_have_count(len(expected))
    for place, mask in enumerate(expected):
        choices.nth(place).check()
        settled(page)
        assert is_near(extent(page), corners(mask)), place

    use(page, "box")
    drag(page, large(290, 30), large(410, 150))
    settled(page)
    (mask,), _, _ = predictor.predict(box=np.array([290, 30, 410, 150]), multimask_output=False)
    assert is_near(extent(page), corners(mask))
    expect(page.locator("#masks")).to_be_hidden()
    expect(choices).to_have_count(0)


def test_everything_is_described_listed_and_saved(page, folder):
    with Image.open(folder / "shapes.png") as image:
        found = load_segmenter(f"sam:{folder / 'sam.pth'}").open(image.convert("RGB")).everything()
    opened(page, "Everything")
    page.locator("button#everything").click()
    expect(status(page)).to_contain_text("described in")
    areas = list(map(int, column(page, 4)))
    assert sorted(areas) == sorted(int(one.mask.sum()) for one in found) and len(areas) >= 3
    assert all(column(page, 2))
    page.locator("#everything-table th").nth(3).click()
    assert list(map(int, column(page, 4))) == sorted(areas)
    page.locator("#everything-table th").nth(3).click()
    assert list(map(int, column(page, 4))) == sorted(areas, reverse=True)

    row = table(page, "everything").first
    number, box = row.get_attribute("data-number"), list(map(int, column(page, 6)[0].split(", ")))
    row.hover()
    expect(page.locator(f"#picture .region[data-name='{number}'].hot")).to_be_visible()
    row.click()
    expect(status(page)).to_contain_text(f"Region {number}: ")
    expect(page.locator("#picture .drawing .region")).to_have_count(1)
    path = page.locator("#picture .drawing .region .outer").get_attribute("d")
    assert path and np.abs(np.array(extent(page, f"'{number}'")) - box).max() <= 2

    assert downloaded(page, "to-json", folder / "regions.json") == "shapes-regions.json"
    with contextlib.redirect_stdout(io.StringIO()):
        saved = COCO(folder / "regions.json")
    annotations = saved.loadAnns(saved.getAnnIds())
    assert sorted(int(saved.annToMask(one).sum()) for one in annotations) == sorted(areas)
    assert all(one["caption"] for one in annotations)
    assert downloaded(page, "to-png", folder / "regions.png") == "shapes-regions.png"
    with Image.open(folder / "regions.png") as drawn, Image.open(folder / "shapes.png") as source:
        assert drawn.size == SIZE
        changed = np.abs(np.asarray(drawn.convert("RGB")).astype(int) - np.asarray(source.convert("RGB"))).sum(-1) > 30
        assert changed[100, 350] and changed[110, 110]


def test_masks_of_ones_own(page, folder, own_masks):
    assert all(text.startswith("my <b>shape</b>: ") for text in column(page, 2))

    own_masks["annotations"][1]["segmentation"]["counts"] = "~"
    take_masks(page, folder / "bad.json", own_masks)
    expect(status(page)).to_contain_text("Annotation 11: malformed run-length encoding")
    expect(table(page, "everything")).to_have_count(3)


@pytest.mark.usefixtures("own_masks")
def test_an_expression_lights_up_its_regions(page):
    opened(page, "Find")
    page.locator("button#find").click()
    expect(status(page)).to_contain_text("Write what to look for first")
    page.locator("#expression textarea, #expression input").fill("the red disc")
    page.locator("button#find").click()
    expect(status(page)).to_contain_text("Compared 3 regions in")
    settled(page)
    shares = page.locator("#find-table td:nth-child(3)").all_inner_texts()
    assert 99.7 < sum(map(float, shares)) < 100.3
    strengths = page.locator("#picture .region").evaluate_all(
        "groups => groups.map(group => Number(group.style.getPropertyValue('--strength')))"
    )
    assert strengths == sorted(strengths) and strengths[-1] == 1
    table(page, "find").last.click()
    expect(page.locator("#picture .drawing .region")).to_have_count(1)
    opened(page, "Everything")
    expect(page.locator("#picture .drawing .region")).to_have_count(3)


@pytest.mark.usefixtures("own_masks")
def test_on_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 844})
    opened(page, "Everything")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    box = page.locator("#everything-table .listing").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    table(page, "everything").first.click()
    expect(page.locator("#picture .drawing .region")).to_have_count(1)
