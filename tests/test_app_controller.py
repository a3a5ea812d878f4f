"""What the app does on each event, with a describer and a segmenter that write down what they were asked."""

import numpy as np
import pytest
from PIL import Image

from app.controller import ADD, CLICK_MODES, KEEP, REMOVE, SELECT, Controller, Update
from app.interface import build_interface, find_examples
from app.questions import CATEGORY, DETAILED, FREE, SHORT, make_question
from app.service import Service
from app.state import Selection
from osprey_tp.prompts import CATEGORY_QUESTION, SHORT_DESCRIPTION_QUESTION
from osprey_tp.segmenters import Candidate


class FakeSession:
    def __init__(self, image, pieces):
        self.image, self.pieces, self.asked, self.closed = image, pieces, [], False

    def stream(self, regions, question, *, max_new_tokens):
        self.asked.append((regions, question, max_new_tokens))
        try:
            yield from self.pieces
        finally:
            self.closed = True


class FakeDescriber:
    def __init__(self, pieces=("a red", " triangle")):
        self.pieces, self.opened = pieces, []

    def open(self, image):
        self.opened.append(FakeSession(image, self.pieces))
        return self.opened[-1]


class FakeSegmenter:
    """Finds a square of 11 pixels, and one of 21, around the last point on the object."""

    description = "Squares"

    def __init__(self):
        self.opened, self.prompts, self.error = [], [], None

    def open(self, image):
        self.opened.append(image)
        self.size = image.size
        return self

    def segment(self, points, labels, box=None):
        if self.error:
            raise self.error
        self.prompts.append((list(points), list(labels)))
        x, y = [point for point, label in zip(points, labels, strict=True) if label][-1]
        masks = []
        for reach in (5, 10):
            mask = np.zeros(self.size[::-1], bool)
            mask[max(0, int(y) - reach) : int(y) + reach + 1, max(0, int(x) - reach) : int(x) + reach + 1] = True
            masks.append(Candidate(mask, 1 / reach))
        return masks


class Page:
    """Applies updates as the page does, and answers requests."""

    def __init__(self, describer=None, segmenter=None, user="ann", **options):
        self.describer, self.segmenter = describer or FakeDescriber(), segmenter or FakeSegmenter()
        self.controller = options.pop("controller", None) or Controller(self.describer, self.segmenter, **options)
        self.user, self.kind, self.own = user, CATEGORY, ""
        self.picture, self.selection, self.status, self.answer, self.question = None, Selection(), None, "", ""
        self.request, self.log = None, []

    def show(self, updates):
        for update in updates:
            for name in ("picture", "selection", "status", "answer", "question", "request"):
                value = getattr(update, name)
                if value is not KEEP:
                    setattr(self, name, value)
            self.log.append(self.status)
        return self

    def open(self, path):
        return self.show(self.controller.open(self.user, str(path)))

    def click(self, x, y, mode=SELECT):
        return self.show(self.controller.click(self.user, self.selection, x, y, mode, self.kind, self.own))

    def answered(self):
        return self.show(self.controller.answer(self.user, self.selection, self.request))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "scene.png"
    Image.effect_noise((400, 200), 40).convert("RGB").save(path)
    return path


def test_a_click_selects_and_asks(file):
    page = Page().open(file)
    assert page.status.text == "Click an object in the picture."
    page.click(0.25, 0.5)
    assert page.segmenter.prompts == [([(100.0, 100.0)], [True])]
    assert page.status.kind == "busy"
    page.answered()
    assert page.answer == "a red triangle"
    assert page.status.kind == "done" and page.question == CATEGORY_QUESTION
    [(regions, question, limit)] = page.describer.opened[0].asked
    assert question == CATEGORY_QUESTION and limit > 0
    assert np.array_equal(regions[0], page.selection.mask) and regions[0].shape == (200, 400)


def test_the_answer_arrives_piece_by_piece(file):
    page = Page().open(file).click(0.5, 0.5)
    texts = [update.answer for update in page.controller.answer("ann", page.selection, page.request)]
    assert texts[:2] == ["a red", "a red triangle"]


def test_the_mask_is_drawn_where_the_object_is(file):
    page = Page().open(file)
    before = np.asarray(page.picture).astype(int)
    after = np.asarray(page.click(0.75, 0.25).picture).astype(int)
    ys, xs = np.nonzero(np.abs(before - after).sum(-1) > 30)
    height, width = before.shape[:2]
    assert width == 720 and height == 360
    assert abs(xs.mean() / width - 0.75) < 0.01 and abs(ys.mean() / height - 0.25) < 0.02
    assert np.ptp(xs) < 0.1 * width


def test_points_are_added_excluded_and_taken_back(file):
    page = Page().open(file).click(0.5, 0.5).click(0.6, 0.5, ADD).click(0.1, 0.1, REMOVE)
    assert page.segmenter.prompts[-1] == ([(200.0, 100.0), (240.0, 100.0), (40.0, 20.0)], [True, True, False])
    page.show(page.controller.undo("ann", page.selection, CATEGORY, ""))
    assert page.segmenter.prompts[-1] == ([(200.0, 100.0), (240.0, 100.0)], [True, True])
    page.click(0.3, 0.3)
    assert len(page.selection.points) == 1
    page.show(page.controller.undo("ann", page.selection, CATEGORY, ""))
    assert page.selection.mask is None and page.status.text.startswith("Click an object")
    page.show(page.controller.undo("ann", page.selection, CATEGORY, ""))
    assert page.status.kind == "error" and "no point" in page.status.text


def test_clear_takes_everything_off_the_picture(file):
    page = Page().open(file)
    blank = np.asarray(page.picture)
    page.click(0.5, 0.5).answered()
    page.show(page.controller.clear("ann", page.selection))
    assert page.selection == Selection(str(file)) and page.answer == "" and page.request is None
    assert np.array_equal(np.asarray(page.picture), blank)


def test_an_excluded_point_alone_waits_for_the_object(file):
    page = Page().open(file).click(0.5, 0.5, REMOVE)
    assert page.selection.mask is None and page.request is None
    assert page.status.text == "Now click the object itself."


def test_another_mask_can_be_chosen(file):
    page = Page().open(file).click(0.5, 0.5)
    first = page.request
    page.show(page.controller.choose("ann", page.selection, 1, SHORT, ""))
    assert page.selection.mask.sum() == 21 * 21
    assert page.request != first and page.request.question.text == SHORT_DESCRIPTION_QUESTION
    page.show(page.controller.choose("ann", page.selection, 2, SHORT, ""))
    assert page.status.kind == "error" and "no mask 3" in page.status.text.lower()


def test_a_picture_is_encoded_once_for_all_clicks(file):
    page = Page().open(file)
    for x in (0.2, 0.5, 0.8):
        page.click(x, 0.5).answered()
    assert len(page.describer.opened) == len(page.segmenter.opened) == 1


def test_the_cache_is_bounded_and_an_evicted_picture_is_opened_again(file, tmp_path):
    page = Page(max_pictures=2).open(file).click(0.5, 0.5)
    for number in range(3):
        Image.new("RGB", (30, 30)).save(tmp_path / f"{number}.png")
        list(page.controller.open("bob", str(tmp_path / f"{number}.png")))
    assert len(page.controller.pictures) == 2
    assert page.click(0.2, 0.2).answered().answer == "a red triangle"
    page.controller.leave("ann")
    page.controller.leave("bob")
    assert len(page.controller.pictures) == 0


@pytest.mark.parametrize("next_event", ["click", "open", "clear", "close", "leave"])
def test_going_on_ends_a_running_answer(file, next_event):
    page = Page(FakeDescriber(["word "] * 1000)).open(file).click(0.5, 0.5)
    running = page.controller.answer("ann", page.selection, page.request)
    next(running)
    next(running)
    {
        "click": lambda: page.click(0.1, 0.1),
        "open": lambda: page.open(file),
        "clear": lambda: page.show(page.controller.clear("ann", page.selection)),
        "close": lambda: page.show([page.controller.close("ann")]),
        "leave": lambda: page.controller.leave("ann"),
    }[next_event]()
    assert list(running) == []
    assert page.describer.opened[0].closed


def test_another_user_does_not_end_an_answer(file):
    page = Page().open(file).click(0.5, 0.5)
    Page(controller=page.controller, user="bob").open(file).click(0.2, 0.2)
    assert page.answered().answer == "a red triangle"


def test_bad_files_are_named_without_their_path(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("no picture")
    page = Page().open(path)
    assert page.status.kind == "error" and "notes.png" in page.status.text
    assert str(tmp_path) not in page.status.text and "\n" not in page.status.text
    assert page.picture is None and page.selection == Selection()


def test_events_before_a_picture_and_before_a_click_say_what_to_do(file):
    page = Page()
    assert "open a picture first" in page.click(0.5, 0.5).status.text.lower()
    page.show(page.controller.ask("ann", page.selection, CATEGORY, ""))
    assert page.status.text == "Open a picture first."
    page.open(file)
    page.show(page.controller.ask("ann", page.selection, CATEGORY, ""))
    assert page.status.text == "Click an object first."
    page.show(page.controller.click("ann", page.selection, 0.5, 0.5, "paint", CATEGORY, ""))
    assert page.status.kind == "error" and "paint" in page.status.text


def test_a_segmenter_that_finds_nothing_keeps_the_point_on_show(file):
    page = Page().open(file)
    page.segmenter.error = ValueError("found no object here")
    page.click(0.5, 0.5)
    assert page.status.text == "Found no object here." and page.selection.points == ((200.0, 100.0),)
    assert page.selection.mask is None and page.request is None


def test_what_nobody_foresaw_is_logged_and_shown_in_short(file, caplog):
    page = Page().open(file)
    page.segmenter.error = RuntimeError("secret detail")
    page.click(0.5, 0.5)
    assert page.status.kind == "error" and "RuntimeError" in page.status.text
    assert "secret detail" not in page.status.text and "secret detail" in caplog.text


def test_an_empty_answer_is_said_to_be_empty(file):
    page = Page(FakeDescriber([" "])).open(file).click(0.5, 0.5).answered()
    assert "nothing to say" in page.status.text


def test_a_free_question_waits_until_it_is_written(file):
    page = Page()
    page.kind = FREE
    page.open(file).click(0.5, 0.5)
    assert page.request is None and page.status.text == "Write your question and press Ask."
    page.show(page.controller.ask("ann", page.selection, FREE, " "))
    assert page.status.text == "Write a question first."


def test_questions():
    assert make_question(FREE, "Is <mask> heavy? ").text == "Is <mask> heavy?"
    assert make_question(FREE, "Is it heavy?").text == (
        "There are 1 part region in the picture: region1<mask>. Is it heavy?"
    )
    assert make_question(DETAILED).max_new_tokens > make_question(CATEGORY).max_new_tokens
    assert all(make_question(kind).text.count("<mask>") == 1 for kind in (CATEGORY, SHORT, DETAILED))
    for own, message in (("<mask> and <mask>", "2 <mask>"), ("x" * 2001, "2001 characters"), ("", "write")):
        with pytest.raises(ValueError, match=message):
            make_question(FREE, own)
    with pytest.raises(ValueError, match="no question of the kind"):
        make_question("Poem")


def test_example_folders(tmp_path, file):
    (tmp_path / "notes.txt").write_text("x")
    assert find_examples(tmp_path) == [file]
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "empty", "no picture in"), (tmp_path / "none", "no folder")):
        with pytest.raises(ValueError, match=message):
            find_examples(folder)


def test_the_interface_shows_what_runs(file):
    blocks = build_interface(Service(FakeDescriber(), FakeSegmenter(), name="<b>m</b>"), [file])
    header = next(block.value for block in blocks.blocks.values() if getattr(block, "elem_id", "") == "header")
    assert "Squares" in header and "&lt;b&gt;m&lt;/b&gt;" in header and "cpu" in header


def test_updates_are_independent_defaults():
    assert Update() == Update() and len(set(CLICK_MODES)) == 3
