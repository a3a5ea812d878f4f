"""Precision: how a model is loaded, that its answers stay, and what is refused in one line."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from torchao.quantization import Int8DynamicActivationInt8WeightConfig

from osprey_tp import RegionDescriber, loading_options
from osprey_tp.cli import main
from osprey_tp.loading_options import LoadingOptions

from .tiny_models import save_tiny_model

INT8_FORMS = {1: "LinearActivationQuantizedTensor", 2: "Int8Tensor"}  # of each version of torchao's settings
TEXTS = ["a", "a red ring", "the picture"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (90, 150, 3), dtype=np.uint8))


BOX = {"box": [20, 10, 90, 70]}


def scores_of(folder, picture, **choices):
    describer = RegionDescriber.from_pretrained(folder, **choices)
    return describer, describer.open(picture).score(TEXTS, [BOX])


@pytest.fixture(scope="module")
def exact(folder, picture):
    return scores_of(folder, picture)[1]


@pytest.mark.parametrize(
    ("choices", "tolerance"),
    [
        ({"dtype": "bfloat16"}, 0.05),
        ({"dtype": torch.float16}, 0.01),
        ({"quantization": "int8-dynamic"}, 0.05),
        ({"device_map": "auto"}, 0),
        ({"dtype": "bfloat16", "quantization": "int8-dynamic"}, 0.05),
    ],
)
def test_scores_stay_in_every_precision(folder, picture, exact, choices, tolerance):
    describer, scores = scores_of(folder, picture, **choices)
    np.testing.assert_allclose(scores, exact, rtol=tolerance)
    language, tower = describer.model.model.language_model, describer.model.model.vision_tower
    expected = {"bfloat16": torch.bfloat16, torch.float16: torch.float16}.get(choices.get("dtype"), torch.float32)
    assert {parameter.dtype for parameter in tower.parameters()} == {expected}
    layers = [layer.weight.data for layer in language.modules() if isinstance(layer, torch.nn.Linear)]
    quantized = {type(weight).__name__ for weight in layers}
    form = INT8_FORMS[Int8DynamicActivationInt8WeightConfig().version] if choices.get("quantization") else "Tensor"
    assert quantized == {form}
    assert type(describer.model.lm_head.weight.data) is torch.Tensor


def test_quantised_layers_are_those_of_the_language_model_in_the_right_kind(monkeypatch):
    monkeypatch.setattr(loading_options, "find_spec", lambda name: name)
    eight = LoadingOptions(quantization="8bit", device="cpu").arguments()
    four = LoadingOptions(quantization="4bit", dtype="float16", device_map="auto").arguments()
    assert eight["quantization_config"].load_in_8bit and eight["device_map"] == {"": torch.device("cpu")}
    assert four["quantization_config"].load_in_4bit and four["device_map"] == "auto"
    assert four["quantization_config"].bnb_4bit_compute_dtype == four["dtype"] == torch.float16
    kept = ["model.vision_tower", "model.projector", "model.region_encoder", "lm_head"]
    for arguments in (eight, four):
        assert arguments["quantization_config"].llm_int8_skip_modules == kept


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, not 'int8'"),
        ({"quantization": "2bit"}, "quantization must be one of int8-dynamic, 8bit, 4bit, not '2bit'"),
        ({"device": "cpu", "device_map": "auto"}, "give device or device_map, not both"),
        ({"quantization": "int8-dynamic", "device": "cuda"}, "int8-dynamic runs on the CPU; on a GPU take 8bit"),
        ({"quantization": "int8-dynamic", "device_map": "auto"}, "int8-dynamic runs on the CPU; on a GPU take 8bit"),
        ({"max_tiles": 0}, "max_tiles can be lowered to 1 to 9 tiles, not set to 0"),
        ({"tiles": "few"}, "tiles must be one of all, near-regions, not 'few'"),
    ],
)
def test_what_does_not_go_together_is_refused(folder, choices, message):
    with pytest.raises(ValueError, match=message):
        RegionDescriber.from_pretrained(folder, **choices)


@pytest.mark.parametrize(("kind", "package"), [("int8-dynamic", "torchao"), ("8bit", "bitsandbytes")])
def test_a_missing_package_is_named_with_the_remedy(folder, picture, tmp_path, monkeypatch, capsys, kind, package):
    monkeypatch.setattr(loading_options, "find_spec", lambda name: None if name == package else name)
    picture.save(tmp_path / "picture.png")
    command = ["describe", str(tmp_path / "picture.png"), "--model", str(folder), "--box", "20,10,90,70"]
    assert main([*command, "--quantization", kind]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"osprey-tp: quantization {kind} needs the package {package}: pip install 'osprey_tp[")


def test_the_command_line_answers_within_a_budget(folder, picture, tmp_path, capsys):
    picture.save(tmp_path / "picture.png")
    command = ["describe", str(tmp_path / "picture.png"), "--model", str(folder), "--box", "20,10,90,70"]
    assert main([*command, "--max-tiles", "4", "--tiles", "near-regions", "--dtype", "float32"]) == 0
    session = RegionDescriber.from_pretrained(folder).open(picture, max_tiles=4, tiles="near-regions")
    assert capsys.readouterr().out.strip() == session.ask([BOX])[0]


def test_only_what_changes_answers_is_compared():
    options = LoadingOptions(device="cpu", dtype=torch.bfloat16, tiles="near-regions")
    assert options.that_change_answers == {"dtype": "torch.bfloat16", "tiles": "near-regions"}
    assert LoadingOptions(device="cuda").that_change_answers == {}
    assert LoadingOptions(**asdict(options)) == options
