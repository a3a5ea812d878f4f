"""What the app does on each event of the picture and the Ask tab, with a describer and a segmenter that take notes."""

import re

import numpy as np
import pytest
from PIL import Image

from app.controller import Asking
from app.interface import build_interface, find_examples, header_html, knows_only_synthetic_scenes
from app.overlay import Outline, Stroke, overlay_json, trace
from app.questions import CATEGORY, DETAILED, FREE, SHORT, make_question
from app.selecting import MOST_POINTS, paint, read_prompt
from app.service import Service
from app.state import Prompt, Selection, selection_overlay
from osprey_tp.prompts import CATEGORY_QUESTION, SHORT_DESCRIPTION_QUESTION

from .app_fakes import FakeDescriber, FakeSegmenter, User
from .tiny_models import tiny_describer


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "scene.png"
    Image.effect_noise((400, 200), 40).convert("RGB").save(path)
    return path


def test_a_click_selects_and_asks(file):
    user = User().open(file)
    assert user.status.text == "Click an object in the picture."
    assert (user.selection.picture.width, user.selection.picture.height) == (400, 200)
    assert user.published == [user.controller.pictures.get("ann", str(file)).shown]
    user.point((100, 100))
    assert user.segmenter.prompts == [([(100.0, 100.0)], [True], None)]
    assert user.answer.text == "a red triangle" and user.answer.question == CATEGORY_QUESTION
    assert [update.answer.text for update in user.seen[-3:-1]] == ["a red", "a red triangle"]
    assert user.status.kind == "done"
    [(regions, question, options)] = user.session.asked
    assert question == CATEGORY_QUESTION and options == {"max_new_tokens": 32}
    assert regions == [user.selection.shape.rle] and user.selection.shape.mask.shape == (200, 400)
    assert user.selection.shape.mask[95:106, 95:106].all() and user.selection.shape.mask.sum() == 121


def test_the_busy_states_follow_each_other(file):
    user = User().open(file)
    assert [update.status.kind for update in user.seen] == ["busy", "busy", "ready"]
    assert user.seen[0].view.selection.busy == "Reading scene.png …" and user.seen[1].view.selection.busy == ""
    told = [update.status.text for update in user.point((9, 9)).seen[3:] if hasattr(update.status, "text")]
    assert told[:2] == ["Finding the object …", "Answering …"]


def test_points_boxes_and_strokes(file):
    user = User().open(file).point((200, 100), (240, 100), (40, 20), labels=[True, True, False])
    assert user.segmenter.prompts[-1] == ([(200.0, 100.0), (240.0, 100.0), (40.0, 20.0)], [True, True, False], None)
    user.point(box=[10, 20, 60, 80])
    assert user.segmenter.prompts[-1] == ([], [], (10.0, 20.0, 60.0, 80.0)) and user.selection.shape.mask[50, 35]
    count = len(user.segmenter.prompts)
    user.point(strokes=[{"points": [[50, 50], [150, 50]], "width": 20, "positive": True}])
    assert len(user.segmenter.prompts) == count and user.answer.text == "a red triangle"
    ys, xs = np.nonzero(user.selection.shape.mask)
    assert abs(xs.min() - 40) <= 1 and abs(xs.max() - 159) <= 1 and abs(ys.min() - 40) <= 1 and abs(ys.max() - 59) <= 1
    user.point()
    assert user.selection.shape is None and user.status.text == "Click an object in the picture."
    assert user.answer.question == ""


def test_strokes_paint_and_erase():
    wide = Stroke(((0, 50), (100, 50)), 21)
    assert abs(paint([wide], 100, 100).sum() - 21 * 100) <= 2 * 100
    mask = paint([wide, Stroke(((50, 0), (50, 100)), 31, positive=False)], 100, 100)
    assert not mask[50, 50] and mask[50, 10] and mask[50, 90]
    assert paint([Stroke(((7.5, 3.5),), 1)], 10, 20).nonzero() == (np.array([3]), np.array([7]))
    with pytest.raises(ValueError, match="leave no region"):
        paint([Stroke(((5, 5),), 3, positive=False)], 10, 10)


def test_an_excluded_point_alone_waits_for_the_object(file):
    user = User().open(file).point((50, 50), labels=[False])
    assert user.selection.shape is None and user.session.asked == []
    assert user.selection.prompt.points == ((50.0, 50.0),) and user.status.text == "Now click the object itself."


@pytest.mark.parametrize(
    ("pointed", "message"),
    [
        ({"points": [[401, 5]], "labels": [True]}, r"\(401, 5\) lies outside the picture of 400x200"),
        ({"points": [[-1, 5]], "labels": [True]}, "outside"),
        ({"points": [[1, 5]], "labels": []}, "1 points, 0 labels"),
        ({"points": [["1", 5]], "labels": [True]}, "not '1'"),
        ({"points": [[float("nan"), 5]], "labels": [True]}, "not nan"),
        ({"points": [[1, 5, 7]], "labels": [True]}, "too many values"),
        ({"points": [[1, 1]] * (MOST_POINTS + 1), "labels": [True] * (MOST_POINTS + 1)}, "too many"),
        ({"points": 5}, "cannot tell"),
        ({"box": [1, 2, 3]}, "4 numbers"),
        ({"strokes": [{"points": [[1, 1]]}]}, "cannot tell"),
        ({"strokes": [{"points": [], "width": 3, "positive": True}]}, "at least one point"),
        ({"strokes": [{"points": [[1, 1]], "width": 1e9, "positive": True}]}, "width"),
    ],
)
def test_what_the_page_says_is_not_trusted(pointed, message):
    with pytest.raises(ValueError, match=message):
        read_prompt(pointed, 200, 400)


def test_the_far_edge_belongs_to_the_last_pixel():
    assert read_prompt({"points": [[400, 200]], "labels": [True]}, 200, 400).points == ((399.0, 199.0),)


def test_another_mask_can_be_chosen(file):
    user = User().open(file).point((200, 100))
    choose = user.controller.choose
    user.show(choose("ann", user.selection, user.kept, 1, Asking(SHORT)))
    assert user.selection.shape.mask.sum() == 21 * 21
    assert user.session.asked[-1][1] == SHORT_DESCRIPTION_QUESTION
    with pytest.raises(ValueError, match="no mask 3"):
        user.show(choose("ann", user.selection, user.kept, 2, Asking(SHORT)))


def test_a_picture_is_encoded_once_for_all_that_is_asked(file):
    user = User().open(file)
    for x in (80, 200, 320):
        user.point((x, 100)).keep()
    user.send("Which is red?")
    assert len(user.describer.opened) == len(user.segmenter.opened) == 1 and len(user.session.asked) == 4


def test_kept_regions_have_stable_names_and_colours(file):
    user = User().open(file)
    with pytest.raises(ValueError, match="select a region first"):
        user.keep()
    for x in (80, 200, 320):
        selected = selection_overlay(user.point((x, 100)).selection, user.kept).regions[-1].colour
        assert user.keep().kept.regions[-1].colour == selected
    assert user.selection.shape is None and user.selection.serial > 0
    third = user.kept.regions[2]
    user.show(user.controller.remove(user.selection, user.kept, 2))
    assert [region.name for region in user.kept.regions] == ["region1", "region3"]
    assert user.kept.regions[1] == third
    assert user.point((9, 9)).keep().kept.regions[-1].name == "region4"
    with pytest.raises(ValueError, match="no region2"):
        user.show(user.controller.remove(user.selection, user.kept, 2))


def test_temperature_and_length(file):
    user = User()
    user.asking = Asking(DETAILED, temperature=0.7, longest=100)
    user.open(file).point((9, 9))
    assert user.session.asked[-1][2] == {"max_new_tokens": 100, "do_sample": True, "temperature": 0.7}


def test_users_do_not_share_what_they_select(file):
    ann = User()
    bob = User(controller=ann.controller, describer=ann.describer, name="bob")
    ann.open(file).point((100, 100)).keep()
    bob.open(file).point((300, 100))
    assert len(ann.describer.opened) == 1 and bob.kept.regions == () and len(ann.kept.regions) == 1
    assert not (bob.selection.shape.mask & ann.kept.regions[0].shape.mask).any()


def test_a_new_picture_takes_everything_of_the_old_one_away(file):
    user = User().open(file).point((100, 100)).keep().send("Which is red?").open(file)
    assert (user.kept.regions, user.chat.exchanges, user.answer.text) == ((), (), "")
    user.show(user.controller.close(99))
    assert user.selection == Selection(serial=99) and "example" in user.status.text


def test_bad_files_are_named_without_their_path(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("no picture")
    user = User().open(path)
    assert user.status.kind == "error" and "scene.png" in user.status.text
    assert str(tmp_path) not in user.status.text and "\n" not in user.status.text
    assert user.selection.picture is None and user.selection.busy == "" and user.selection.serial == 1


def test_events_before_a_picture_and_before_a_click_say_what_to_do(file):
    user = User()
    for event in (lambda: user.point((5, 5)), lambda: user.send("Hello"), user.regenerate):
        with pytest.raises(ValueError, match="open a picture first"):
            event()
    user.open(file)
    with pytest.raises(ValueError, match="click an object first"):
        user.show(user.controller.ask("ann", user.selection, user.asking))


def test_a_segmenter_that_finds_nothing_keeps_the_point_on_show(file):
    user = User().open(file)
    user.segmenter.error = ValueError("found no object here")
    with pytest.raises(ValueError, match="found no object"):
        user.point((200, 100))
    assert user.selection.prompt == Prompt(((200.0, 100.0),), (True,)) and user.selection.shape is None


def test_answers_end_with_their_reader(file):
    user = User(FakeDescriber(["word "] * 1000)).open(file)
    running = user.controller.select(
        "ann", user.selection, user.kept, {"points": [[9, 9]], "labels": [True]}, 5, user.asking
    )
    while user.answer.text != "word word":
        user.show([next(running)])
    running.close()
    assert user.session.closed == 1


def test_an_empty_answer_is_said_to_be_empty(file):
    assert "nothing to say" in User(FakeDescriber([" "])).open(file).point((9, 9)).status.text


def test_a_free_question_waits_until_it_is_written(file):
    user = User()
    user.asking = Asking(FREE)
    user.open(file).point((200, 100))
    assert user.session.asked == [] and user.status.text == "Write your question and press Ask."
    with pytest.raises(ValueError, match="write a question first"):
        user.show(user.controller.ask("ann", user.selection, user.asking))


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


def filled(outline: Outline, height: int, width: int) -> np.ndarray:
    """What a browser fills by the even-odd rule, drawn by another library."""
    import matplotlib.path

    area = np.zeros((height, width), int)
    centres = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1).reshape(-1, 2)
    for part in re.findall(r"M([^Z]*)Z", outline.path):
        corners = np.array([list(map(float, pair.split())) for pair in part.split("L")])
        if len(corners) > 2:
            area += matplotlib.path.Path(corners).contains_points(centres).reshape(height, width)
    return area % 2 == 1


@pytest.mark.parametrize("height", [60, 600])
def test_an_outline_encloses_its_mask(height):
    width = height * 4 // 3
    y, x = np.mgrid[:height, :width] / height
    ring = ((x - 0.6) ** 2 + (y - 0.5) ** 2 < 0.16) & ~((x - 0.6) ** 2 + (y - 0.5) ** 2 < 0.03)
    mask = ring | ((x > 1.2) & (y < 0.1))
    outline = trace(mask)
    area = filled(outline, height, width)
    assert (area & mask).sum() / (area | mask).sum() > 0.98 and len(outline.path) < 6000
    column, row = (int(value) for value in outline.anchor)
    assert mask[row, column] and overlay_json(selection_overlay(Selection(), User().kept))["regions"] == []
    assert trace(np.zeros((5, 5), bool)).path == ""


def test_example_folders(tmp_path, file):
    (tmp_path / "notes.txt").write_text("x")
    assert find_examples(tmp_path) == [file]
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "empty", "no picture in"), (tmp_path / "none", "no folder")):
        with pytest.raises(ValueError, match=message):
            find_examples(folder)


def test_the_interface_shows_what_runs(file):
    blocks = build_interface(Service(FakeDescriber(), FakeSegmenter(), name="<b>m</b>"))
    header = next(block.value for block in blocks.blocks.values() if getattr(block, "elem_id", "") == "header")
    assert "Squares" in header and "&lt;b&gt;m&lt;/b&gt;" in header and "cpu" in header and "warning" not in header
    assert "only <b>guess" not in header_html({}, "only <b>guess") and "warning" in header_html({}, "!")


def test_the_quickstarts_model_is_known_by_its_tower():
    describer = tiny_describer()
    assert not knows_only_synthetic_scenes(describer) and not knows_only_synthetic_scenes(FakeDescriber())
    describer.model.config.vision_config.model_type = "osprey_tp_tiny_tower"
    assert knows_only_synthetic_scenes(describer)
