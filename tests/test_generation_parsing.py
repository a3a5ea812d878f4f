"""Strict reading of replies, and the scenes that requests tell."""

import json

import pytest

from data_pipelines.generation.notes import Notes, collect_notes, notes_of, picture_name
from data_pipelines.generation.parsing import Unfit, read_conversation, read_descriptions, read_short_answers
from data_pipelines.generation.scenes import is_part, scene_of, spoken_name
from data_pipelines.records import RecordFolder

from .generation_records import record, region, write_folder


def descriptions(*pairs: tuple[str, str]) -> str:
    return json.dumps({"descriptions": [{"region": region, "description": text} for region, text in pairs]})


def conversation(*pairs: tuple[str, str]) -> str:
    return json.dumps({"turns": [{"question": question, "answer": answer} for question, answer in pairs]})


def short(*pairs: tuple[str, str]) -> str:
    return json.dumps({"questions": [{"question": question, "answer": answer} for question, answer in pairs]})


def talk(text: str) -> object:
    return read_conversation(text, 2, 1, 3)


def test_descriptions_come_in_the_order_of_regions():
    reading = read_descriptions(descriptions(("<region2>", "A  cat.\n"), ("<region1>", "A dog <3.")), 2)
    assert [(turn.role, turn.text) for turn in reading.turns] == [
        ("user", "<region1>"),
        ("assistant", "A dog <3."),
        ("user", "<region2>"),
        ("assistant", "A cat."),
    ]
    assert reading.unfit == ()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "empty reply"),
        ("Sure! {}", "reply is not JSON"),
        ('{"descriptions": [{"region": "<region1>", "descr', "reply is not JSON"),
        ("[" * 100_000, "reply is not JSON"),
        ('{"descriptions": [], "descriptions": []}', "reply is not JSON"),
        ("[]", "reply of another shape"),
        ("{}", "reply of another shape"),
        ('{"descriptions": []}', "reply of another shape"),
        ('{"descriptions": "none"}', "reply of another shape"),
        ('{"descriptions": [], "notes": ""}', "reply of another shape"),
        ('{"descriptions": ["a dog"]}', "item of another shape"),
        ('{"descriptions": [{"region": "<region1>"}]}', "item of another shape"),
        ('{"descriptions": [{"region": 1, "description": "A dog."}]}', "item of another shape"),
        (
            '{"descriptions": [{"region": "<region1>", "description": "A dog.", "sure": "yes"}]}',
            "item of another shape",
        ),
    ],
)
def test_a_reply_of_another_shape_is_refused_whole(reply, reason):
    with pytest.raises(Unfit) as error:
        read_descriptions(reply, 1)
    assert error.value.reason == reason


BAD_TEXTS = [
    ("  ", "empty text"),
    ("...", "empty text"),
    ("A dog at [12, 30, 200, 400].", "text gives coordinates"),
    ("A dog at (12.5, 30).", "text gives coordinates"),
    ("A dog from 12, 30, 200, 400 on.", "text gives coordinates"),
    ("Its bounding box is wide.", "text gives coordinates"),
    ("It is 40 pixels high.", "text gives coordinates"),
    ("According to the caption it sleeps.", "text speaks of what the model was given"),
    ("It faces region 2.", "region not written as <regionN>"),
    ("It faces <Region2>.", "region not written as <regionN>"),
    ("It faces <region 2>.", "region not written as <regionN>"),
    ("A <mask> dog.", "text holds a placeholder of the prompt"),
    ("An <image> of a dog.", "text holds a placeholder of the prompt"),
    ("A dog \ud83d.", "text is not Unicode"),
]


@pytest.mark.parametrize(("text", "reason"), BAD_TEXTS)
def test_an_unfit_text_costs_its_item_or_the_conversation(text, reason):
    reading = read_descriptions(descriptions(("<region1>", "A dog."), ("<region2>", text)), 2)
    assert [turn.text for turn in reading.turns] == ["<region1>", "A dog."]
    assert [unfit.reason for unfit in reading.unfit] == [reason]
    reading = read_short_answers(short(("Is <region1> a dog?", "yes"), ("What is <region2>?", text)), 2, 6, 99)
    assert [turn.text for turn in reading.turns] == ["Is <region1> a dog?", "yes"]
    assert [unfit.reason for unfit in reading.unfit] == [reason]
    with pytest.raises(Unfit) as error:
        talk(conversation(("Is <region2> near?", "Yes."), ("What is <region1>?", text)))
    assert error.value.reason == reason


@pytest.mark.parametrize(
    "text",
    [
        "The region around it is dark.",
        "Open from 10:30, closed on Sundays.",
        "About 1,000 people, 3 dogs.",
        "Two coordinated players (in red) box.",
        "2 < 3 > 1, 5 o'clock, 犬",
        "A label on the bottle and a list on the wall.",
    ],
)
def test_harmless_texts_are_kept(text):
    assert read_descriptions(descriptions(("<region1>", text)), 1).turns[1].text == text


def test_descriptions_of_wrong_regions():
    items = [
        ("<region1>", "A."),
        ("<region1>", "B."),
        ("<region9>", "C."),
        ("region2", "D."),
        ("<region3>", "<region1>!"),
    ]
    reading = read_descriptions(descriptions(*items), 6)
    assert [turn.text for turn in reading.turns] == ["<region1>", "A."]
    assert [unfit.reason for unfit in reading.unfit] == [
        "region described twice",
        "region reference out of range",
        "region not written as <regionN>",
        "empty text",
        "region not described",
    ]
    (unfit,) = read_descriptions(descriptions(("<region1>", "Left of <region2>.")), 1).unfit
    assert unfit.reason == "description refers to a region by number"


def test_conversations():
    pair = ("What is <region1>?", "A dog beside <region2>.")
    assert [turn.text for turn in talk(conversation(pair)).turns] == list(pair)
    assert talk(f"```json\n{conversation(pair)}\n```\n") == talk(conversation(pair))
    for reply, reason in (
        (conversation(*[pair] * 4), "wrong number of turns"),
        (conversation(("What is there?", "A dog.")), "no region is spoken of"),
        (conversation(("What is <region3>?", "A dog.")), "region reference out of range"),
        (conversation(("What is <region0>?", "A dog.")), "region reference out of range"),
        (conversation(("<region1>", "A dog.")), "empty text"),
        (conversation(("What is in the box of <region1> at [3, 4]?", "A dog.")), "text gives coordinates"),
        (conversation(pair) + " Enjoy!", "reply is not JSON"),
    ):
        with pytest.raises(Unfit) as error:
            talk(reply)
        assert error.value.reason == reason
    with pytest.raises(Unfit, match="wrong number of turns: 1, expected 2 to 3"):
        read_conversation(conversation(pair), 2, 2, 3)


def test_short_answers():
    pairs = [
        ("Is <region1> left of <region2>?", "yes"),
        ("Is <region1> left of <region2>?", "no"),
        ("What is it?", "a dog"),
        ("What is <region1>?", "a very large dog"),
    ]
    reading = read_short_answers(short(*pairs), 2, most=6, most_words=3)
    assert [turn.text for turn in reading.turns] == list(pairs[0])
    assert [unfit.reason for unfit in reading.unfit] == [
        "question asked twice",
        "question about no region",
        "answer longer than a phrase",
    ]
    with pytest.raises(Unfit, match="wrong number of questions: 4, at most 3"):
        read_short_answers(short(*pairs), 1, most=3, most_words=3)


def scene(one, level="object", most=10, seed=0, notes=None):
    return scene_of(one, notes or Notes(), level=level, max_regions=most, seed=seed)


def test_a_scene_in_words():
    notes = Notes(("A dog on a lawn.",), (("the brown one", (0, 5, 10, 15)),))
    told, rejections = scene(record(1, "dog", "", "street_sign"), notes=notes)
    assert str(told).splitlines() == [
        "Picture: 60 pixels wide, 40 high.",
        "Captions of the picture:",
        "- A dog on a lawn.",
        "Said about single things:",
        "- the brown one [0, 5, 10, 15]",
        "Regions:",
        "<region1>: dog [0, 5, 10, 15]",
        "<region2>: street sign [4, 5, 14, 15]",
    ]
    assert [(one.id, one.reason) for one in rejections] == [("coco:1#a1", "region without a name")]


def test_a_box_comes_from_the_mask_where_the_source_has_none():
    with_box, without = record(1, "dog"), record(1, "dog")
    object.__setattr__(without, "regions", (region("dog", box=None),))
    assert str(scene(with_box)[0]) == str(scene(without)[0])


def test_parts_and_objects_are_told_apart():
    one = record(1, "dog", "dog:left_ear", "car_(automobile):door", source="paco")
    objects, parts = scene(one)[0], scene(one, "part")[0]
    assert [place.name for place in objects.regions] == ["dog"]
    assert [place.name for place in parts.regions] == ["dog:left_ear", "car_(automobile):door"]
    assert "<region1>: left ear (part of: dog) [" in str(parts)
    assert "<region2>: door (part of: car (automobile)) [" in str(parts)
    assert "Also in the picture:\n- dog [" in str(parts)
    assert [rejection.reason for rejection in scene(one, "part")[1]] == ["not a region of the level part"]
    assert is_part(region("Quadruped Head"), "partimagenet")
    for name in ("clock at 10:30", "sign that says: stop", "dog"):
        assert not is_part(region(name), "visual-genome")
        assert spoken_name(name) == name


def test_of_too_many_regions_some_are_drawn_and_the_rest_is_told_as_context():
    one = record(1, *(f"thing {number}" for number in range(12)))
    drawn = {tuple(place.name for place in scene(one, most=3, seed=seed)[0].regions) for seed in range(20)}
    assert len(drawn) > 10
    told, rejections = scene(one, most=3)
    assert [place.id for place in told.regions] == sorted(
        (place.id for place in told.regions), key=lambda i: int(i[1:])
    )
    assert len(told.others) == len(rejections) == 9
    assert {rejection.reason for rejection in rejections} == {"more regions than one request asks about"}


def test_what_captions_say():
    turns = ["", "A  dog.", "<region1>", "the brown one", "How many?", "Two.", "Is <region1> big?", "Yes."]
    assert notes_of(record(1, "dog", turns=turns)) == Notes(
        ("A dog.", "How many? Two."), (("the brown one", (0, 5, 10, 15)),)
    )
    assert picture_name("train2014/COCO_train2014_000000000007.jpg") == picture_name("000000000007.jpg")
    assert picture_name("VG_100K_2/7.jpg") != picture_name("VG_100K_2/17.jpg")


def test_captions_are_joined_by_file_name(tmp_path):
    first = write_folder(
        tmp_path / "captions",
        record(1, source="captions", image="COCO_val2014_7.jpg", turns=["", "A dog."]),
        record(2, source="captions", image="val/7.jpg", turns=["", "A dog."]),
        record(3, source="captions", image="8.jpg", turns=["", "A cat."]),
    )
    second = write_folder(
        tmp_path / "refcoco", record(4, "", source="refcoco", image="7.jpg", turns=["<region1>", "it"])
    )
    folders = [RecordFolder.open(first), RecordFolder.open(second)]
    assert collect_notes(folders, {"7.jpg"}) == {"7.jpg": Notes(("A dog.",), (("it", (0, 5, 10, 15)),))}
    with pytest.raises(ValueError, match="refcoco shares no picture with the records"):
        collect_notes(folders, {"8.jpg"})
