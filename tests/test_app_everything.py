"""Everything in a picture: found once, described in batches, read from and written to COCO files."""

import contextlib
import io
import json
import types

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from app.coco_files import MOST_REGIONS, read_coco, write_coco
from app.everything import EverythingFound, describe, rows
from app.found import Found, choose
from app.questions import CATEGORY, DETAILED, SHORT
from app.state import Shape
from app.tables import Row, table_html
from data_pipelines.__main__ import main as data_pipelines
from data_pipelines.records import RecordFolder
from osprey_tp.masks import to_mask, to_rle
from osprey_tp.prompts import CATEGORY_QUESTION
from osprey_tp.segmenters import Candidate

from .tiny_models import tiny_describer

HEIGHT, WIDTH = 60, 80


def box_mask(x0, y0, x1, y1, size=(HEIGHT, WIDTH)):
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def found(*box, score=1.0, **said):
    return Found.of(Shape.of(box_mask(*box), score), **said)


class Segmented:
    """A picture that a segmenter has taken in; counts how often everything is looked for."""

    def __init__(self, count):
        self.count, self.calls = count, 0

    def everything(self, most=64):
        self.calls += 1
        boxes = [(index, index, index + 10, index + 8) for index in range(0, self.count)]
        return [Candidate(box_mask(*box), 1 - index / 100) for index, box in enumerate(boxes[:most])]


class Session:
    """Answers with the number of the question; keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def ask(self, regions, question, *, batch_size, max_new_tokens):
        self.asked.append((len(regions), question, batch_size, max_new_tokens))
        first = sum(count for count, *_ in self.asked[:-1])
        return [f" answer\n{first + index + 1}. " for index in range(len(regions))]


def test_everything_is_looked_for_once_a_picture():
    everything, picture = EverythingFound(), types.SimpleNamespace(segmented=Segmented(40))
    ten = everything.of(picture, 10)
    assert [len(ten), picture in everything, picture.segmented.calls] == [10, True, 1]
    assert everything.of(picture, 30)[:10] == ten and everything.of(picture, 5) == ten[:5]
    assert picture.segmented.calls == 2
    assert ten[3].box == (3, 3, 13, 11) and ten[3].area == 80 and ten[3].shape.score == 0.97
    with pytest.raises(ValueError, match="at most 0 regions"):
        everything.of(picture, 0)
    other = types.SimpleNamespace(segmented=Segmented(2))
    assert len(everything.of(other)) == 2 and len(everything._found) == 2
    del other
    assert len(everything._found) == 1


def test_small_regions_and_doubles_are_left_out_and_the_order_stays():
    regions = [
        found(0, 0, 10, 10, score=0.5),
        found(40, 40, 43, 43),
        found(0, 0, 10, 9, score=0.9),
        found(5, 0, 20, 10),
    ]
    chosen = choose(regions, least_area=20)
    assert chosen.regions == (regions[2], regions[3])
    assert str(chosen) == "2 regions (1 small one and 1 double left out)"
    assert str(choose(regions[3:])) == "1 region"
    assert choose([]).regions == ()


def test_every_batch_is_one_question_and_tells_how_far_it_is():
    session, regions = Session(), [found(index, 0, index + 9, 9) for index in range(40)]
    steps = list(describe(session, regions, CATEGORY, batch_size=32))
    assert [step.described for step in steps] == [0, 32, 40]
    assert session.asked == [(32, CATEGORY_QUESTION, 32, 32), (8, CATEGORY_QUESTION, 8, 32)]
    assert [region.caption for region in steps[1].regions[30:34]] == ["answer 31.", "answer 32.", "", ""]
    assert steps[2].regions[39].category == "answer 40"

    own = [found(0, 0, 9, 9, category="valve"), found(20, 0, 29, 9)]
    described = [list(describe(Session(), own, kind))[-1].regions for kind in (CATEGORY, SHORT)]
    assert [[region.category for region in regions] for regions in described] == [["valve", "answer 2"], ["valve", ""]]
    assert [region.caption for region in described[1]] == ["answer 1.", "answer 2."]


def test_a_closed_iterator_asks_no_more():
    session = Session()
    steps = describe(session, [found(index, 0, index + 9, 9) for index in range(40)], DETAILED, batch_size=4)
    assert next(steps).described == 0 and next(steps).described == 4
    steps.close()
    assert len(session.asked) == 1


def test_a_batch_says_what_single_questions_say():
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    regions = [found(x, y, x + 20, y + 20) for y in range(0, HEIGHT, 20) for x in range(0, WIDTH, 20)]
    for region, colour in zip(regions, np.random.default_rng(0).integers(0, 256, (12, 3)), strict=True):
        pixels[region.shape.mask] = colour
    session = tiny_describer().open(Image.fromarray(pixels))
    described = list(describe(session, regions, CATEGORY, batch_size=5))[-1].regions
    single = [session.ask([region.shape.rle], CATEGORY_QUESTION, max_new_tokens=32)[0] for region in regions]
    assert [region.caption for region in described] == [" ".join(answer.split()) for answer in single]
    assert len(set(single)) > 1


def test_rows_are_numbers_where_they_are_to_be_sorted():
    region = found(10, 20, 30, 40, score=0.87654, category="cup", caption="a cup")
    (row,) = rows([region], HEIGHT, WIDTH)
    assert (row.cells, row.region) == ((1, "cup: a cup", 8.33, 400, 0.877, "10, 20, 30, 40"), "1")
    said = ({"category": "cup", "caption": "cup."}, {"category": "cup"}, {})
    assert [found(0, 0, 9, 9, **each).label for each in said] == ["cup.", "cup", ""]


def test_a_table_escapes_what_the_model_says():
    told = table_html(["No."], [Row(('<img src=x onerror="1">', 12345), '"><b>')])
    assert "<img" not in told and "<b>" not in told and 'data-value="12345"' in told
    assert table_html(["No."], []) == ""


def coco(*annotations, images=({"id": 7, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH},), **more):
    numbered = [{"id": index + 1, "image_id": 7, **entry} for index, entry in enumerate(annotations)]
    return json.dumps({"images": list(images), "annotations": numbered, **more}).encode()


def test_every_form_of_a_segmentation_is_read():
    mask = box_mask(10, 20, 30, 40)
    polygon = [10, 20, 30, 20, 30, 40, 10, 40]
    uncompressed = {"size": [HEIGHT, WIDTH], "counts": [10 * HEIGHT + 20, *[20, 40] * 19, 20, 50 * HEIGHT + 20]}
    forms = [to_rle(mask, HEIGHT, WIDTH), uncompressed, [polygon]]
    content = coco(
        *({"segmentation": form} for form in forms),
        {"bbox": [10, 20, 20, 20]},
        {"segmentation": [], "bbox": []},
        {"segmentation": to_rle(mask, HEIGHT, WIDTH) | {"counts": [HEIGHT * WIDTH]}},
        {"segmentation": [polygon], "category_id": 3, "caption": " two\nlines ", "score": 0.25},
        {"image_id": 8, "segmentation": [[1, 1]]},
        categories=[{"id": 3, "name": "valve"}],
    )
    regions = read_coco(content, "anything.png", HEIGHT, WIDTH)
    assert len(regions) == 5 and len({region.area for region in regions}) == 1
    assert all(np.array_equal(region.shape.mask, mask) for region in regions)
    assert (regions[4].category, regions[4].caption, regions[4].shape.score) == ("valve", "two lines", 0.25)

    results = json.dumps([{"image_id": 1, "segmentation": forms[0], "predicted_iou": 0.5}])
    assert read_coco(results, "a.jpg", HEIGHT, WIDTH)[0].shape.score == 0.5


def test_of_several_pictures_the_one_of_that_name_or_size_is_meant():
    entry = {"segmentation": [[1, 1, 9, 1, 9, 9]]}
    small = {"id": 8, "file_name": "set/b.jpg", "height": 40, "width": 40}
    meant = {"id": 7, "file_name": "set/a.jpg", "height": HEIGHT, "width": WIDTH}
    assert read_coco(coco(entry, images=(small, meant)), "renamed.jpg", HEIGHT, WIDTH)
    twin = meant | {"id": 9, "file_name": "c.jpg"}
    assert read_coco(coco(entry, images=(small, meant, twin)), "a.jpg", HEIGHT, WIDTH)
    with pytest.raises(ValueError, match=r"has 3 pictures, 2 of them named d\.jpg or of 80x60 pixels; keep one"):
        read_coco(coco(entry, images=(small, meant, twin)), "d.jpg", HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="masks are for a picture of 40x40 pixels, this one has 80x60; open the"):
        read_coco(coco(entry, images=(small,)), "b.jpg", HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xd8\xff", "the file is no JSON in UTF-8"),
        (b"[" * 100_000, "the file is no JSON"),
        (b"{}", 'no COCO file: it has no "annotations"'),
        (b"3", "no COCO file"),
        (b'{"annotations": [3], "images": []}', 'it has no "images"|have no "images"|no "images"'),
        (b'{"annotations": [3], "images": [{"id": 1}]}', '"annotations" are no list of objects'),
        (b'[{"image_id": 1}, {"image_id": 2}]', "results for 2 pictures"),
        (coco(), "no annotation of this picture"),
        (coco(*[{"bbox": [1, 1, 2, 2]}] * (MOST_REGIONS + 1)), f"513 annotations .* at most {MOST_REGIONS}"),
        (coco({}, {"id": "b-7", "segmentation": [[1, 1, 2]]}), "annotation b-7: polygon 0 has 3 coordinates"),
        (coco({"segmentation": [[0, 0, 1e9, 0, 9, 9]]}), "annotation 1: polygon 0 leaves the picture"),
        (coco({"segmentation": "/etc/passwd"}), "annotation 1: its \"segmentation\" is a str"),
        (coco({"segmentation": {"size": [9, 9], "counts": "a"}}), "annotation 1: the mask has 9 x 9 pixels"),
        (coco({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "~~~"}}), "annotation 1: malformed run-length"),
        (coco({"segmentation": {"mask": "/etc/passwd"}}), "annotation 1: its \"segmentation\" has no \"counts\""),
        (coco({"bbox": [1, 2, "3", 4]}), 'annotation 1: its "bbox" is not 4 numbers'),
        (coco({"bbox": [1, 2, 3.5, 10**999]}), 'annotation 1: its "bbox" must be a flat list of numbers'),
        (coco({}, images=({"id": 7, "height": 9, "width": "9\n" * 999},)), "masks are for a picture of 9 9 9"),
    ],
)  # fmt: skip
def test_an_unusable_file_is_refused_in_one_line_that_names_the_annotation(content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_coco(content, "a.jpg", HEIGHT, WIDTH)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_half_a_character_in_a_name_or_a_caption_is_replaced():
    entry = {"segmentation": [[1, 1, 9, 1, 9, 9]], "category_id": 3, "caption": "a valve \ud83d"}
    content = coco(entry, categories=[{"id": 3, "name": "val\udc00ve"}])
    (region,) = read_coco(content, "a.jpg", HEIGHT, WIDTH)
    assert (region.category, region.caption) == ("val?ve", "a valve ?")
    assert read_coco(write_coco([region], "a.jpg", HEIGHT, WIDTH).encode("utf-8"), "a.jpg", HEIGHT, WIDTH) == [region]


def test_a_written_file_is_read_by_pycocotools_by_the_data_pipelines_and_by_the_app(tmp_path):
    regions = [
        found(10, 20, 30, 40, score=0.9, category="cup", caption="a red cup"),
        found(0, 0, 5, 60, score=0.8, caption="the “left” edge"),
        found(50, 0, 80, 20, category="cup"),
    ]
    path = tmp_path / "regions.json"
    path.write_text(write_coco(regions, "a.png", HEIGHT, WIDTH, "made by a test"), encoding="utf-8")
    assert read_coco(path.read_bytes(), "a.png", HEIGHT, WIDTH) == regions

    with contextlib.redirect_stdout(io.StringIO()):
        opened = COCO(path)
    for annotation, region in zip(opened.loadAnns(opened.getAnnIds(imgIds=[1])), regions, strict=True):
        assert np.array_equal(opened.annToMask(annotation), region.shape.mask)
        assert annotation["area"] == coco_mask.area(region.shape.rle)
        assert annotation["bbox"] == coco_mask.toBbox(region.shape.rle).tolist()
    assert [category["name"] for category in opened.loadCats(opened.getCatIds())] == ["cup", "object"]

    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    record = prepared("custom", path)
    masks = [to_mask(region.segmentation, HEIGHT, WIDTH) for region in record.regions]
    assert all(np.array_equal(mask, region.shape.mask) for mask, region in zip(masks, regions, strict=True))
    assert [turn.text for turn in record.turns[1::2]] == ["a red cup", "the “left” edge", "cup"]

    path.write_text(write_coco(regions[2:], "a.png", HEIGHT, WIDTH), encoding="utf-8")
    assert [region.name for region in prepared("coco", path).regions] == ["cup"]


def prepared(source, path):
    """The one record that the data pipelines make of a file."""
    out = path.parent / source
    arguments = ["prepare", source, "--annotations", path, "--images", path.parent, "--out", out]
    assert data_pipelines([str(argument) for argument in arguments]) == 0
    (record,) = RecordFolder.open(out)
    return record
