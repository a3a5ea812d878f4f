"""Lengths that are told without a picture are those of the tensors that training gets."""

import numpy as np
import pytest
from PIL import Image

from data_pipelines.conversations import conversation_of
from data_pipelines.lengths import TokenCounts, Wording, load_processor, longest_sample, sample_length
from data_pipelines.records import Region, RegionRecord, Turn
from osprey_tp.processing import chat_template

from .annotation_files import box_mask, compressed
from .tiny_models import save_tiny_model, tiny_processor_and_config

SIZES = [(40, 60), (300, 50), (31, 200), (48, 48)]


def records(height: int, width: int) -> list[RegionRecord]:
    regions = tuple(
        Region(compressed(box_mask(x, 2, x + 5, 20, height, width)), f"naïve cat {x}") for x in range(0, 30, 10)
    )
    dialogue = (Turn("user", "Is <region1> like <region3>? 犬"), Turn("assistant", "<region3> is larger.\n"))
    more = (Turn("user", ""), Turn("assistant", "A picture."))

    def record(number: int, source: str, **fields) -> RegionRecord:
        return RegionRecord(f"{source}:{number}", source, "1.png", height, width, **fields)

    return [
        record(1, "coco", regions=regions),
        record(2, "osprey-conversation", regions=regions, turns=dialogue),
        record(3, "captions", turns=more),
        record(4, "llava", turns=(Turn("user", "What?"), Turn("assistant", "That."), *dialogue[:0])),
        RegionRecord("llava:5", "llava", "", 0, 0, turns=(Turn("user", "Hello?"), Turn("assistant", "Hello."))),
    ]


@pytest.mark.parametrize("language", ["llama", "qwen3"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "wording", [Wording(), Wording("published", epoch=3, max_regions=2, paraphrase=False)], ids=str
)
def test_lengths_are_those_of_the_prepared_tensors(language, size, wording):
    processor, config = tiny_processor_and_config(language=language)
    picture = Image.fromarray(np.zeros((*size, 3), np.uint8))
    for record in records(*size):
        conversation = conversation_of(record, picture if record.has_image else None, **vars(wording))
        batch = processor.prepare([conversation], return_labels=True)
        counts = sample_length(record, processor, wording)
        assert counts.total == batch["input_ids"].shape[1]
        assert counts.visual == (batch["input_ids"] == config.image_token_id).sum()
        assert counts.regions == (batch["region_coverage"].shape[0] if record.has_image else 0)
        assert counts.answers == (batch["labels"] != -100).sum() > 0
        assert counts.text == counts.total - counts.visual - counts.regions


def test_an_open_question_is_as_long_as_what_generation_is_given():
    processor, _ = tiny_processor_and_config()
    record = RegionRecord("pope:1", "pope", "1.png", 40, 60, turns=(Turn("user", "Is there a dog?"),))
    picture = Image.new("RGB", (60, 40))
    batch = processor.prepare([conversation_of(record, picture)], add_generation_prompt=True)
    counts = sample_length(record, processor)
    assert (counts.total, counts.answers) == (batch["input_ids"].shape[1], 0)


def test_masks_are_not_looked_at_and_errors_are_those_of_the_conversation():
    processor, _ = tiny_processor_and_config()
    sound, broken = records(40, 60)[0], Region({"size": [40, 60], "counts": "~~"}, "x")
    counts = sample_length(RegionRecord("coco:1", "coco", "1.png", 40, 60, (broken,)), processor)
    assert counts.regions == 1
    with pytest.raises(ValueError, match=r"region9.*record coco:1"):
        turns = (Turn("user", "Is <region9> red?"), Turn("assistant", "Yes."))
        sample_length(RegionRecord("coco:1", "coco", "1.png", 40, 60, sound.regions, turns), processor)


def test_a_template_that_marks_no_answers_teaches_nothing():
    processor, _ = tiny_processor_and_config(language="qwen3")
    record = records(40, 60)[3]
    taught = sample_length(record, processor)
    processor.chat_template = (
        chat_template("chatml").replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    )
    assert sample_length(record, processor) == TokenCounts(taught.total, taught.visual, 0, 0)


def test_processor_and_longest_sample_come_from_the_model_folder(tmp_path):
    save_tiny_model(tmp_path / "model")
    assert longest_sample(tmp_path / "model") == 2048
    assert load_processor(tmp_path / "model", "plain").chat_template == chat_template("plain")
    processor = load_processor(tmp_path / "model")
    assert processor.chat_template == chat_template("vicuna_v1")
    processor.tokenizer.model_max_length = 100
    assert longest_sample(tmp_path / "model") == 100
    for call in (load_processor, longest_sample):
        with pytest.raises(FileNotFoundError, match="name a folder that training wrote"):
            call(tmp_path)
