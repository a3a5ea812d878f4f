"""Sessions: the same answers as plain `generate`, whatever is cached, batched or streamed."""

import numpy as np
import pytest
import torch
from PIL import Image

from osprey_tp import RegionDescriber
from osprey_tp.prompts import OVERVIEW, region_introduction

from .tiny_models import LANGUAGES, TOWERS, save_tiny_model, tiny_describer

families = pytest.mark.parametrize(
    ("tower", "language"), [(tower, language) for tower in TOWERS for language in LANGUAGES]
)
QUESTION = "what is the region <mask> of the picture"


def random_picture(seed: int, height: int = 90, width: int = 150) -> tuple[Image.Image, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 255, size=(height, width, 3), dtype=np.uint8))
    masks = []
    for _ in range(5):
        mask = np.zeros((height, width), bool)
        top, left = int(rng.integers(0, height - 5)), int(rng.integers(0, width - 5))
        mask[top : top + int(rng.integers(1, 60)), left : left + int(rng.integers(1, 60))] = True
        masks.append(mask)
    return image, masks


@torch.no_grad()
def plain_answer(describer: RegionDescriber, image: Image.Image, regions: list, question: str, **options) -> str:
    picture = {"type": "image", "image": image, "regions": regions}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": OVERVIEW + question}]}]
    batch = describer.processor.prepare([messages], add_generation_prompt=True)
    generated = describer.model.generate(**batch, max_new_tokens=12, **({"do_sample": False} | options))
    return describer.processor.decode_answers(generated, batch["input_ids"].shape[1])[0]


@families
def test_ask_equals_plain_generate(tower, language):
    describer = tiny_describer(tower, language)
    different = set()
    for seed, size in enumerate([(90, 150), (40, 40), (30, 200)]):
        image, masks = random_picture(seed, *size)
        session = describer.open(image)
        expected = [plain_answer(describer, image, [mask], QUESTION) for mask in masks]
        assert session.ask(masks, QUESTION, max_new_tokens=12) == expected
        assert session.ask(masks, QUESTION, max_new_tokens=12, batch_size=2) == expected
        different.update(expected)
    assert len(different) > 1


@families
def test_questions_of_different_lengths_share_a_batch(tower, language):
    describer = tiny_describer(tower, language)
    image, masks = random_picture(1)
    questions = [f"what {'large ' * count}region <mask>" for count in range(len(masks))]
    expected = [plain_answer(describer, image, [m], q) for m, q in zip(masks, questions, strict=True)]
    assert describer.open(image).ask(masks, questions, max_new_tokens=12) == expected


def test_regions_together_and_beams_equal_plain_generate():
    describer = tiny_describer()
    image, masks = random_picture(2)
    session = describer.open(image)
    question = "near <mask> and <mask> the <mask>"
    expected = plain_answer(describer, image, masks[:3], question)
    assert session.ask(masks[:3], question, together=True, max_new_tokens=12) == [expected]
    beams = [plain_answer(describer, image, [mask], QUESTION, num_beams=3) for mask in masks[:2]]
    assert session.ask(masks[:2], QUESTION, max_new_tokens=12, num_beams=3) == beams


def test_stream_gives_the_answer_in_pieces():
    describer = tiny_describer()
    image, masks = random_picture(3)
    session = describer.open(image)
    streamed = [list(session.stream([mask], QUESTION, max_new_tokens=40)) for mask in masks]
    assert ["".join(pieces).strip() for pieces in streamed] == session.ask(masks, QUESTION, max_new_tokens=40)
    assert max(map(len, streamed)) > 1


def test_a_closed_stream_stops_and_the_session_goes_on():
    describer = tiny_describer()
    image, masks = random_picture(3)
    session = describer.open(image)
    expected = session.ask(masks[:1], QUESTION, max_new_tokens=12)
    stream = session.stream(masks[:1], QUESTION, max_new_tokens=1000)
    next(stream)
    stream.close()
    assert session.ask(masks[:1], QUESTION, max_new_tokens=12) == expected


def test_an_error_while_streaming_reaches_the_reader():
    describer = tiny_describer()
    image, masks = random_picture(3)
    with pytest.raises(ValueError, match="temperature"):
        list(describer.open(image).stream(masks[:1], QUESTION, do_sample=True, temperature=-1.0))


def test_chat_keeps_turns_and_region_names():
    describer = tiny_describer()
    image, masks = random_picture(4)
    session = describer.open(image)
    first = session.chat("what is region1", masks[:2], max_new_tokens=6)
    second = session.chat("and region3", masks[2:3], max_new_tokens=6)
    assert session.region_names == ["region1", "region2", "region3"]
    assert [role for role, _ in session.turns] == ["user", "assistant", "user", "assistant"]
    assert session.turns[2][1] == "There are 1 part region in the picture: region3<mask>. and region3"
    picture = {"type": "image", "image": image, "regions": masks[:3]}
    opening = {"type": "text", "text": OVERVIEW + region_introduction(2) + "what is region1"}
    messages = [
        {"role": "user", "content": [picture, opening]},
        {"role": "assistant", "content": first},
        {"role": "user", "content": region_introduction(1, first=2) + "and region3"},
    ]
    batch = describer.processor.prepare([messages], add_generation_prompt=True)
    generated = describer.model.generate(**batch, max_new_tokens=6, do_sample=False)
    assert describer.processor.decode_answers(generated, batch["input_ids"].shape[1])[0] == second
    session.reset_chat()
    assert session.turns == [] and session.region_names == []


def test_a_chat_refuses_names_it_does_not_know():
    image, masks = random_picture(4)
    session = tiny_describer().open(image)
    with pytest.raises(ValueError, match="names region3, but the regions of this chat are: region1, region2"):
        session.chat("is region1 left of region3", masks[:2])
    assert session.turns == []


@families
@torch.no_grad()
def test_scores_equal_one_forward_pass_for_each_pair(tower, language):
    describer = tiny_describer(tower, language)
    image, masks = random_picture(5)
    texts = ["a red ring", "blue", "the large picture of a region"]
    scores = describer.open(image).score(texts, masks[:3], QUESTION, batch_size=4)
    expected = np.zeros_like(scores)
    for row, mask in enumerate(masks[:3]):
        for col, text in enumerate(texts):
            picture = {"type": "image", "image": image, "regions": [mask]}
            messages = [
                {"role": "user", "content": [picture, {"type": "text", "text": OVERVIEW + QUESTION}]},
                {"role": "assistant", "content": text},
            ]
            batch = describer.processor.prepare([messages], return_labels=True)
            answered = int((batch["labels"][:, 1:] != -100).sum())
            expected[row, col] = -describer.model(**batch).loss.item() * answered
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_asking_does_not_change_later_answers():
    describer = tiny_describer()
    image, masks = random_picture(6)
    session = describer.open(image)
    before = session.ask(masks, QUESTION, max_new_tokens=8)
    session.score(["blue"], masks[:1], QUESTION)
    session.chat("hello region1", masks[:1], max_new_tokens=4)
    list(session.stream(masks[:1], QUESTION, max_new_tokens=4))
    assert session.ask(masks, QUESTION, max_new_tokens=8) == before


@pytest.mark.parametrize(
    ("regions", "question", "message"),
    [
        ([{"box": [0, 0, 9, 9]}], "what is it?", "holds 0 <mask> placeholders where 1 is needed"),
        ([{"box": [0, 0, 9, 9]}], "<mask> or <mask>", "holds 2 <mask> placeholders where 1 is needed"),
        ([{"box": [0, 0, 9, 9]}], ["<mask>", "<mask>"], "2 questions, 1 regions"),
        ([{"box": [3, 3, 3, 9]}], "<mask>", "box"),
        ([np.ones((4, 4), bool)], "<mask>", "4 x 4"),
    ],
)
def test_bad_questions_and_regions_are_named(regions, question, message):
    session = tiny_describer().open(random_picture(0)[0])
    with pytest.raises(ValueError, match=message):
        session.ask(regions, question)


def test_no_regions_give_no_answers():
    assert tiny_describer().open(random_picture(0)[0]).ask([], QUESTION) == []


def test_loads_a_folder_and_names_what_is_missing(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    image, masks = random_picture(0)
    expected = tiny_describer().open(image).ask(masks, QUESTION, max_new_tokens=8)
    assert (
        RegionDescriber.from_pretrained(folder, device="cpu").open(image).ask(masks, QUESTION, max_new_tokens=8)
        == expected
    )
    (folder / "processor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no processor_config.json; save the processor beside the model"):
        RegionDescriber.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match="no model folder"):
        RegionDescriber.from_pretrained(tmp_path / "elsewhere")


def test_a_conversation_that_the_caller_keeps_goes_as_the_chat_does():
    describer = tiny_describer()
    image, masks = random_picture(4)
    session = describer.open(image)
    first = session.chat("what is region1", masks[:2], max_new_tokens=6)
    second = session.chat("and region3", masks[2:3], max_new_tokens=6)
    turns = session.turns
    session.reset_chat()
    assert "".join(session.converse(turns[:1], masks[:2], max_new_tokens=6)).strip() == first
    assert "".join(session.converse(turns[:3], masks[:3], max_new_tokens=6)).strip() == second
    assert session.turns == []


@pytest.mark.parametrize("roles", [(), ("assistant",), ("user", "assistant"), ("user", "user", "user")])
def test_a_conversation_goes_by_turns(roles):
    session = tiny_describer().open(random_picture(1)[0])
    with pytest.raises(ValueError, match="turns alternate"):
        session.converse([(role, "hello") for role in roles])


def test_a_conversation_has_a_placeholder_for_every_region():
    image, masks = random_picture(1)
    session = tiny_describer().open(image)
    with pytest.raises(ValueError, match="0 <mask> placeholders, 1 regions"):
        session.converse([("user", "what is this")], masks[:1])
    with pytest.raises(ValueError, match="1 <mask> placeholders, 0 regions"):
        session.converse([("user", "hello"), ("assistant", "hi"), ("user", "what is <mask>")])
