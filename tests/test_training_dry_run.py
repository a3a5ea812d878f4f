"""The dry run of the train command: what it prints, writes down and refuses, with and without weights and records."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from data_pipelines.lengths import sample_length
from data_pipelines.records import RecordFolder
from osprey_tp import OspreyTPForConditionalGeneration, OspreyTPProcessor
from osprey_tp.configuration import TINY_TEXT, TINY_VISION, OspreyTPConfig
from osprey_tp.processing import add_region_tokens
from osprey_tp.tiling import TilePlan, count_visual_tokens
from osprey_tp.training.adapters import AdapterSettings
from osprey_tp.training.arguments import load_settings
from osprey_tp.training.estimation_start import SIZES, start_configuration
from scripts import dry_run, train

from .test_training_run import write_records
from .tiny_models import llama_tokenizer, save_tiny_model

CLIP_TOWER = 303_507_456
"""Parameters of CLIP ViT-L/14-336."""

SUPPOSED = ("--samples", "1000", "--size", "tiny")


def settings(*more: str) -> list[str]:
    return ["stage=3", "model=nowhere", "data=[nowhere]", "output=nowhere", "batch_size=2", *more]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without weights."""
    folder = save_tiny_model(tmp_path_factory.mktemp("start") / "model")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"))


def without_type(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "model_type"}


def told(arguments: list[str], file: Path) -> dict[str, Any]:
    assert train.main(["--dry-run", "--json", str(file), *arguments]) == 0
    return json.loads(file.read_text())


def test_records_and_a_model_folder_without_weights_are_enough(
    start: Path, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"model={start}", f"data=[{records}]", "stage=2", "gradient_accumulation=2", "epochs=3"]
    result = told([*settings(*given), "--processes", "2"], tmp_path / "told.json")
    processor = OspreyTPProcessor.from_pretrained(start)
    lengths = [sample_length(record, processor) for record in RecordFolder.open(records)]
    assert result["tokens"]["mean"] == pytest.approx(sum(counts.total for counts in lengths) / len(lengths), rel=0.05)
    assert result["visual_tokens"]["maximum"] == max(counts.visual for counts in lengths)
    assert (result["samples"], result["samples_a_step"], result["steps"]) == (12, 8, 6)
    assert [part["part"] for part in result["parts"] if part["trainable"]] == ["region_encoder"]
    assert [row["sharding"] for row in result["memory"]] == ["none", "1", "2", "3", "3 offload"]
    assert result["flops"]["recomputation"] == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "stage 2, mask-text alignment"
    assert any("12 of 12 samples looked at" in line for line in lines)
    assert max(map(len, lines)) <= 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["told.json"]


def test_a_supposed_run_needs_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*settings("gradient_checkpointing=true"), *SUPPOSED, "--grid", "2x3", "--text-tokens", "100"]
    result = told([*arguments, "--flops-per-second", "1e9", "--processes", "4"], tmp_path / "told.json")
    tiling = OspreyTPConfig.tiny().tiling
    visual = count_visual_tokens(2, 3, tiling.tokens_per_tile)
    assert result["tokens"]["mean"] == visual + dry_run.REGIONS + 100
    assert result["longest_batch"] == [2, visual + dry_run.REGIONS + 100]
    assert result["steps"] == 125
    flops = result["flops"]
    assert 0 < flops["recomputation"] < flops["forward"] < flops["backward"]
    assert result["seconds"] == pytest.approx(125 * sum(flops.values()) / (4 * 1e9))
    assert "supposed: 2 x 3 tiles, 4 regions, 100 tokens of text" in capsys.readouterr().out


def test_without_a_grid_the_largest_is_supposed(tmp_path: Path) -> None:
    result = told([*settings("precision=fp32"), *SUPPOSED], tmp_path / "told.json")
    tiling = OspreyTPConfig.tiny().tiling
    most = max(TilePlan(tiling, *grid, *grid).num_visual_tokens for grid in tiling.grids)
    assert result["visual_tokens"]["maximum"] == most


@pytest.mark.parametrize("size", ["vicuna-7b", "vicuna-13b"])
def test_published_sizes_are_known(size: str) -> None:
    config = start_configuration(load_settings(None, settings()), size)
    text, channels, layers = config.text_config, config.vision_config.hidden_size, len(config.feature_layers)
    width = text.hidden_size
    decoder = text.num_hidden_layers * (4 * width**2 + 3 * width * text.intermediate_size + 2 * width)
    language = decoder + 2 * text.vocab_size * width + width
    projector = (7 + 2 * layers) * channels**2 + 14 * channels + channels * width + width**2 + 2 * width
    regions = layers * (channels**2 + channels) + channels * width + width
    with torch.device("meta"):
        model = OspreyTPForConditionalGeneration(config)
    assert language + CLIP_TOWER + projector + regions == sum(p.numel() for p in model.parameters())


def test_a_language_model_and_a_tower_without_weights_are_put_together(tmp_path: Path) -> None:
    language, tower = tmp_path / "language", tmp_path / "tower"
    LlamaConfig(**without_type(TINY_TEXT["llama"]) | {"vocab_size": 600}).save_pretrained(language)
    CLIPVisionConfig(**without_type(TINY_VISION["clip"]) | {"num_hidden_layers": 24}).save_pretrained(tower)
    given = load_settings(None, settings("model=null", f"language_model={language}", f"vision_tower={tower}"))
    config = start_configuration(given)
    assert config.text_config.vocab_size == 600
    assert config.vision_config.num_hidden_layers == 24
    llama_tokenizer().save_pretrained(language)
    assert start_configuration(given).image_token_id == add_region_tokens(llama_tokenizer())["image_token_id"]


def test_adapters_are_counted(tmp_path: Path) -> None:
    from osprey_tp.training.estimation import SampleShape
    from osprey_tp.training.estimation_run import estimate

    given = load_settings(None, settings())
    object.__setattr__(given, "adapter", AdapterSettings("qlora", rank=4, dropout=0.0, targets=("q_proj", "v_proj")))
    config = OspreyTPConfig.tiny()
    result = estimate(given, config, [SampleShape((1, 1), 1, 40)], samples=10, processes=2)
    width, heads = config.text_config.hidden_size, 2 * config.text_config.hidden_size // 4
    adapters = next(row.parameters for row in result.parts if row.part == "adapters")
    assert adapters == config.text_config.num_hidden_layers * 4 * (2 * width + width + heads)
    assert [row.sharding for row in result.memory] == ["none", "1", "2"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (settings(), "nowhere holds no config.json; name a folder that has one, or give --size vicuna-7b"),
        ([*settings(), "--size", "tiny"], "nowhere is not there; prepare it, or give --samples N"),
        ([*settings(), "--size", "tiny", "--grid", "2x3"], "--grid goes with --samples"),
        ([*settings(), *SUPPOSED, "--grid", "9x9"], "no grid of 9 x 9 tiles; it cuts into at most 9"),
        ([*settings(), *SUPPOSED, "--text-tokens", "9999"], "more than the 2048 that the model takes"),
        ([*settings(), *SUPPOSED, "--processes", "0"], "--processes must be at least 1, not 0"),
        ([*settings("batch_sise=3"), *SUPPOSED], "batch_size"),
    ],
)
def test_what_cannot_be_told_says_why_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["--dry-run", *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ") and error.count("\n") == 1


def test_records_without_a_tokenizer_are_not_guessed_at(
    start: Path, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((start / "config.json").read_text())
    assert train.main(["--dry-run", *settings(f"model={bare}", f"data=[{records}]")]) == 1
    assert "has no tokenizer to count the tokens of" in capsys.readouterr().err


def test_options_of_a_dry_run_mean_nothing_in_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*settings(), "--samples", "3"]) == 1
    assert capsys.readouterr().err == "error: --samples belongs to --dry-run\n"


def test_sizes_offered_are_those_there_are() -> None:
    assert tuple(SIZES) == dry_run.SIZES
