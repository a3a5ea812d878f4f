"""What a run starts from: put together or read, complete, or refused in one line that names file and remedy."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionConfig, CLIPVisionModel

from osprey_tp import OspreyTPForConditionalGeneration, OspreyTPProcessor
from osprey_tp.processing import chat_template
from osprey_tp.training.arguments import RunSettings, load_settings
from osprey_tp.training.start import load_start

from .tiny_models import llama_tokenizer, qwen_tokenizer, save_tiny_model, tiny_model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a language model, with its tokenizer, and of a vision tower, as they are published."""
    folder = tmp_path_factory.mktemp("halves")
    model, _ = tiny_model()
    language_model = AutoModelForCausalLM.from_config(model.config.text_config)
    language_model.save_pretrained(folder / "language")
    (folder / "language" / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.6, "eos_token_id": 2}')
    llama_tokenizer().save_pretrained(folder / "language")
    CLIPVisionModel(CLIPVisionConfig(**model.config.vision_config.to_dict())).save_pretrained(folder / "vision")
    scale = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "crop_size": 48}
    (folder / "vision" / "preprocessor_config.json").write_text(json.dumps(scale))
    return folder / "language", folder / "vision"


def from_folder(folder: Path, *more: str) -> RunSettings:
    return load_settings(None, ["stage=3", f"model={folder}", "data=d", "output=o", *more])


def from_halves(halves: tuple[Path, Path], *more: str) -> RunSettings:
    names = (f"language_model={halves[0]}", f"vision_tower={halves[1]}", "geometry.feature_layers=[1, 2, 3]")
    return load_settings(None, ["stage=1", "data=d", "output=o", *names, *more])


def changed(folder: Path, copy: Path, change: Any) -> Path:
    """A copy of a model folder whose weights `change` has changed."""
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def edited(folder: Path, copy: Path, file: str, **values: Any) -> Path:
    """A copy of a model folder with other values in one of its JSON files."""
    shutil.copytree(folder, copy)
    saved = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(saved | values))
    return copy


def drop(weights: dict[str, torch.Tensor], prefix: str) -> None:
    for name in [name for name in weights if name.startswith(prefix)]:
        del weights[name]


def refused(settings: RunSettings) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        load_start(settings)
    return " ".join(str(caught.value).split())


def test_a_model_is_put_together_from_its_halves(halves: tuple[Path, Path], tmp_path: Path) -> None:
    settings = from_halves(halves, "geometry.max_tiles=16", "geometry.scale_factor=3", "attention=eager")
    model, processor = load_start(settings)
    assert (model.config.max_tiles, model.config.scale_factor, model.config.row_separator_token_id) == (16, 3, 13)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.text_config._attn_implementation == model.config.vision_config._attn_implementation == "eager"
    assert processor.chat_template == chat_template("vicuna_v1")
    assert (processor.image_processor.max_tiles, processor.image_processor.image_std) == (16, (0.4, 0.5, 0.6))
    assert processor.image_token_id == model.config.image_token_id == len(AutoTokenizer.from_pretrained(halves[0]))
    for folder, part, prefix in ((halves[0], "language_model", "model."), (halves[1], "vision_tower", "")):
        given = load_file(folder / "model.safetensors")
        for name, weight in getattr(model.model, part).state_dict().items():
            assert torch.equal(weight, given[prefix + name]), name
    model.save_pretrained(tmp_path / "saved")  # the language model's settings of sampling could not be saved
    processor.save_pretrained(tmp_path / "saved")
    again, _ = load_start(from_folder(tmp_path / "saved"))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert again.generation_config.eos_token_id == 2


def test_new_parts_depend_on_the_seed_alone(halves: tuple[Path, Path]) -> None:
    def projector(seed: int) -> torch.Tensor:
        torch.randn(7)
        return load_start(from_halves(halves, f"seed={seed}"))[0].model.projector.mlp[0].weight

    assert torch.equal(projector(1), projector(1))
    assert not torch.equal(projector(1), projector(2))


def test_presets_and_templates_of_a_new_model(halves: tuple[Path, Path]) -> None:
    model, processor = load_start(from_halves(halves, "geometry.preset=published", "model_template=chatml"))
    assert (model.config.row_separator_token_id, model.config.region_pooling) == (0, "published")
    assert processor.chat_template == chat_template("chatml")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["language_model=nowhere"],
            "nowhere is no model folder, it lacks config.json; language_model is a model fold",
        ),
        (["vision_tower=nowhere"], "nowhere is no model folder, it lacks config.json; vision_tower is a model folder"),
        (["geometry.projector_type=qformer"], "geometry: unknown projector 'qformer'; known: mlp, stf, tokenpacker"),
        (["geometry.scale_factor=5"], "geometry: scale_factor 5"),
        (["geometry.feature_layers=[9]"], "geometry: feature_layers [9] must name hidden states 0 to 4"),
        (["template=plane"], "unknown chat template 'plane'; known: "),
        (["model_template=plane"], "unknown chat template 'plane'; known: "),
        (["stage=2"], "come without a projector, which stage 2 needs trained; start from model=... that the stage be"),
        (["stage=3"], "come without a projector and a region_encoder, which stage 3 needs trained"),
        (["attention=flash_attention_2"], "attention=flash_attention_2 needs a package that is missing"),
    ],
)
def test_halves_that_do_not_make_a_model(halves: tuple[Path, Path], more: list[str], message: str) -> None:
    assert message in refused(from_halves(halves, *more))


def test_a_stage_needs_the_parts_that_earlier_stages_train(model_folder: Path, tmp_path: Path) -> None:
    folder = changed(model_folder, tmp_path / "blind", lambda weights: drop(weights, "model.region_encoder."))
    assert refused(from_folder(folder)) == (
        f"{folder}: the weights of the region_encoder are missing (8 of 8, among them "
        "model.region_encoder.level_projections.0.bias); start from the folder that the stage before wrote, or name a "
        "file of them in initial_parts"
    )
    drawn = [
        load_start(from_folder(folder, f"stage={stage}", f"seed={seed}"))[0].model.region_encoder.output.weight
        for stage, seed in ((1, 0), (2, 0), (2, 1))
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])
    assert 0.01 < float(drawn[0].std()) < 0.04  # transformers' initial deviation is 0.02


def test_a_part_is_whole_or_new(model_folder: Path, tmp_path: Path) -> None:
    folder = changed(model_folder, tmp_path / "half", lambda weights: drop(weights, "model.region_encoder.output."))
    assert "the weights of the region_encoder are missing (2 of 8" in refused(from_folder(folder, "stage=2"))


@pytest.mark.parametrize("prefix", ["model.vision_tower.", "model.language_model.layers.1.", "model.projector."])
def test_other_parts_never_begin_new(model_folder: Path, tmp_path: Path, prefix: str) -> None:
    folder = changed(model_folder, tmp_path / "holes", lambda weights: drop(weights, prefix))
    part = prefix.split(".")[1]
    assert f"the weights of the {part} are missing" in refused(from_folder(folder, "stage=2"))


def test_a_missing_head_is_named(model_folder: Path, tmp_path: Path) -> None:
    folder = changed(model_folder, tmp_path / "headless", lambda weights: drop(weights, "lm_head."))
    assert f"{folder}: 1 weights are missing, among them lm_head.weight; copy the folder" in refused(
        from_folder(folder)
    )


def test_weights_and_configuration_must_agree(model_folder: Path, tmp_path: Path) -> None:
    fewer = edited(model_folder, tmp_path / "fewer", "config.json", feature_layers=[1, 2])
    message = refused(from_folder(fewer))
    assert message.startswith(f"{fewer}: 2 weights have other shapes than config.json asks for, among them model.proj")
    assert message.endswith("(32, 96), not (32, 64); restore the config.json that was saved with the weights")

    def more(weights: dict[str, torch.Tensor]) -> None:
        weights["model.region_encoder.level_projections.3.bias"] = torch.zeros(32)

    surplus = changed(model_folder, tmp_path / "surplus", more)
    assert "1 weights belong to no module of config.json, among them model.region_encoder.level_projections.3.bias" in (
        refused(from_folder(surplus))
    )


def test_a_module_that_does_not_exist_is_named(model_folder: Path, tmp_path: Path) -> None:
    folder = edited(model_folder, tmp_path / "model", "config.json", projector_type="qformer")
    assert (
        refused(from_folder(folder))
        == f"{folder}/config.json: unknown projector 'qformer'; known: mlp, stf, tokenpacker"
    )


def test_a_tokenizer_without_a_placeholder_is_named(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    qwen_tokenizer().save_pretrained(folder)
    assert refused(from_folder(folder)).startswith(f"{folder}: the tokenizer does not know <image> and <mask>; call")


def test_a_processor_of_another_model_is_named(model_folder: Path, tmp_path: Path) -> None:
    folder = edited(model_folder, tmp_path / "model", "config.json", scale_factor=3)
    assert refused(from_folder(folder)).startswith(f"{folder}: the processor has scale_factor 2 where the model has 3")


def test_files_cut_short_are_named(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert refused(from_folder(folder)).startswith(f"{folder}: ")
    (folder / "model.safetensors").unlink()
    assert refused(from_folder(folder)).startswith(f"{folder}: ")


def test_stage_3_does_not_start_from_stage_1(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stage1"
    shutil.copytree(model_folder, folder)
    (folder / "run_settings.yaml").write_text("stage: 1\nlearning_rates: {}\ninitial_parts: []\n")
    message = refused(from_folder(folder))
    assert message.startswith(
        f"{folder} is what stage 1 wrote, so its region encoder has not been trained; start stage"
    )
    load_start(from_folder(folder, "stage=2"))
    load_start(from_folder(folder, "learning_rates.region_encoder=null"))
    (folder / "run_settings.yaml").write_text("stage: 2\n")
    load_start(from_folder(folder))


def test_what_a_stage_wrote_is_where_the_next_one_starts(model_folder: Path) -> None:
    model, processor = load_start(from_folder(model_folder))
    given = OspreyTPForConditionalGeneration.from_pretrained(model_folder, dtype=torch.float32).state_dict()
    assert all(torch.equal(weight, given[name]) for name, weight in model.state_dict().items())
    assert processor.chat_template == OspreyTPProcessor.from_pretrained(model_folder).chat_template
