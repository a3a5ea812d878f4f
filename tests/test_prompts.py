"""The wording of every source: as published to the letter, and our own banks."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.conversations import conversation_of
from data_pipelines.prompts import CLEAN_FORMS, PUBLISHED_FORMS, banks, prompt_form
from data_pipelines.records import Region, RegionRecord, Turn, record_to_row
from data_pipelines.sources import SOURCES
from osprey_tp.prompts import OVERVIEW, region_introduction

from .annotation_files import box_mask, compressed
from .golden_recipe import load_json
from .test_processing import published_view
from .tiny_models import tiny_processor_and_config

GOLDEN = load_json("i_conversation_v1.json")
HEIGHT, WIDTH = 40, 60
PICTURE = Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
NAMED_SOURCES = (
    *("coco", "lvis", "paco", "refcoco", "refcoco+", "refcocog", "pascal-part", "partimagenet", "visual-genome", "vcr"),
    *("osprey-short-form", "osprey-part-level", "osprey-conversation", "osprey-lvis-positive-negative"),
    *("osprey-detailed-description", "llava", "panoptic", "cityscapes", "ferret-bench", "pope", "dlc-bench"),
    *("captions", "custom", "synthetic"),
)
SHORT = " Answer the question using a single word or phrase."
DOTTED = ".\n" + OVERVIEW


def record(source: str, names=(), turns=(), number: int = 1, **metadata) -> RegionRecord:
    regions = tuple(Region(compressed(box_mask(n, 2, n + 3, 9)), name) for n, name in enumerate(names))
    turns = tuple(Turn("user" if index % 2 == 0 else "assistant", text) for index, text in enumerate(turns))
    return RegionRecord(f"{source}:{number}", source, "a.jpg", HEIGHT, WIDTH, regions, turns, metadata)


def texts(conversation) -> list[str]:
    return [
        message["content"] if isinstance(message["content"], str) else message["content"][-1]["text"]
        for message in conversation
    ]


def used(conversation, made: RegionRecord) -> list[int]:
    """Numbers of the regions that travel with the picture."""
    number_of = {region.segmentation["counts"]: number for number, region in enumerate(made.regions, start=1)}
    return [number_of[mask["counts"]] for mask in conversation[0]["content"][0]["regions"]]


def published(made: RegionRecord, **choices) -> list[str]:
    return texts(conversation_of(made, PICTURE, prompt_style="published", **choices))


@pytest.fixture(scope="module")
def processor():
    return tiny_processor_and_config()[0]


# --- the golden conversations, from records ---------------------------------------------------------------------------

RECORDS = {
    "two_rounds_two_regions": record(
        "osprey-short-form",
        ["", ""],
        ["What is the category of <region1>?", "Red car.", "What is <region2>?", "Dog"],
    ),
    "category_three_rounds": record("coco", ["dog", "potted plant", "boat"]),
    "vcr_style_prefix": record(
        "vcr", ["", ""], ["Why is <region1> sad?", "He lost his phone."], rationale="The phone is broken."
    ),
}


@pytest.mark.parametrize("name", list(GOLDEN["conversations"]))
def test_records_become_the_published_prompts_ids_and_labels(processor, name):
    case = GOLDEN["conversations"][name]
    answers = [text for speaker, text in case["conversation"] if speaker == "gpt"]
    drawn = (
        conversation_of(RECORDS[name], PICTURE, prompt_style="published", epoch=epoch, paraphrase=False)
        for epoch in range(200)
    )
    conversation = next(made for made in drawn if texts(made)[1::2] == answers)
    assert processor.apply_chat_template(conversation, tokenize=False) == "<s>" + case["prompt"]
    ids, labels = published_view(processor.prepare([conversation], return_labels=True), processor)
    assert ids == case["small_fast"]["input_ids"]
    assert labels == case["small_fast"]["labels"]


@pytest.mark.parametrize("template", list(GOLDEN["inference_prompts"]))
def test_an_open_question_becomes_the_published_inference_prompt(processor, template):
    case = GOLDEN["inference_prompts"][template]
    conversation = conversation_of(record("lvis", ["dog"], ["<region1>"]), PICTURE, prompt_style="published")
    assert [message["role"] for message in conversation] == ["user"]
    if template == "llava_v1":
        system = case["prompt"].split(" USER: ")[0]
        conversation = [{"role": "system", "content": system}, *conversation]
    prompt = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert prompt == "<s>" + case["prompt"]
    batch = processor.prepare([conversation], add_generation_prompt=True)
    assert published_view(batch, processor)[0] == case["small_fast_ids"]


# --- published wording ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "answer_format", "objects", "parts", "first_object", "last_part"),
    [
        ("partimagenet", "category subcategory", 11, 13, "Bottle", "Seat"),
        ("pascal-part", "category:subcategory", 14, 30, "potted plant", "mouth"),
    ],
)
def test_parts_are_asked_as_published(source, answer_format, objects, parts, first_object, last_part):
    first, answer, second, _ = published(record(source, ["dog:ear", "dog:ear"]))
    match = re.fullmatch(
        "In the conversation below, you simply answer the category and subcategory name based on what you seein the "
        "image inside a particular region. It maybe a subpart of an object. I will give you only one region each time. "
        rf"Your answer should in the format of {answer_format}. Categories Containing (.+)\. "
        r"Subcategories Containing (.+)\.\n<mask>",
        first,
    )
    assert match
    named_objects, named_parts = match[1].split(", "), match[2].split(",")
    assert (len(set(named_objects)), len(set(named_parts))) == (objects, parts)
    assert (named_objects[0], named_parts[-1]) == (first_object, last_part)
    assert not any(part.startswith(" ") for part in named_parts)
    assert (answer, second) == ("dog:ear", "<mask>")


@pytest.mark.parametrize(("source", "suffix"), [("osprey-part-level", SHORT), ("osprey-conversation", "")])
def test_every_region_is_introduced_and_angle_brackets_go_as_published(source, suffix):
    made = record(source, ["", "", ""], ["Is <region3> < 5 m?", "Yes, <region3>.", "And it?", "No"])
    conversation = conversation_of(made, PICTURE, prompt_style="published")
    opening = OVERVIEW + "There are 3 part regions in the picture: region1<mask>,region2<mask>,region3<mask>. "
    assert texts(conversation) == [
        opening + f"Is region3  5 m?{suffix}",
        "Yes, region3.",
        f"And it?{suffix}",
        "No",
    ]
    assert used(conversation, made) == [1, 2, 3]
    one = record(source, [""], ["What is <region1>?", "A cat"])
    opening = OVERVIEW + "There are 1 part region in the picture: region1<mask>. "
    assert published(one)[0] == opening + "What is region1?" + suffix


def test_a_limit_introduces_only_what_is_spoken_of():
    made = record("osprey-conversation", [""] * 4, ["What is <region2>?", "A cat", "And <region4>?", "A dog"])
    conversation = conversation_of(made, PICTURE, prompt_style="published", max_regions=2)
    assert texts(conversation)[0] == OVERVIEW + region_introduction(2) + "What is region1?"
    assert used(conversation, made) == [2, 4]


def test_positive_and_negative_questions_mark_the_region_each_time():
    turns = ["Is <region1> a dog?", "Yes.", "Is <region1> beside <region2>?", "No."]
    made = record("osprey-lvis-positive-negative", ["", ""], turns)
    conversation = conversation_of(made, PICTURE, prompt_style="published")
    assert texts(conversation) == [OVERVIEW + "Is <mask> a dog?", "Yes.", "Is <mask> beside <mask>?", "No."]
    assert used(conversation, made) == [1, 1, 2]
    clean = conversation_of(made, PICTURE, paraphrase=False)
    suffix = " Answer with yes or no."
    assert texts(clean)[::2] == [OVERVIEW + "Is <mask> a dog?" + suffix, "Is <mask> beside <mask>?" + suffix]


def test_detailed_descriptions_are_asked_one_region_after_another():
    turns = ["<region1>", "A red car.", "<region2>", "A dog, <5 years old>."]
    made = record("osprey-detailed-description", ["", ""], turns)
    question = "Can you provide me with a detailed description of the region in the picture marked by <mask>?"
    assert published(made, paraphrase=False) == [
        OVERVIEW + question,
        "A red car.",
        question,
        "A dog, <5 years old>.",
    ]
    drawn = {published(made, epoch=epoch)[2] for epoch in range(300)}
    assert drawn == set(PUBLISHED_FORMS[made.source].region_questions)


def test_visual_genome_asks_three_regions_in_random_order():
    made = record("visual-genome", [""] * 6, [text for n in range(1, 7) for text in (f"<region{n}>", f"thing {n}")])
    orders = set()
    for epoch in range(60):
        first, *others = published(made, epoch=epoch, paraphrase=False)[::2]
        question = "Give me a short description of <mask>. Answer the question using a short phrase."
        assert (first, others) == (OVERVIEW + question, [question] * 2)
        orders.add(tuple(published(made, epoch=epoch)[1::2]))
    assert len(orders) > 20


def test_vcr_as_published():
    made = record(
        "vcr",
        ["person", "cat", "dog"],
        ["Why is <region2> near <region1> < here?", "<region2> feeds <region3>."],
        rationale="<region3> eats.",
    )
    conversation = conversation_of(made, PICTURE, prompt_style="published", paraphrase=False)
    assert texts(conversation) == [
        DOTTED + "Given region1 <mask>,region2 <mask>,region3 <mask>,Why is dog at region2 near cat at region1 < here?",
        "dog at region2 feeds dog at region3.",
        "why?",
        "dog at region3 eats.",
    ]
    assert used(conversation, made) == [1, 2, 3]
    lead_ins = {published(made, epoch=epoch)[0].split(",region2")[0] for epoch in range(100)}
    assert {DOTTED + "Given region1 <mask>", DOTTED + "There are region1 <mask>"} < lead_ins
    assert len(lead_ins) == 7


@pytest.mark.parametrize("source", ["panoptic", "cityscapes"])
def test_segments_are_asked_as_in_the_published_evaluation(source):
    assert published(record(source, ["sky"])) == [DOTTED + "What is in <mask>? Using a short phrase.", "sky"]


@pytest.mark.parametrize("style", ["clean", "published"])
def test_image_level_turns_stay_as_they_are(processor, style):
    turns = ["Is 3 < 4 > 2?\n1. yes\n2. no", "Yes <b>3</b> < 4.", "Why?", "It is."]
    made = RegionRecord("llava:1", "llava", "a.jpg", HEIGHT, WIDTH, (), record("llava", turns=turns).turns)
    conversation = conversation_of(made, PICTURE, prompt_style=style)
    assert texts(conversation) == turns
    assert conversation[0]["content"][0] == {"type": "image", "image": PICTURE, "regions": []}
    alone = RegionRecord("llava:2", "llava", "", 0, 0, (), made.turns)
    conversation = conversation_of(alone, None, prompt_style=style)
    assert [message["content"] for message in conversation] == turns
    batch = processor.prepare([conversation], return_labels=True)
    assert "pixel_values" not in batch
    asks_the_picture = RegionRecord("llava:3", "llava", "", 0, 0, (), (Turn("user", ""), Turn("assistant", "A cat.")))
    with pytest.raises(ValueError, match=r"asks about the picture.*record llava:3"):
        conversation_of(asks_the_picture, None, prompt_style=style)


# --- clean wording ----------------------------------------------------------------------------------------------------


def test_vcr_in_clean_words():
    made = record(
        "vcr", ["person", "person", "dog"], ["Why is <region2> sad?", "Its <dog> ran."], rationale="<region3> is away."
    )
    conversation = conversation_of(made, PICTURE, paraphrase=False)
    assert texts(conversation) == [
        OVERVIEW + region_introduction(2) + "Why is region1 sad?",
        "Its <dog> ran.",
        "Why do you think so?",
        "region2 is away.",
    ]
    assert used(conversation, made) == [2, 3]
    without = conversation_of(made, PICTURE, paraphrase=False, max_regions=1)
    assert texts(without) == [OVERVIEW + "Why is <mask> sad?", "Its <dog> ran."]


def test_a_question_that_says_how_to_answer_gets_no_suffix():
    turns = ["What is <region1>?", "cat", "Is <region2> red? Answer yes or no.", "no"]
    made = record("osprey-short-form", ["", ""], turns)
    assert texts(conversation_of(made, PICTURE, paraphrase=False))[::2] == [
        OVERVIEW + "What is <mask>? Answer with a single word or a short phrase.",
        "Is <mask> red? Answer yes or no.",
    ]
    assert published(made)[2] == "Is region2 red? Answer yes or no." + SHORT


def test_a_dialogue_that_never_says_which_region_introduces_them_all():
    made = record("osprey-conversation", ["", ""], ["What are they doing?", "Playing."])
    conversation = conversation_of(made, PICTURE)
    assert texts(conversation)[0] == OVERVIEW + region_introduction(2) + "What are they doing?"
    assert used(conversation, made) == [1, 2]


def test_names_are_answers_without_their_marks():
    names = ["dog:ear", "water_bottle"]
    assert sorted(texts(conversation_of(record("paco", names), PICTURE))[1::2]) == ["dog ear", "water bottle"]
    assert sorted(texts(conversation_of(record("custom", names), PICTURE))[1::2]) == names


def test_own_data_is_asked_for_names_or_for_captions():
    by_name = texts(conversation_of(record("custom", ["cat"]), PICTURE))
    by_caption = texts(conversation_of(record("custom", ["cat"], ["<region1>", "a cat asleep"]), PICTURE))
    assert by_name[0].removeprefix(OVERVIEW) in banks.CATEGORY_QUESTIONS and by_name[1] == "cat"
    assert by_caption[0].removeprefix(OVERVIEW) in banks.DESCRIPTION_QUESTIONS and by_caption[1] == "a cat asleep"


def test_open_questions_come_last_after_all_turns():
    made = record("ferret-bench", [""] * 3, ["What is <region1>?", "A cat", "And <region2> beside <region3>?"])
    conversation = conversation_of(made, PICTURE, max_regions=1)
    assert [message["role"] for message in conversation] == ["user", "assistant", "user"]
    assert texts(conversation)[-1] == "And <mask> beside <mask>?"
    pope = RegionRecord("pope:1", "pope", "a.jpg", HEIGHT, WIDTH, (), (Turn("user", "Is there a dog?"),))
    assert published(pope) == ["Is there a dog?"]


# --- all sources ------------------------------------------------------------------------------------------------------


def test_every_source_has_clean_wording_and_styles_are_checked():
    assert set(CLEAN_FORMS) == set(NAMED_SOURCES) >= set(PUBLISHED_FORMS)
    assert set(SOURCES) <= set(CLEAN_FORMS)
    assert prompt_form("captions", "published") == prompt_form("captions")
    with pytest.raises(ValueError, match="unknown prompt style 'Published'; choose from clean, published"):
        prompt_form("coco", "Published")


@pytest.mark.parametrize(("forms", "source"), [(f, s) for f in (CLEAN_FORMS, PUBLISHED_FORMS) for s in f])
def test_every_wording_holds_exactly_its_placeholders(forms, source):
    form = forms[source]
    about_regions = (*form.region_questions, *form.name_questions)
    about_none = (form.lead, *form.picture_questions, *form.explanation_questions, *form.suffixes)
    assert form.region_questions and form.picture_questions and form.suffixes
    assert all(question.count("<mask>") == 1 for question in about_regions)
    assert all(lead_in.count("<regions>") == 1 for lead_in in form.lead_ins)
    assert not any("<mask>" in text or "<regions>" in text for text in about_none)
    assert not any("<image>" in text for text in (*about_regions, *about_none, *form.lead_ins))
    assert all(suffix == "" or re.match(r" \S", suffix) for suffix in form.suffixes)
    for bank in (form.region_questions, form.picture_questions, form.explanation_questions, form.suffixes):
        assert len(set(bank)) == len(bank)


def sample_records() -> list[RegionRecord]:
    dialogue = ["<region2>", "a dog", "What of <region1>?", "<region1> is red.", "", "Two dogs."]
    plain = [record(source, ["red ball", "dog", "cat"]) for source in NAMED_SOURCES]
    return plain + [record(source, ["", "", ""], dialogue, 2, rationale="see it") for source in NAMED_SOURCES]


@pytest.mark.parametrize("style", ["clean", "published"])
def test_the_processor_takes_every_form(processor, style):
    conversations = [conversation_of(made, PICTURE, prompt_style=style, epoch=4) for made in sample_records()]
    batch = processor.prepare(conversations, return_labels=True)
    marks = sum(text.count("<mask>") for conversation in conversations for text in texts(conversation))
    assert len(batch["region_coverage"]) == marks > 0


def samples(records: list[RegionRecord]) -> list[list]:
    """Four epochs of every record in both styles."""
    return [
        [conversation_of(made, None, epoch=epoch, prompt_style=style) for epoch in range(4)]
        for made in records
        for style in ("clean", "published")
    ]


SAMPLES_OF_ANOTHER_PROCESS = """
import json, sys
from data_pipelines.conversations import conversation_of
from data_pipelines.records import record_from_row
json.dump([
    [conversation_of(record_from_row(row), None, epoch=epoch, prompt_style=style) for epoch in range(4)]
    for row in json.load(sys.stdin)
    for style in ("clean", "published")
], sys.stdout)
"""


def test_samples_differ_by_epoch_and_are_the_same_in_every_process():
    records = sample_records()
    expected = json.loads(json.dumps(samples(records)))
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", SAMPLES_OF_ANOTHER_PROCESS],
            input=json.dumps([record_to_row(made) for made in records]),
            cwd=Path(__file__).resolve().parents[1],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == expected
    varying = [epochs for epochs in expected if epochs[0] not in epochs[1:]]
    assert len(varying) > len(expected) / 2
