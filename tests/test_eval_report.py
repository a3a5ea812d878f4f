"""The parts of report pages: sections, figures, pictures."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from eval.figures import Panel, Point, ScoreRow, line_figure, panel_figure, score_figure
from eval.pictures import DISPLAY_SIDE, gallery_picture
from eval.report import Details, Figure, Gallery, GalleryItem, KeyFigure, KeyFigures, Table, Text, render_page

PIXEL = b"\x89PNG\r\n\x1a\n"


def test_every_section_is_on_the_page_and_every_text_is_escaped() -> None:
    page = render_page(
        "A & <b>title</b>",
        [
            KeyFigures([KeyFigure("loss", "0.1", "at the end")]),
            Text("About", ["first <i>paragraph</i>"]),
            Table("Numbers", ["name", "value"], [["x<y", "1"]], note="a note"),
            Figure("Plot", "<svg/>", "a caption"),
            Gallery("Pictures", [GalleryItem(PIXEL, [("answer", '"><img src=x>'), ("", "a question")], "9.0", "good")]),
            Details("More", [Table("Inner", ["k", "v"], [["k1", "v1"]], numeric=False)]),
        ],
        "sub & title",
    )
    for text in (
        "A &amp; &lt;b&gt;title&lt;/b&gt;",
        "first &lt;i&gt;paragraph",
        "x&lt;y",
        "a note",
        "a caption",
        "&lt;img src=x&gt;",
        "sub &amp; title",
        "<summary>More</summary>",
        "v1",
        "data:image/png;base64,",
        "data:image/svg+xml;base64,",
        "badge good",
    ):
        assert text in page
    assert "<b>" not in page
    assert "<img src=x>" not in page
    assert "default-src 'none'" in page


def svg_texts(svg: str) -> str:
    ElementTree.fromstring(svg.encode())
    return svg


def test_figures_are_svg_and_equal_for_equal_data() -> None:
    rows = [ScoreRow("Colour", Point(90, 80, 95), Point(12), 12.5), ScoreRow("Shape", Point(70))]
    panels = [Panel("Colour", ["< 1\nn = 3", "1–2\nn = 4"], [Point(50), Point(80, 70, 90)], 104, 12.5)] * 3
    series = {"stage 1": ([0, 1, 2], [3.0, 2.0, 1.0]), "stage 2": ([0, 1], [2.0, 0.5])}
    for make in (
        lambda: score_figure(rows),
        lambda: panel_figure(panels, "cells"),
        lambda: panel_figure(panels[:1], "cells"),
        lambda: line_figure(series, "step", "loss", log=True),
    ):
        assert svg_texts(make()) == make()


@pytest.mark.parametrize("size", [(64, 40), (2000, 1000), (1, 300)])
def test_pictures_of_every_size_are_shown_readably(size: tuple[int, int]) -> None:
    mask = np.zeros((size[1], size[0]), bool)
    mask[: size[1] // 2] = True
    shown = Image.open(io.BytesIO(gallery_picture(Image.new("RGB", size, (90, 90, 90)), [mask])))
    assert shown.format == "JPEG"
    assert max(shown.size) == min(DISPLAY_SIDE, 3 * max(size))


def test_one_pixel_of_a_large_picture_is_still_outlined() -> None:
    image = Image.new("RGB", (3000, 2000), (120, 120, 120))
    mask = np.zeros((2000, 3000), bool)
    mask[999, 1500] = True
    shown = np.asarray(Image.open(io.BytesIO(gallery_picture(image, [mask])))).astype(int)
    rows, columns = np.nonzero(np.abs(shown - np.median(shown)).max(axis=2) > 40)
    assert len(rows) > 50
    assert abs(rows.mean() / shown.shape[0] - 0.5) < 0.02
    assert abs(columns.mean() / shown.shape[1] - 0.5) < 0.02


def test_the_rest_of_the_picture_is_subdued() -> None:
    image = Image.new("RGB", (300, 300), (220, 20, 20))
    mask = np.zeros((300, 300), bool)
    mask[100:200, 100:200] = True
    shown = np.asarray(Image.open(io.BytesIO(gallery_picture(image, [mask], side=300)))).astype(int)
    assert np.abs(shown[150, 150] - (220, 20, 20)).max() < 12
    assert np.ptp(shown[20, 20]) < 120
