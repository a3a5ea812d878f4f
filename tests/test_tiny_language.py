"""The tiny language model's tokenizer, its features made of words, and the command that trains it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.dataset import ConversationDataset
from data_pipelines.records import RecordFolder, Region, RegionRecord, Turn
from data_pipelines.writing import RecordWriter
from osprey_tp import OspreyTPForConditionalGeneration, OspreyTPProcessor, RegionDescriber
from osprey_tp.masks import to_rle
from osprey_tp.tiny_tower import TinyTowerConfig, TinyTowerModel
from scripts import pretrain_tiny_language_model as pretraining
from scripts.tiny_tokenizer import BYTE_PIECES, CONTROL_PIECES, train_tiny_tokenizer
from scripts.word_features import NamedRegions, WordCollator, WordFeatures, WordSamples, name_batch

TEXTS = ["a striped red ring, a solid blue star.", "What is <mask>? Using only one word."] * 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of 64 x 128 pixels: `red ring` on the left half, `blue star` on the right half."""
    folder = tmp_path_factory.mktemp("data")
    left = np.zeros((64, 128), dtype=bool)
    left[:, :64] = True
    regions = (Region(to_rle(left, 64, 128), "red ring"), Region(to_rle(~left, 64, 128), "blue star"))
    for index in range(2):
        Image.fromarray(np.full((64, 128, 3), 90 * index, dtype=np.uint8)).save(folder / f"{index}.png")
    with RecordWriter(folder / "names", source="coco", image_root=folder) as writer:
        for index in range(2):
            writer.add(RegionRecord(f"coco:{index}", "coco", f"{index}.png", 64, 128, regions, ()))
    with RecordWriter(folder / "texts", source="captions", image_root=folder) as writer:
        turns = (Turn("user", ""), Turn("assistant", "a red ring and a blue star."))
        writer.add(RegionRecord("captions:0", "captions", "0.png", 64, 128, (), turns))
    return folder


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tower")
    torch.manual_seed(0)
    TinyTowerModel(TinyTowerConfig(hidden_size=32, num_hidden_layers=2)).save_pretrained(folder)
    return folder


def test_frequent_words_become_pieces_and_any_text_survives() -> None:
    tokenizer = train_tiny_tokenizer(TEXTS)
    assert tokenizer.convert_ids_to_tokens(list(range(259))) == [*CONTROL_PIECES, *BYTE_PIECES]
    assert tokenizer.tokenize("striped red ring") == ["▁striped", "▁red", "▁ring"]
    for text in ("a solid zebra", "naïve 目 \n end"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)).strip() == text


def test_a_vocabulary_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="259 are control and byte pieces"):
        train_tiny_tokenizer(TEXTS, vocabulary_size=100)


def test_features_say_what_is_where(data: Path, tower: Path) -> None:
    folder = RecordFolder.open(data / "names")
    tokenizer, token_ids = pretraining.make_tokenizer([folder])
    model = pretraining.join(
        TinyTowerModel.from_pretrained(tower),
        pretraining.make_language_model(len(tokenizer)),
        {"scale_factor": 4, **token_ids},
    )
    processor = OspreyTPProcessor.from_config(model.config, tokenizer)
    samples = WordSamples(ConversationDataset([folder]), NamedRegions.collect([folder]))
    batch = WordCollator(processor)([samples[0], samples[1]])
    assert batch["word_image_index"].tolist() == [0, 0, 1, 1]

    features = WordFeatures(model)(batch)
    words = model.get_input_embeddings()

    def said(name: str, placeholder: int = model.config.image_token_id) -> torch.Tensor:
        ids = torch.tensor(tokenizer.encode(name, add_special_tokens=False))
        sum_of_words = torch.nn.functional.layer_norm(words(ids).sum(0), (words.embedding_dim,))
        return sum_of_words * 0.15 + words.weight[placeholder]

    asked = [processor.tokenizer.decode(ids[labels != -100]) for ids, labels in zip(*rows(batch), strict=True)]
    order = [name for text in asked for name in ("red ring", "blue star")[:: 1 if text.startswith("red") else -1]]
    assert torch.allclose(
        features.region_tokens, torch.stack([said(name, model.config.region_token_id) for name in order]), atol=1e-2
    )
    picture = features.pooler_output[0]  # two tiles of 2 x 2 tokens with a separator between, then the thumbnail
    assert torch.allclose(picture[:4], said("red ring").expand(4, -1), atol=1e-2)
    assert torch.allclose(picture[5:9], said("blue star").expand(4, -1), atol=1e-2)


def rows(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return batch["input_ids"], batch["labels"]


def test_a_name_follows_its_region_token(data: Path) -> None:
    tokenizer, token_ids = pretraining.make_tokenizer([RecordFolder.open(data / "names")])
    language_model = pretraining.make_language_model(len(tokenizer))
    config = pretraining.join(TinyTowerModel(TinyTowerConfig()), language_model, token_ids).config
    batch = name_batch(["red ring", "star"], OspreyTPProcessor.from_config(config, tokenizer))
    assert tokenizer.decode(batch["input_ids"][0]).replace(" ", "") == "<s><mask>redring</s>"
    taught = [row[row != -100] for row in batch["labels"]]
    assert [tokenizer.decode(row).replace(" ", "") for row in taught] == ["redring</s>", "star</s>"]
    assert batch["attention_mask"].tolist()[0] == [1] * batch["input_ids"].shape[1]


def test_hidden_pictures_change_nothing_that_is_answered() -> None:
    batch = {"input_ids": torch.tensor([[1, 9, 9, 2]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    assert pretraining.hide_pictures(batch, 9, share=1.0)["attention_mask"].tolist() == [[1, 0, 0, 1]]
    assert pretraining.hide_pictures(batch, 9, share=0.0)["attention_mask"].tolist() == [[1, 1, 1, 1]]


def test_the_command_writes_a_model_folder(data: Path, tower: Path, tmp_path: Path) -> None:
    out = tmp_path / "start"
    arguments = ["--tower", str(tower), "--names", str(data / "names"), "--texts", str(data / "texts")]
    steps = ["--name-steps", "20", "--hidden-steps", "5", "--shown-steps", "5", "--out", str(out)]
    assert pretraining.main([*arguments, *steps]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["start"]
    log = json.loads((out / "training_log.json").read_text())
    assert [entry["step"] for entry in log] == [10, 20, 30]
    assert log[1]["loss"] < log[0]["loss"] / 2
    model = OspreyTPForConditionalGeneration.from_pretrained(out)
    kept = TinyTowerModel.from_pretrained(tower).state_dict()
    assert all(torch.equal(kept[name], value) for name, value in model.model.vision_tower.state_dict().items())
    mark = model.get_input_embeddings().weight[model.config.region_token_id]
    assert torch.equal(model.model.region_encoder.output_norm.bias, mark)
    session = RegionDescriber.from_pretrained(out).open(data / "0.png")
    assert len(session.ask([{"box": [0, 0, 20, 20]}])) == 1


def test_an_existing_folder_is_left_alone(data: Path, tower: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = pretraining.main(["--tower", str(tower), "--names", str(data / "names"), "--out", str(data)])
    assert code == 1
    assert capsys.readouterr().err == f"error: {data} exists; remove it, or name another folder\n"
