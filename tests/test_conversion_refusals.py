"""What cannot be converted is refused in one line that says what was found, what was expected and what to do."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts import convert

from . import published_checkpoints as published
from .test_training_parts import Intruder
from .tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refusals")
    published.write_checkpoint(folder / "source", shards=3)
    published.write_checkpoint(folder / "safe", suffix=".safetensors")
    save_tiny_model(folder / "ours")
    save_tiny_model(folder / "qwen", language="qwen3")
    save_tiny_model(folder / "normed", output_norm_scale=0.15)
    save_tiny_model(folder / "pos", spatial_token=True)
    return folder


@pytest.fixture
def source(shared: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may break."""
    return Path(shutil.copytree(shared / "source", tmp_path / "source"))


def refusal(capsys: pytest.CaptureFixture[str], source: Path, *options: object) -> str:
    """What is said of it; nothing is left behind."""
    out = source.parent / "refused"
    assert convert.main([str(source), str(out), *map(str, options)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert not out.exists() and not list(source.parent.glob(".*"))
    return printed.err.removeprefix("error: ").strip()


def set_config(source: Path, **changes: Any) -> None:
    config = json.loads((source / "config.json").read_text()) | changes
    (source / "config.json").write_text(json.dumps(config))


def change_weights(source: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Apply a change to all weights of the folder, in one file from then on."""
    weights = {name: w for file in sorted(source.glob("*.bin")) for name, w in torch.load(file).items()}
    change(weights)
    for file in source.glob("pytorch_model*"):
        file.unlink()
    published.write_weights(source, weights)


def cut(file: Path, share: float = 0.5) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


SECOND = "pytorch_model-00002-of-00003.bin"


def test_half_a_checkpoint(source: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / SECOND).rename(tmp_path / "second")
    lacks = f"{source} lacks 1 of 3 shards ({SECOND}); copy the whole checkpoint again"
    assert refusal(capsys, source) == lacks
    (source / "pytorch_model.bin.index.json").rename(tmp_path / "index")
    assert refusal(capsys, source) == lacks
    (tmp_path / "second").rename(source / SECOND)
    cut(source / SECOND)
    whole = f"{source / SECOND} is no file of weights alone, or not all of it; copy it again, or give safetensors"
    assert refusal(capsys, source) == whole
    (tmp_path / "index").rename(source / "pytorch_model.bin.index.json")
    assert refusal(capsys, source) == whole
    (source / SECOND).write_bytes(b"")
    assert refusal(capsys, source) == whole
    safe = Path(shutil.copytree(shared / "safe", tmp_path / "safe"))
    for share in (0.9, 0.0001):
        cut(safe / "model.safetensors", share)
        assert refusal(capsys, safe).startswith(f"{safe / 'model.safetensors'} is no whole safetensors file (")


def test_an_index_that_lies(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = source / "pytorch_model.bin.index.json"
    content = json.loads(index.read_text())
    (source.parent / "outside.bin").write_bytes(b"")
    index.write_text(json.dumps({"weight_map": content["weight_map"] | {"lm_head.weight": "../outside.bin"}}))
    assert "names '../outside.bin', which is no file of its folder" in refusal(capsys, source)
    index.write_text(json.dumps({"weight_map": content["weight_map"] | {"model.extra": SECOND}}))
    assert "1 of 448 weights of pytorch_model.bin.index.json are in no shard (model.extra)" in refusal(capsys, source)
    for text in ("{", "[]", '{"weight_map": 3}'):
        index.write_text(text)
        assert refusal(capsys, source) == f"{index} is no index of weights; copy it again"


def test_weights_that_are_missing_too_many_or_of_another_shape(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: dict[str, torch.Tensor] = {}

    def take(weights: dict[str, torch.Tensor]) -> None:
        taken.update({name: weights.pop(name) for name in list(weights) if name.startswith("model.layers.1.")})

    change_weights(source, take)
    assert refusal(capsys, source) == (
        f"{source}: lacks 9 of 445 weights (model.layers.1.input_layernorm.weight, "
        "model.layers.1.mlp.down_proj.weight, model.layers.1.mlp.gate_proj.weight and 6 more); copy the whole "
        "checkpoint again, or the config.json that was saved with it"
    )
    change_weights(source, lambda weights: weights.update(taken | {"model.image_newline": torch.zeros(64)}))
    assert "1 weights are of no part of such a model (model.image_newline); name a" in refusal(capsys, source)
    change_weights(source, lambda weights: weights.pop("model.image_newline"))
    change_weights(source, lambda weights: weights.update({"mask_extractor.feat_linear.bias": torch.zeros(3)}))
    assert "mask_extractor.feat_linear.bias is (3,) and not (64,); give the config.json" in refusal(capsys, source)


def test_a_projector_of_the_wrong_width(source: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = published.weights_of(published.tokenpacker_shapes(80, 64))
    change_weights(source, lambda weights: weights.update(wide))
    assert refusal(capsys, source) == (
        f"{source}: 4 weights have other shapes than config.json and tower ask for: model.mm_projector.mlp.0.bias is "
        "(80,) and not (64,); give the config.json, the language model and the tower that they were trained with"
    )
    set_config(source, mm_hidden_size=1024)
    assert "config.json has mm_hidden_size 1024, and 64 is what can be converted; name its own" in refusal(
        capsys, source
    )


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"scale_factor": 5}, (), "scale_factor 5 does not divide the 12 cells along a tile's side"),
        ({}, ("--scale-factor", "7"), "scale_factor 7 does not divide the 12 cells along a tile's side"),
        ({"patch_num": 12}, (), "max_tiles must be one of (9, 16, 25), not 12"),
        ({"mm_vision_select_layer": -1}, (), "config.json has mm_vision_select_layer -1, and -2 is what can be conv"),
        ({"mm_vision_select_feature": "cls_patch"}, (), "has mm_vision_select_feature 'cls_patch', and 'patch' is"),
        ({"image_aspect_ratio": "anyres"}, (), "has image_aspect_ratio 'anyres', and 'pad' is what can be converted"),
        ({"mm_use_im_start_end": True}, (), "has mm_use_im_start_end True, and False is what can be converted"),
        ({"vocab_size": 500}, (), "has 560 pieces, the embedding 500 rows; give the tokenizer of this model"),
        ({"vocab_size": 600}, (), "lm_head.weight is (560, 64) and not (600, 64)"),
        ({"hidden_size": "large"}, (), "config.json: "),
        ({"model_type": "mpt"}, (), "is a mpt, not a checkpoint of TokenPacker, LLaVA-1.5 or LLaVA-STF"),
        ({"osprey_tp": 3}, (), "osprey_tp in config.json is no object"),
        ({}, ("--template", "alpaca"), "unknown chat template 'alpaca'; known: chatml, plain, vicuna_v1"),
        ({}, ("--dtype", "int8"), "unknown dtype 'int8'; known: float32, float16, bfloat16"),
        ({}, ("--max-shard-size", "much"), "much"),
        ({}, ("--language-model", "."), "holds a language model of its own; leave --language-model out"),
        ({}, ("--vision-tower", "."), "holds no weights"),
        ({}, ("--reverse",), "is no model folder of osprey_tp; name what training or scripts.convert wrote"),
    ],
)
def test_facts_that_do_not_fit(
    shared: Path, changes: dict, options: tuple, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in (shared / "source").iterdir():
        (source / file.name).symlink_to(file)
    (source / "config.json").unlink()
    shutil.copyfile(shared / "source" / "config.json", source / "config.json")
    set_config(source, **changes)
    options = tuple(str(tmp_path) if option == "." else option for option in options)
    assert message in refusal(capsys, source, *options)


def test_checkpoints_of_another_architecture(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def checkpoint(weights: dict[str, tuple[int, ...]], **config: Any) -> Path:
        folder = tmp_path / "other"
        shutil.rmtree(folder, ignore_errors=True)
        published.write_weights(folder, published.weights_of(weights))
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    found = refusal(capsys, checkpoint({"bert.embeddings.weight": (3, 3)}, model_type="bert"))
    assert found.endswith(
        "other is a bert, not a checkpoint of TokenPacker, LLaVA-1.5 or LLaVA-STF; name such a checkpoint"
    )
    found = refusal(capsys, checkpoint({"multi_modal_projector.linear_1.weight": (3, 3)}, model_type="llava"))
    assert "is LLaVA in the layout of transformers; give the original" in found
    found = refusal(capsys, checkpoint({"mask_extractor.res2.weight": (3, 3)}, model_type="llava"))
    assert "is the original Osprey with its convolutional tower" in found
    linear = {"model.mm_projector.weight": (3, 3), "model.norm.weight": (3,)}
    found = refusal(capsys, checkpoint(linear, model_type="llava", mm_projector_type="linear"))
    assert "no projector that is known here (mm_projector_type linear, weights model.mm_projector.weight)" in found
    deep = published.mlp_shapes(64, 64) | published.linear("model.mm_projector.4", 64, 64)
    shapes = published.shapes_of("mlp", regions=False) | deep
    folder = checkpoint(shapes, **published.published_config("mlp", mm_projector_type="mlp3x_gelu"))
    published.write_tokenizer(folder)
    assert "(model.mm_projector.4.bias, model.mm_projector.4.weight)" in refusal(capsys, folder)
    assert "is a model of osprey_tp already; --reverse writes the published layout" in refusal(capsys, shared / "ours")
    (folder / "adapter_model.bin").write_bytes(b"")
    assert "holds adapters, not a whole model" in refusal(capsys, folder)


def test_nothing_is_run_that_a_pickle_asks_for(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = source.parent / "ran"
    change_weights(source, lambda weights: None)
    file = source / "pytorch_model.bin"
    alone = f"{file} is no file of weights alone, or not all of it; copy it again, or give safetensors"
    torch.save({"model.norm.weight": Intruder(ran)}, file)
    assert refusal(capsys, source) == alone
    torch.save({"model.norm.weight": Intruder(ran)}, file, _use_new_zipfile_serialization=False)
    assert refusal(capsys, source) == alone
    file.write_bytes(pickle.dumps(Intruder(ran)))
    assert refusal(capsys, source) == alone
    file.write_text("weights")
    assert refusal(capsys, source) == alone
    torch.save([torch.zeros(3)], file)
    assert refusal(capsys, source).startswith(f"{file} must hold tensors by name, and nothing else")
    torch.save({"model.norm.weight": "none"}, file)
    assert refusal(capsys, source).startswith(f"{file} must hold tensors by name, and nothing else")
    assert refusal(capsys, file, "--language-model", source).startswith(f"{file} must hold tensors by name")
    assert not ran.exists()


def test_tokenizers_that_are_missing_or_broken(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / "tokenizer.json").unlink()
    assert refusal(capsys, source).startswith(f"{source} holds no tokenizer (tokenizer.json or tokenizer.model); copy")
    for name in ("tokenizer.model", "tokenizer.json"):
        (source / name).write_text("no tokenizer")
        assert f"{source / name} is no " in refusal(capsys, source)
    (source / "config.json").unlink()
    assert refusal(capsys, source) == f"{source} holds no config.json; copy the one that was saved with the weights"
    (source / "config.json").write_text("{")
    assert refusal(capsys, source).startswith(f"{source / 'config.json'} is no JSON (")


def test_parts_that_have_to_be_named(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tower = "model.vision_tower."
    change_weights(source, lambda weights: [weights.pop(name) for name in list(weights) if name.startswith(tower)])
    assert refusal(capsys, source) == (
        f"{source}: no vision tower among the weights; name the folder of openai/clip-vit-large-patch14-336 with "
        "--vision-tower"
    )
    torch.save(published.weights_of(published.tokenpacker_shapes(64, 64)), tmp_path / "mm_projector.bin")
    assert refusal(capsys, tmp_path / "mm_projector.bin") == (
        f"{tmp_path / 'mm_projector.bin'} holds no language model; name its folder with --language-model"
    )
    assert refusal(capsys, tmp_path / "nowhere").startswith(f"no checkpoint {tmp_path / 'nowhere'}")


def test_places_that_cannot_be_written(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").write_text("kept")
    for arguments in ([], ["--reverse"]):
        for name, message in (
            ("file", "is a file; name a folder to make"),
            ("folder", "exists; remove it, or name another folder"),
            ("file/model", f"{tmp_path / 'file'} is a file; name a folder to make"),
        ):
            source = shared / ("ours" if arguments else "source")
            assert convert.main([str(source), str(tmp_path / name), *arguments]) == 1
            assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "kept"]


def test_models_that_the_published_code_has_no_place_for(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "its language model is qwen3, where only llama" in refusal(capsys, shared / "qwen", "--reverse")
    assert "its output_norm_scale is 0.15, where only None" in refusal(capsys, shared / "normed", "--reverse")
    assert "its spatial_token is True, where only False" in refusal(capsys, shared / "pos", "--reverse")
    layers = "its feature_layers is [1, 2, 3], where only [12, 16, 22, 23] can be written"
    assert layers in refusal(capsys, shared / "ours", "--reverse")
    with pytest.raises(SystemExit):
        convert.main([str(shared / "ours"), "out", "--reverse", "--verify"])
