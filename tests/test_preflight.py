"""What is told before the first step: damaged shards, missing pictures; and what the first look at a sample shows."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines import preflight
from data_pipelines.dataset import ConversationDataset
from data_pipelines.records import RecordFolder, RegionRecord, Turn
from data_pipelines.writing import RecordWriter
from osprey_tp.processing import chat_template
from osprey_tp.training.collator import ConversationCollator
from osprey_tp.training.samples import TolerantDataset, UnusableSample
from osprey_tp.training.self_check import describe_first_sample
from scripts import train

from .test_training_checkpoints import error_of
from .test_training_run import settings, write_records
from .tiny_models import TEMPLATES, save_tiny_model, tiny_processor_and_config

PICTURES = 6


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("prepared"), PICTURES)


@pytest.fixture
def records(prepared: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(prepared.parent, tmp_path / "data") / "records"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("start") / "model")


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 0x40
    file.write_bytes(content)


def test_sound_data_pass(records) -> None:
    assert preflight.check_data(ConversationDataset([records])) == []


def test_a_damaged_shard_is_named_before_the_model_is_trained(records, start, tmp_path, capsys) -> None:
    shard = records / "records-00000.arrow"
    content = shard.read_bytes()
    flip(shard, content.rindex(b"coco:3"))
    assert train.main(settings(start, records, tmp_path / "out")) == 1
    error = error_of(capsys)
    assert error.startswith(f"error: {shard} differs from its checksum in the manifest; it was damaged or changed")
    assert error.endswith("copy the folder again, or prepare it again")
    assert not (tmp_path / "out.unfinished").exists()


def test_a_shard_of_another_size_is_named(records) -> None:
    dataset = ConversationDataset([records])
    with (records / "records-00000.arrow").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match=r"records-00000.arrow has \d+ bytes, the manifest says \d+; it was damaged"):
        preflight.check_data(dataset)


def test_a_shard_that_is_damaged_while_a_run_goes_on_ends_it_in_one_line(records, monkeypatch) -> None:
    dataset = ConversationDataset([records])
    monkeypatch.setattr("data_pipelines.records.record_from_row", lambda row: 1 / 0)
    failed = TolerantDataset(dataset)[0, 0]["failed"]
    assert failed.startswith(f"{records}: record ")
    assert failed.endswith("a shard is damaged: copy the folder again, or prepare it again")


@pytest.mark.parametrize("few", [1, 1000])
def test_missing_pictures_are_found_in_every_folder(few, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(preflight, "FEW_PICTURES", few)
    images = tmp_path / "images"
    names = ["a.png", "b/c.png", "b/d.png", "b/d.png", "gone/e.png"]
    with RecordWriter(tmp_path / "records", source="text", image_root=images) as writer:
        for index, name in enumerate([*names, ""]):
            size = (8, 8) if name else (0, 0)
            turns = (Turn("user", "What is it?"), Turn("assistant", "a cat"))
            writer.add(RegionRecord(f"r:{index}", "text", name, *size, (), turns))
    for name in ("a.png", "b/d.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(images / name)
    folder = RecordFolder.open(tmp_path / "records")
    assert preflight.missing_images(folder) == ["b/c.png", "gone/e.png"]


def test_missing_pictures_stop_a_run_before_it_begins_or_are_told(records, start, tmp_path, capsys) -> None:
    images = records.parent / "images"
    for name in ("2.png", "4.png"):
        (images / name).unlink()
    found = f"2 pictures of {records} are missing in {images}, among them 2.png"
    assert train.main(settings(start, records, tmp_path / "out")) == 1
    error = error_of(capsys)
    assert error == f"error: {found}; restore them, name their folder (`images` of the mixture), or set " + (
        "on_missing_image=skip"
    )
    assert not (tmp_path / "out.unfinished").exists()
    dataset = ConversationDataset([records])
    assert preflight.check_data(dataset, stop_at_missing_images=False) == [f"{found}; their samples will be skipped"]


def with_texts(folder: Path, prepared: Path) -> ConversationDataset:
    """Three text-only records before six with regions, in this order."""
    turns = (Turn("user", "How many legs has a cat?"), Turn("assistant", "four"))
    with RecordWriter(folder / "text", source="text", image_root=folder) as writer:
        for index in range(3):
            writer.add(RegionRecord(f"text:{index}", "text", "", 0, 0, (), turns))
    return ConversationDataset([folder / "text", prepared], shuffle=False)


def test_a_sample_with_regions_is_shown_where_regions_are_learned(prepared, tmp_path) -> None:
    dataset = with_texts(tmp_path, prepared)
    assert preflight.first_telling_sample(dataset, with_regions=False)["id"] == "text:0"
    assert preflight.first_telling_sample(dataset, with_regions=True)["id"] == "coco:0"
    text_only = ConversationDataset([tmp_path / "text"])
    assert preflight.first_telling_sample(text_only, with_regions=True)["id"].startswith("text:")


def test_a_missing_picture_is_passed_by_if_such_samples_are_skipped(records) -> None:
    dataset = ConversationDataset([records], shuffle=False)
    os.truncate(records.parent / "images" / "0.png", 60)
    with pytest.raises(UnusableSample, match=r"\(record coco:0\)"):
        preflight.first_telling_sample(dataset, with_regions=True)
    found = preflight.first_telling_sample(dataset, with_regions=True, skip_missing_images=True)
    assert found["id"] == "coco:1"
    for picture in (records.parent / "images").iterdir():
        os.truncate(picture, 60)
    with pytest.raises(ValueError, match="none of the first 6 samples can be used"):
        preflight.first_telling_sample(dataset, with_regions=True, skip_missing_images=True)


@pytest.mark.parametrize("language", TEMPLATES)
@pytest.mark.parametrize("with_regions", [False, True])
def test_the_first_look_shows_prompt_and_answers_under_each_template(
    language, with_regions, prepared, tmp_path
) -> None:
    processor, _ = tiny_processor_and_config(language=language)
    sample = preflight.first_telling_sample(with_texts(tmp_path, prepared), with_regions=with_regions)
    shown = describe_first_sample(processor, ConversationCollator(processor)([sample])).splitlines()
    end = processor.tokenizer.eos_token
    learned = shown[1].removeprefix("learns:  ").strip("'").strip()
    if with_regions:
        assert learned.replace(" ", "") in {f"blue{end}red{end}", f"red{end}blue{end}"}
        assert "<image>*" in shown[0] and " <mask> " in shown[0]
        assert shown[3].startswith("batch:   tiles") and shown[4].startswith("regions: 2 in the batch")
    else:
        assert learned.replace(" ", "") == f"four{end}"
        assert "How many legs has a cat?" in shown[0]
        assert len(shown) == 3


def test_the_first_look_under_the_template_of_captions(prepared) -> None:
    processor, _ = tiny_processor_and_config()
    processor.chat_template = chat_template("plain")
    picture = Image.fromarray(np.zeros((40, 40, 3), np.uint8))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}]
    conversation = [{"role": "user", "content": content}, {"role": "assistant", "content": "a red cat"}]
    shown = describe_first_sample(
        processor, ConversationCollator(processor)([{"id": "a", "conversation": conversation}])
    )
    sees, learns, *_ = shown.splitlines()
    assert learns == r"learns:  'a red cat\n'"
    assert "What is it?" not in sees and "<image>*" in sees
