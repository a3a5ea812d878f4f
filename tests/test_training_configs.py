"""The configurations that the project ships: every one loads, and every geometry builds a model."""

from pathlib import Path

import pytest
import torch

from data_pipelines.mixtures import is_mixture_file
from osprey_tp import OspreyTPConfig, OspreyTPForConditionalGeneration
from osprey_tp.training.arguments import load_settings

CONFIGS = Path(__file__).resolve().parents[1] / "scripts" / "configs"
RUNS = sorted(file for file in CONFIGS.glob("*/*.yaml") if "mixture" not in file.stem)
SIZES = {"vicuna_7b": OspreyTPConfig.vicuna_7b, "vicuna_13b": OspreyTPConfig.vicuna_13b}
TRAINS = {
    "stage1": {"projector"},
    "stage2": {"region_encoder"},
    "stage2_with_projector": {"projector", "region_encoder"},
    "stage3": {"projector", "region_encoder", "language_model"},
    "stage3_lora": {"projector", "region_encoder", "language_model"},
    "stage3_qlora": {"projector", "region_encoder", "language_model"},
    "refcocog_captioning": {"projector", "region_encoder", "language_model"},
}


def test_every_size_has_its_stages() -> None:
    for size in ("tiny", *SIZES):
        assert {"stage1", "stage2", "stage3"} <= {file.stem for file in RUNS if file.parent.name == size}
    assert {file.stem for file in RUNS if file.parent.name == "vicuna_7b"} == set(TRAINS)


@pytest.mark.parametrize("file", RUNS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_configurations_train_what_their_names_say(file: Path) -> None:
    settings = load_settings(file)
    assert set(settings.resolved_stage.learning_rates) == TRAINS[file.stem]
    assert (settings.adapter.kind if settings.adapter else "") == file.stem.partition("stage3_")[2]
    for name in filter(is_mixture_file, settings.data):
        assert (CONFIGS.parents[1] / name).is_file()


@pytest.mark.parametrize("size", SIZES)
def test_stages_follow_each_other_at_the_published_batches(size: str) -> None:
    one, two, three = (load_settings(CONFIGS / size / f"stage{number}.yaml") for number in (1, 2, 3))
    assert (two.model, three.model) == (one.output, two.output)
    batches = [8 * run.batch_size * run.gradient_accumulation for run in (one, two, three)]  # on 8 processes
    assert batches == [256, 128, 128]
    assert [run.resolved_stage.template for run in (one, two, three)] == ["plain", None, None]
    assert one.model_template == "vicuna_v1"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("max_tiles", [9, 16, 25])
@pytest.mark.parametrize("scale_factor", [2, 3, 4])
def test_every_geometry_builds(size: str, max_tiles: int, scale_factor: int) -> None:
    overrides = [f"geometry.max_tiles={max_tiles}", f"geometry.scale_factor={scale_factor}"]
    settings = load_settings(CONFIGS / size / "stage1.yaml", overrides)
    config = SIZES[size](**settings.geometry)
    assert (config.tiling.max_tiles, config.tiling.tokens_per_tile) == (max_tiles, (24 // scale_factor) ** 2)
    config.text_config.num_hidden_layers = 1
    config.text_config.vocab_size = 64
    config.vision_config.num_hidden_layers, config.feature_layers = 1, [0, 0, 1, 1]
    with torch.device("meta"):
        model = OspreyTPForConditionalGeneration(config)
        tokens = model.model.projector(torch.empty(4, 1, 576, 1024))
    assert tokens.shape == (1, (24 // scale_factor) ** 2, config.text_config.hidden_size)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("geometry.max_tile=25", "unknown setting 'geometry.max_tile'; the nearest known one is 'geometry.max_tiles'"),
        ("geometry.image_token_id=5", "unknown setting 'geometry.image_token_id'; the nearest known one is "),
        ("geometry=25", "geometry must be"),
    ],
)
def test_a_geometry_that_does_not_exist_is_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_settings(CONFIGS / "vicuna_7b" / "stage1.yaml", [override])
    assert str(caught.value).startswith(message)
