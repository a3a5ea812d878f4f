"""What is left of a broken record speaks of the same regions as before, by an independent model of what that means."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.checks import problems_of
from data_pipelines.cleaning import clean_record
from data_pipelines.records import Region, RegionRecord, Turn

from .annotation_files import box_mask, compressed

HEIGHT, WIDTH = 4, 12
BROKEN = ("malformed", "empty")


def mask_at(column: int, state: str) -> dict:
    """One pixel wide, so that the counts name the region; broken ones in a way of their own."""
    if state == "malformed":
        return {"size": [HEIGHT, WIDTH], "counts": "~" * (column + 1)}
    if state == "empty":
        return compressed(box_mask(0, 0, 0, 0, HEIGHT, WIDTH))
    return compressed(box_mask(column, 0, column + 1, 2, HEIGHT, WIDTH))


# The model: a region is a letter. A text is a list of words and letters; numbers exist only once the record is written.
@st.composite
def scenes(draw):
    states = draw(st.lists(st.sampled_from(["sound", "sound", *BROKEN]), max_size=6))
    letters = "abcdef"[: len(states)]
    beyond = [len(states) + 1] if draw(st.booleans()) else []
    mention = st.sampled_from([*letters, *beyond]) if letters or beyond else st.just("word")
    text = st.lists(st.one_of(st.sampled_from(["is", "犬", "region1"]), mention), min_size=1, max_size=4)
    exchanges = draw(st.lists(st.tuples(text, text), max_size=4))
    names = [draw(st.lists(st.one_of(st.just("cat"), mention), min_size=1, max_size=2)) for _ in letters]
    return dict(zip(letters, states, strict=True)), exchanges, dict(zip(letters, names, strict=True))


def written(text: list, order: str) -> str:
    return " ".join(
        f"<region{part}>" if isinstance(part, int) else f"<region{order.index(part) + 1}>" if part in order else part
        for part in text
    )


def record_of(states: dict, exchanges: list, names: dict) -> RegionRecord:
    order = "".join(states)
    regions = tuple(
        Region(mask_at(place, states[letter]), written(names[letter], order), id=letter)
        for place, letter in enumerate(order)
    )
    turns = [turn for pair in exchanges for turn in zip(("user", "assistant"), pair, strict=True)]
    metadata = {"category_ids": list(order), "label": "kept"}
    said = tuple(Turn(role, written(text, order)) for role, text in turns)
    return RegionRecord("made:1", "made", "1.png", HEIGHT, WIDTH, regions, said, metadata)


def read_back(text: str, record: RegionRecord) -> list[str]:
    """The letters that a text mentions, in its order."""
    return [record.regions[int(number) - 1].id for number in re.findall(r"<region(\d+)>", text)]


def model_of_cleaning(states: dict, exchanges: list, names: dict) -> tuple[set, list]:
    """Letters and exchanges that stay."""
    stay = {letter for letter, state in states.items() if state not in BROKEN}
    for _ in states:
        stay = {letter for letter in stay if all(part in stay for part in names[letter] if is_mention(part, states))}
    said = [
        pair for pair in exchanges if all(part in stay for text in pair for part in text if is_mention(part, states))
    ]
    return stay, said


def is_mention(part, states: dict) -> bool:
    return isinstance(part, int) or part in states


@settings(max_examples=300, deadline=None)
@given(scenes())
def test_texts_speak_of_the_same_regions_after_cleaning(scene):
    states, exchanges, names = scene
    record = record_of(*scene)
    cleaned = clean_record(record, "training")
    stay, said = model_of_cleaning(*scene)
    lost = sum(rejection.annotations for rejection in cleaned.removed)
    if (exchanges and not said) or (not exchanges and not stay):
        assert cleaned.record is None
        assert cleaned.removed
        assert lost == len(states)
        return
    result = cleaned.record
    assert result is not None
    assert problems_of(result, "training") == []
    assert [region.id for region in result.regions] == sorted(stay)
    assert list(result.metadata["category_ids"]) == sorted(stay)
    assert result.metadata["label"] == "kept"
    for region in result.regions:
        assert region.segmentation == mask_at("abcdef".index(region.id), "sound")
        assert read_back(region.name, result) == [part for part in names[region.id] if part in states]
    texts = [turn.text for turn in result.turns]
    assert [read_back(text, result) for text in texts] == [
        [part for part in text if part in states] for pair in said for text in pair
    ]
    words = [re.sub(r"<region\d+>", "", text).split() for text in texts]
    assert words == [[part for part in text if not is_mention(part, states)] for pair in said for text in pair]
    assert lost == len(states) - len(stay)
    assert (cleaned.removed == ()) == (result == record)


SOUND = RegionRecord(
    "made:1",
    "made",
    "1.png",
    HEIGHT,
    WIDTH,
    tuple(Region(mask_at(column, "sound"), name, id=name) for column, name in enumerate("abc")),
    (Turn("user", "Is <region1> left of <region3>?"), Turn("assistant", "Yes.")),
)


def test_a_sound_record_stays_as_it_is():
    assert clean_record(SOUND, "training").record == SOUND
    assert clean_record(SOUND, "training").removed == ()


def test_turns_that_make_no_exchange_are_removed_and_an_open_question_stays_for_evaluation():
    turns = (
        Turn("assistant", "Hello."),
        Turn("user", "What?"),
        Turn("user", "What is <region2>?"),
        Turn("assistant", "b"),
        Turn("user", "And <region3>?"),
    )
    for purpose, kept in (("training", turns[2:4]), ("evaluation", turns[2:])):
        cleaned = clean_record(replace(SOUND, turns=turns), purpose)
        assert cleaned.record is not None and cleaned.record.turns == kept
        assert problems_of(cleaned.record, purpose) == []
        numbers = {"training": [1, 2, 5], "evaluation": [1, 2]}[purpose]
        assert [rejection.id for rejection in cleaned.removed] == [f"made:1/turn{number}" for number in numbers]


def test_a_box_that_cannot_be_used_goes_and_its_region_stays():
    boxes = [(0.0, 0.0, 12.9, 4.0), (0.0, 0.0, 14.0, 4.0), (3.0, 0.0, 3.0, 4.0)]
    regions = tuple(replace(region, box=box) for region, box in zip(SOUND.regions, boxes, strict=True))
    cleaned = clean_record(replace(SOUND, regions=regions), "training")
    assert [region.box for region in cleaned.record.regions] == [boxes[0], None, None]
    assert [rejection.reason for rejection in cleaned.removed] == ["box beyond the picture", "malformed box"]
    assert cleaned.record.turns == SOUND.turns


@pytest.mark.parametrize(
    ("rationale", "kept"),
    [("Because <region3> is far.", "Because <region2> is far."), ("<region1> hides it.", None), ("<mask>", None)],
)
def test_a_rationale_is_a_text_of_the_record_like_any_other(rationale, kept):
    regions = (Region(mask_at(0, "empty"), "a"), *SOUND.regions[1:])
    turns = (Turn("user", "Why <region2>?"), Turn("assistant", "So."))
    cleaned = clean_record(replace(SOUND, regions=regions, turns=turns, metadata={"rationale": rationale}), "training")
    assert cleaned.record.metadata.get("rationale") == kept
    assert cleaned.record.turns[0].text == "Why <region1>?"
    assert problems_of(cleaned.record, "training") == []


@pytest.mark.parametrize(
    "changes",
    [{"height": 0}, {"id": "made:\ud800"}, {"regions": (), "turns": ()}, {"image": "", "height": 0, "width": 0}],
)
def test_a_record_that_is_broken_as_a_whole_is_removed_with_its_regions(changes):
    broken = replace(SOUND, **changes)
    cleaned = clean_record(broken, "training")
    assert cleaned.record is None
    assert sum(rejection.annotations for rejection in cleaned.removed) == len(broken.regions)
