"""Conversations of the app: what the model is told, what the user sees, and that nothing of it runs in a browser."""

import numpy as np
import pytest
from PIL import Image

from app.chat import MOST_EXCHANGES, Chat, Exchange
from app.controller import Asking
from app.marking import answer_html, chat_html, marked, regions_html
from app.questions import CATEGORY
from app.state import Kept, Shape

from .app_fakes import FakeDescriber, User
from .tiny_models import tiny_describer


def shape(x: int) -> Shape:
    mask = np.zeros((64, 96), bool)
    mask[20:40, x : x + 20] = True
    return Shape.of(mask)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "scene.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def test_regions_are_introduced_when_they_are_new():
    kept = Kept().adding(shape(5), shape(40))
    chat = Chat().asking(" What is region1 doing to region2? ", kept)
    assert chat.turns == [
        (
            "user",
            "There are 2 part regions in the picture: region1<mask>,region2<mask>. What is region1 doing to region2?",
        )
    ]
    kept = kept.adding(shape(70))
    chat = chat.answered("eating it", finished=True).asking("And region3?", kept)
    assert chat.turns[1:] == [
        ("assistant", "eating it"),
        ("user", "There are 1 part region in the picture: region3<mask>. And region3?"),
    ]
    assert [region.name for region in chat.regions] == ["region1", "region2", "region3"]
    chat = chat.answered("yes", finished=True).asking("Sure?", kept)
    assert chat.turns[-1] == ("user", "Sure?")


def test_a_removed_region_stays_known_where_it_was_spoken_of():
    kept = Kept().adding(shape(5), shape(40)).without(1).adding(shape(70)).without(3).adding(shape(1))
    chat = Chat().asking("Look.", kept)
    assert chat.turns[0][1] == (
        "There are 1 part region in the picture: region2<mask>. "
        "There are 1 part region in the picture: region4<mask>. Look."
    )
    chat = chat.answered("ok", finished=True).asking("What is region2?", Kept((), 4))
    assert [region.number for region in chat.regions] == [2, 4]
    with pytest.raises(ValueError, match="names region1, but the regions are: region2, region4"):
        chat.answered("ok", finished=True).asking("What is region1?", Kept((), 4))


def test_messages_that_got_no_answer_are_left_out():
    kept = Kept().adding(shape(5))
    chat = Chat().asking("One", kept).asking("Two", kept)
    assert chat.turns == [("user", "There are 1 part region in the picture: region1<mask>. Two")]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (" ", "write a message"),
        ("x" * 2001, "2001 characters"),
        ("see <mask>", "instead of <mask>"),
        ("<image>", "instead of"),
        ("Region7?", "Region7, but the regions are: none yet"),
    ],
)
def test_messages_that_cannot_be_sent(message, reason):
    with pytest.raises(ValueError, match=reason):
        Chat().asking(message, Kept())


def test_conversations_end_some_day():
    full = Chat((Exchange("a", (), "b", True),) * MOST_EXCHANGES)
    with pytest.raises(ValueError, match="begin a new one"):
        full.asking("c", Kept())
    with pytest.raises(ValueError, match="send a message first"):
        Chat().regenerating()


def test_what_a_model_writes_never_stands_for_a_region():
    chat = Chat().asking("One", Kept()).answered("a <mask> and <image>", finished=True).asking("Two", Kept())
    assert "<mask>" not in chat.turns[1][1] and "<image>" not in chat.turns[1][1]


def test_the_controller_streams_and_regenerates(file):
    user = User().open(file).point((20, 20)).keep().send("What is region1?")
    regions, turns, options = user.session.asked[-1]
    assert regions == [user.kept.regions[0].shape.rle] and turns == user.chat.turns
    assert options == {"max_new_tokens": 512}
    told = [update.chat.exchanges[-1] for update in user.seen[-4:] if isinstance(update.chat, Chat)]
    assert [(exchange.answer, exchange.finished) for exchange in told] == [
        ("", False),
        ("a red", False),
        ("a red triangle", False),
        ("a red triangle", True),
    ]
    user.session.pieces = ["something else"]
    assert user.regenerate().chat.exchanges[-1].answer == "something else"
    assert len(user.chat.exchanges) == 1 and user.session.asked[-1][1] == turns


def test_a_stopped_answer_keeps_what_was_said(file):
    user = User(FakeDescriber(["word "] * 1000)).open(file)
    running = user.controller.send("ann", user.selection, user.kept, user.chat, "Tell me", user.asking)
    for _ in range(4):
        user.show([next(running)])
    running.close()
    assert user.session.closed == 1
    assert user.chat.exchanges[-1].answer == "word word word" and not user.chat.exchanges[-1].finished
    assert user.chat.asking("Go on", user.kept).turns[1] == ("assistant", "word word word")


def test_a_real_session_understands_the_conversation(file):
    """Turn by turn the page's own record gives what a session that keeps its turns gives."""
    describer = tiny_describer()
    user = User(describer)
    user.asking = Asking(CATEGORY, longest=24)
    user.open(file).point((20, 20)).keep().point((70, 30)).keep().send("What is region1 doing to region2?")
    user.point((50, 50)).keep().send("And region3?")
    session = describer.open(Image.open(file).convert("RGB"))
    masks = [region.shape.mask for region in user.kept.regions]
    first = session.chat("What is region1 doing to region2?", masks[:2], max_new_tokens=24)
    second = session.chat("And region3?", masks[2:], max_new_tokens=24)
    assert [exchange.answer for exchange in user.chat.exchanges] == [first.strip(), second.strip()]


HOSTILE = '<img src=x onerror=alert(1)> [a](javascript:b) region1" onmouseover="c <script>d</script> ![e](http://f/g)'


def test_nothing_that_a_model_or_a_user_writes_becomes_html():
    kept = Kept().adding(shape(5))
    chat = Chat((Exchange(HOSTILE, kept.regions, HOSTILE, True),))
    colour = kept.regions[0].colour
    for page in (chat_html(chat, kept), answer_html(HOSTILE, HOSTILE, colour), answer_html("q <mask>?", HOSTILE)):
        assert "<img" not in page and "<script" not in page and 'onmouseover="' not in page


def test_names_of_known_regions_are_marked():
    kept = Kept().adding(shape(5), shape(40))
    colours = {region.name: region.colour for region in kept.regions}
    html = marked("Region1 & region2, region22, myregion1", colours)
    assert html.count("data-region=") == 2 and 'data-region="region1"' in html and ">Region1</span> &amp;" in html
    assert "#ff6347" in html and "#1e90ff" in html
    assert 'data-region="selection"' in answer_html("What is <mask>?", "region1 is red", kept.regions[0].colour)
    assert regions_html(kept).count("data-remove") == 2 and "No regions" in regions_html(Kept())
    assert "What is region1 doing" in chat_html(Chat(), kept)
