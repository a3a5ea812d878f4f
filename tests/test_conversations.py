"""From records to conversations: wording, order, which regions travel, and that every choice can be made again."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.conversations import conversation_of
from data_pipelines.dataset import ConversationDataset
from data_pipelines.prepare import prepare
from data_pipelines.prompts import CLEAN_FORMS
from data_pipelines.records import Region, RegionRecord, Turn
from osprey_tp.prompts import CATEGORY_QUESTION, OVERVIEW, SHORT_DESCRIPTION_QUESTION

from .annotation_files import (
    HEIGHT,
    WIDTH,
    box_mask,
    compressed,
    write_captions,
    write_picture,
    write_referring,
    write_simple_instances,
)
from .tiny_models import tiny_processor_and_config


def regions(count: int) -> tuple[Region, ...]:
    return tuple(Region(compressed(box_mask(n, 2, n + 3, 9)), f"thing {n + 1}") for n in range(count))


def record(source: str = "coco", count: int = 4, turns=(), number: int = 1) -> RegionRecord:
    turns = tuple(Turn("user" if index % 2 == 0 else "assistant", text) for index, text in enumerate(turns))
    return RegionRecord(f"{source}:{number}", source, "a.jpg", HEIGHT, WIDTH, regions(count), turns)


def exchanges(conversation) -> list[tuple[str, str]]:
    texts = [
        message["content"] if isinstance(message["content"], str) else message["content"][1]["text"]
        for message in conversation
    ]
    return list(zip(texts[::2], texts[1::2], strict=True))


def used_masks(conversation) -> list[dict]:
    return conversation[0]["content"][0]["regions"]


def test_every_region_is_asked_about_once_in_the_order_of_the_masks():
    made = record(count=6)
    conversation = conversation_of(made, "a.jpg")
    assert [message["role"] for message in conversation] == ["user", "assistant"] * 6
    assert conversation[0]["content"][0]["image"] == "a.jpg"
    answers = [answer for _, answer in exchanges(conversation)]
    name_of = {region.segmentation["counts"]: region.name for region in made.regions}
    assert [name_of[mask["counts"]] for mask in used_masks(conversation)] == answers
    assert sorted(answers) == sorted(region.name for region in made.regions)
    assert all(question.count("<mask>") == 1 for question, _ in exchanges(conversation))
    assert exchanges(conversation)[0][0].startswith(OVERVIEW)
    assert not any(OVERVIEW in question for question, _ in exchanges(conversation)[1:])


def test_a_sample_can_be_made_again_and_epochs_differ():
    made = record(count=6)
    assert conversation_of(made, None) == conversation_of(made, None)
    orders = {tuple(answer for _, answer in exchanges(conversation_of(made, None, epoch=epoch))) for epoch in range(5)}
    assert len(orders) > 1
    wordings = {exchanges(conversation_of(made, None, epoch=epoch))[0][0] for epoch in range(200)}
    assert wordings == {OVERVIEW + question for question in CLEAN_FORMS["coco"].region_questions}
    plain = {exchanges(conversation_of(made, None, epoch=epoch, paraphrase=False))[0][0] for epoch in range(20)}
    assert plain == {OVERVIEW + CATEGORY_QUESTION}


def test_limits_on_regions_hold_and_only_used_masks_travel():
    assert len(used_masks(conversation_of(record(count=30), None))) == 20
    conversation = conversation_of(record(count=30), None, max_regions=3)
    assert len(used_masks(conversation)) == len(exchanges(conversation)) == 3
    seen = {
        answer
        for epoch in range(60)
        for _, answer in exchanges(conversation_of(record(), None, epoch=epoch, max_regions=1))
    }
    assert len(seen) == 4


def test_a_region_with_several_questions_gets_one_of_them():
    turns = ["<region1>", "a red ball", "What colour is <region1>?", "red", "What shape is <region1>?", "ball"]
    counts = Counter()
    for epoch in range(400):
        (exchange,) = exchanges(conversation_of(record("synthetic", 1, turns), None, epoch=epoch, paraphrase=False))
        counts[exchange] += 1
    assert set(counts) == {
        (OVERVIEW + CATEGORY_QUESTION, "a red ball"),
        (OVERVIEW + "What colour is <mask>?", "red"),
        (OVERVIEW + "What shape is <mask>?", "ball"),
    }
    assert 150 < counts[(OVERVIEW + CATEGORY_QUESTION, "a red ball")] < 250


def test_a_dialogue_keeps_its_order_and_names_regions_it_comes_back_to():
    turns = ["What is <region3>?", "A cat beside <region1>.", "And is <region3> asleep?", "Yes."]
    conversation = conversation_of(record("dialogue", 4, turns), None)
    assert exchanges(conversation) == [
        (
            OVERVIEW + "There are 2 part regions in the picture: region1<mask>,region2<mask>. What is region2?",
            "A cat beside region1.",
        ),
        ("And is region2 asleep?", "Yes."),
    ]
    made = regions(4)
    assert used_masks(conversation) == [made[0].segmentation, made[2].segmentation]


def test_a_dialogue_that_mentions_each_region_once_needs_no_names():
    turns = ["Is <region2> left of <region1>?", "Yes.", "Is <region3> red?", "No."]
    conversation = conversation_of(record("dialogue", 4, turns), None)
    assert exchanges(conversation) == [
        (OVERVIEW + "Is <mask> left of <mask>?", "Yes."),
        ("Is <mask> red?", "No."),
    ]
    made = regions(4)
    assert used_masks(conversation) == [made[1].segmentation, made[0].segmentation, made[2].segmentation]
    assert exchanges(conversation_of(record("dialogue", 4, turns), None, max_regions=2)) == [
        (OVERVIEW + "Is <mask> left of <mask>?", "Yes.")
    ]


def test_a_caption_is_asked_for_without_regions():
    made = RegionRecord("captions:1", "captions", "a.jpg", 4, 4, turns=(Turn("user", ""), Turn("assistant", "A cat.")))
    conversation = conversation_of(made, None)
    assert used_masks(conversation) == []
    assert exchanges(conversation)[0][1] == "A cat."
    assert "<mask>" not in exchanges(conversation)[0][0]


def test_the_published_wording_of_coco():
    (first, second) = exchanges(conversation_of(record(count=2), None, prompt_style="published"))
    assert first[0] == (
        "In the conversation below, you simply answer the category name based on what you see in the imagery inside a "
        "particular region. I will give you only one region each time.\n<mask>"
    )
    assert second[0] == "<mask>"


@pytest.mark.parametrize(
    ("source", "ending"),
    [
        ("refcoco", ", as well as its position within the image and its basic attributes.<mask>"),
        ("refcocog", ", as well as its position within the image and its basic attributes.<mask>"),
        ("refcoco+", " and its basic attibuts, you should not give its position within the image.<mask>"),
    ],
)
def test_the_published_wording_of_referring_expressions(source, ending):
    made = record(source, 1, ["<region1>", "left cat"])
    (exchange,) = exchanges(conversation_of(made, None, prompt_style="published"))
    assert exchange == (
        "I will provide you with only one region containing only one object, although there may be other objects "
        "present in the image. It is recommended that you describe the object's relative position with respect to "
        "other objects in the image" + ending,
        "left cat",
    )
    clean = exchanges(conversation_of(made, None, paraphrase=False))
    assert clean == [(OVERVIEW + SHORT_DESCRIPTION_QUESTION, "left cat")]


def test_bad_records_are_named():
    with pytest.raises(ValueError, match=r"<region7>, 4 regions \(record coco:1\)"):
        conversation_of(record(turns=["What is <region7>?", "A cat."]), None)
    with pytest.raises(ValueError, match=r"<region0>, 4 regions \(record coco:1\)"):
        conversation_of(record(turns=["What is <region0>?", "A cat."]), None)
    with pytest.raises(ValueError, match=r"nothing to ask.*record coco:1"):
        conversation_of(record(count=0), None)


@pytest.fixture
def folders(tmp_path):
    made = {}
    for source, write in (("coco", write_simple_instances), ("captions", write_captions), ("refcoco", write_referring)):
        (tmp_path / source).mkdir()
        out = tmp_path / source / "records"
        prepare(source, write(tmp_path / source), tmp_path / source / "images", out, progress=False)
        made[source] = out
    return made


@pytest.mark.parametrize("style", ["clean", "published"])
def test_the_processor_takes_every_sample(folders, style):
    processor, _ = tiny_processor_and_config()
    samples = ConversationDataset(list(folders.values()), prompt_style=style)
    batch = processor.prepare([samples[index]["conversation"] for index in range(len(samples))], return_labels=True)
    assert len(samples) == 3 + 2 + 1
    assert (batch["input_ids"] == processor.region_token_id).sum() == len(batch["region_image_index"]) == 3 * 2 + 1
    assert (batch["region_coverage"].sum(dim=1) > 0).all()
    assert (batch["labels"] != -100).any(dim=1).all()
    answers = batch["labels"].masked_fill(batch["labels"] == -100, processor.tokenizer.pad_token_id)
    assert any("cat" in text for text in processor.tokenizer.batch_decode(answers))


def test_a_mixture_repeats_and_draws_by_weight(folders):
    samples = ConversationDataset({folders["coco"]: 2, folders["captions"]: 0.5, folders["refcoco"]: 1}, seed=3)
    assert len(samples) == 6 + 1 + 1
    counts = Counter(samples.record(index)[1].id for index in range(len(samples)))
    assert counts.pop("refcoco:0") == 1
    assert [counts.pop(f"coco:{number}") for number in (1, 2, 3)] == [2, 2, 2]
    assert list(counts.values()) == [1]
    drawn = set()
    for epoch in range(10):
        drawn |= {samples.record((epoch, place))[1].id for place in range(8)}
    assert {"captions:11", "captions:12"} <= drawn


def test_the_order_depends_on_seed_and_epoch_alone(folders):
    def order(seed, epoch, **options):
        samples = ConversationDataset(list(folders.values()), seed=seed, **options)
        return [samples[epoch, place]["id"] for place in range(len(samples))]

    assert order(0, 4) == order(0, 4)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) > 4
    assert order(0, 4, shuffle=False)[:3] == ["coco:1", "coco:2", "coco:3"]


def test_two_passes_over_a_record_in_one_epoch_differ(folders):
    samples = ConversationDataset([(folders["coco"], 12)], shuffle=False)
    texts = {exchanges(samples[index]["conversation"])[0][0] for index in range(0, len(samples), 3)}
    assert len(texts) > 1


def test_worker_processes_give_the_same_samples(folders):
    samples = ConversationDataset(list(folders.values()), seed=1)
    loader = torch.utils.data.DataLoader(samples, num_workers=1, batch_size=None)
    for index, loaded in enumerate(loader):
        assert loaded["id"] == samples[index]["id"]
        assert exchanges(loaded["conversation"]) == exchanges(samples[index]["conversation"])
        pictures = [sample["conversation"][0]["content"][0]["image"] for sample in (loaded, samples[index])]
        assert np.array_equal(*map(np.asarray, pictures))


def test_pictures_that_do_not_fit_are_named_with_their_record(folders):
    images = folders["coco"].parent / "images"
    samples = ConversationDataset([folders["coco"]], shuffle=False)
    assert isinstance(samples[0]["conversation"][0]["content"][0]["image"], Image.Image)
    write_picture(images, "000000000001.jpg", 10, 20)
    with pytest.raises(ValueError, match=r"10 x 20 pixels .*the record says 40 x 60.* \(record coco:1\)"):
        samples[0]
    (images / "000000000002.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"record coco:2\)"):
        samples[1]
    for beyond in (3, (1, 3), (-1, 0), -1):
        with pytest.raises(IndexError):
            samples[beyond]


def test_wrong_arguments_of_a_data_set_are_named(folders, tmp_path):
    with pytest.raises(ValueError, match="at least one folder"):
        ConversationDataset([])
    for weight in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="weights are positive"):
            ConversationDataset([(folders["coco"], weight)])
    with pytest.raises(ValueError, match="not a folder of records"):
        ConversationDataset([tmp_path])
    with pytest.raises(ValueError, match="unknown prompt style"):
        ConversationDataset([folders["coco"]], prompt_style="old")
