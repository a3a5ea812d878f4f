"""Batches of conversations: labels on answers alone, errors that name the record."""

import numpy as np
import pytest
from PIL import Image

from osprey_tp.training.collator import ConversationCollator
from osprey_tp.training.self_check import describe_first_sample

from .tiny_models import tiny_processor_and_config


def sample(name: str, answers: list[str], regions: int | None = None) -> dict:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    boxes = [{"box": [5, 5, 40, 40]}] * (len(answers) if regions is None else regions)
    conversation = []
    for index, answer in enumerate(answers):
        question = {"type": "text", "text": "What is <mask>?"}
        image = [{"type": "image", "image": picture, "regions": boxes}] if index == 0 else []
        conversation.append({"role": "user", "content": [*image, question]})
        conversation.append({"role": "assistant", "content": answer})
    return {"id": name, "conversation": conversation}


def test_only_answers_are_taught() -> None:
    processor, _ = tiny_processor_and_config()
    batch = ConversationCollator(processor)([sample("a", ["one cat", "two"]), sample("b", ["three dogs"])])
    assert batch["labels"].shape == batch["input_ids"].shape == batch["attention_mask"].shape
    taught = [
        processor.tokenizer.decode(ids[labels != -100])
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    ]
    assert [text.replace(" ", "") for text in taught] == ["onecat</s>two</s>", "threedogs</s>"]
    assert batch["region_coverage"].shape[0] == 3
    assert batch["region_image_index"].tolist() == [0, 0, 1]


def test_padding_is_on_the_right_and_taught_nothing() -> None:
    processor, _ = tiny_processor_and_config()
    batch = ConversationCollator(processor)([sample("a", ["one"]), sample("b", ["one", "two", "three"])])
    mask = batch["attention_mask"]
    assert mask[0, 0] == 1 and mask[0, -1] == 0
    assert (batch["labels"][mask == 0] == -100).all()


def test_an_error_names_the_record() -> None:
    processor, _ = tiny_processor_and_config()
    with pytest.raises(ValueError, match=r"1 <mask> placeholders, 2 regions .*\(record coco:7\)"):
        ConversationCollator(processor)([sample("coco:6", ["one"]), sample("coco:7", ["one"], regions=2)])


def test_the_first_sample_is_shown_as_the_model_sees_it() -> None:
    processor, _ = tiny_processor_and_config()
    batch = ConversationCollator(processor)([sample("a", ["one cat"])])
    text = describe_first_sample(processor, batch)
    tokens = int((batch["input_ids"] == processor.image_token_id).sum())
    assert f"<image>*{tokens}" in text
    assert "one cat</s>" in text.splitlines()[1]
    assert "<mask>" in text and "grids (rows x cols)" in text and "regions: 1" in text
