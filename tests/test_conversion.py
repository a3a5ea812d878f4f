"""Published checkpoints to model folders and back: what is recognised, what is written, and that nothing is lost."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from osprey_tp import OspreyTPConfig, OspreyTPProcessor, RegionDescriber
from osprey_tp.conversion_digest import digest_of, fixed_picture, fixed_regions
from osprey_tp.conversion_folder import needed_weights
from osprey_tp.conversion_settings import language_config, published_choices, tower_config
from osprey_tp.processing import chat_template
from osprey_tp.training.arguments import load_settings
from osprey_tp.training.start import load_start
from osprey_tp.weights import StoredWeight
from scripts import convert

from . import published_checkpoints as published

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: object) -> None:
    assert convert.main([str(argument) for argument in arguments]) == 0


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: weight for file in sorted(folder.glob("*.safetensors")) for name, weight in load_file(file).items()}


KINDS = {
    "TokenPacker-HD with Osprey": ("tokenpacker", True, {}, 2, 9),
    "TokenPacker-HD": ("tokenpacker", False, {"scale_factor": 3, "patch_num": 16}, 3, 16),
    "TokenPacker": ("tokenpacker", False, {"scale_factor": 4, "image_aspect_ratio": "pad"}, 4, 1),
    "LLaVA-1.5": ("mlp", False, {"model_type": "llava_llama", "image_aspect_ratio": "pad"}, 1, 1),
    "LLaVA-STF": ("stf", False, {"mm_patch_merge_type": "flat", "image_aspect_ratio": "absent"}, 2, 1),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_is_recognised_and_comes_back_byte_for_byte(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    projector, regions, changes, scale_factor, max_tiles = KINDS[kind]
    source = published.write_checkpoint(tmp_path / "source", projector, regions, shards=3, **changes)
    if kind == "LLaVA-1.5":  # torch's format before 1.6, which cannot be mapped into memory
        for file in source.glob("*.bin"):
            torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)
    run(source, tmp_path / "model", "--max-shard-size", "1MB")
    said = capsys.readouterr().out
    assert said.startswith(f"{kind}: ")
    assert ("no region encoder" in said) == (not regions)
    assert ("visual tokens a picture, one square" in said) == (max_tiles == 1)
    assert ("the middle of a picture alone" in said) == (changes.get("image_aspect_ratio") == "absent")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["projector_type"], config["scale_factor"], config["max_tiles"]) == (
        projector,
        scale_factor,
        max_tiles,
    )
    assert (config["preset"], config["dtype"]) == ("published", "float32")
    assert (config["picture_layout"], config["resize_mode"]) == (
        ("square", "antialiased") if max_tiles == 1 else ("tiles", "published")
    )
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) >= 3

    run(tmp_path / "model", tmp_path / "back", "--reverse", "--max-shard-size", "2MB")
    back = weights_of(tmp_path / "back")
    assert back.keys() == published.shapes_of(projector, regions).keys()
    of_source = {name: w for file in source.glob("*.bin") for name, w in torch.load(file).items()}
    assert all(torch.equal(weight, of_source[name]) for name, weight in back.items())
    said = capsys.readouterr().out
    assert said.startswith(f"{kind}: ") and "in its own way" not in said
    flat = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (flat["image_aspect_ratio"], flat.get("patch_num")) == (
        ("pad", None) if max_tiles == 1 else ("slice", max_tiles)
    )
    original = published.published_config(projector)
    same = ("model_type", "architectures", *published.LANGUAGE, "mm_hidden_size", "mm_vision_select_layer")
    assert {name: flat[name] for name in same} == {name: original[name] for name in same}

    run(tmp_path / "back", tmp_path / "again", "--max-shard-size", "1MB")
    assert files_of(tmp_path / "again") == files_of(tmp_path / "model")


PUBLISHED_SIZES = {
    "7b": ({"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}, 32, 6_738_415_616),
    "13b": ({"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40}, 40, 13_015_864_320),
}


@pytest.mark.parametrize("size", list(PUBLISHED_SIZES))
@pytest.mark.parametrize("projector", list(published.PROJECTORS))
def test_names_and_shapes_of_the_published_sizes(projector: str, size: str) -> None:
    """No weight is made: what is needed is compared with what such a checkpoint holds."""
    sizes, heads, parameters = PUBLISHED_SIZES[size]
    sizes = sizes | {"num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": 32000}
    tower = {"width": 1024, "layers": 24, "intermediate": 4096, "image": 336, "patch": 14}
    shapes = published.shapes_of(projector, projector == "tokenpacker", tower, **sizes)
    stored = {name: StoredWeight(Path("file"), name, shape, torch.float16) for name, shape in shapes.items()}
    settings = published.published_config(projector, 1024, **sizes)
    text, vision = language_config(settings), tower_config(settings, stored)
    choices = published_choices(settings, projector, stored)
    config = OspreyTPConfig(text_config=text, vision_config=vision, **choices)
    needed = needed_weights(config, stored)
    assert {place.name for place in needed.values()} == shapes.keys()
    language = [name for name in shapes if name.startswith(("model.layers.", "model.embed", "model.norm", "lm_head"))]
    assert sum(math.prod(shapes[name]) for name in language) == parameters
    clip = OspreyTPConfig.vicuna_7b().vision_config
    assert vision.to_dict() == clip.to_dict()


@pytest.mark.parametrize(
    ("ratio", "is_projector_alone", "max_tiles", "expected"),
    [
        ("pad", False, None, ("square", 1)),
        ("square", False, None, ("square", 1)),
        ("slice", False, None, ("tiles", 9)),
        ("pad", False, 16, ("tiles", 16)),
        ("slice", False, 1, ("square", 1)),
        ("pad", True, None, ("square", 1)),
        ("square", True, None, ("tiles", 9)),
        ("absent", True, 1, ("square", 1)),
    ],
)
def test_config_json_says_whether_pictures_are_squares(
    ratio: str, is_projector_alone: bool, max_tiles: int | None, expected: tuple[str, int]
) -> None:
    """A projector alone is trained further, on tiles unless it was on squares; the command line goes first."""
    settings = published.published_config("tokenpacker", image_aspect_ratio=ratio)
    choices = published_choices(settings, "tokenpacker", {}, is_projector_alone, max_tiles=max_tiles)
    config = OspreyTPConfig.vicuna_7b(**choices)
    assert (config.picture_layout, config.max_tiles) == expected


def test_a_checkpoint_without_regions_refuses_them_until_it_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stage 2 begins a region encoder, as after stage 1; stage 3 is refused, since none was trained."""
    run(published.write_checkpoint(tmp_path / "source", regions=False), tmp_path / "model", "--verify")
    said = capsys.readouterr()
    assert re.search(r"^digest \w{16}\n", said.out, re.M) and "MISSING" not in said.out + said.err
    describer = RegionDescriber.from_pretrained(tmp_path / "model", device="cpu")
    session = describer.open(fixed_picture())
    (answer,) = session.ask_groups([[]], ["What is shown?"], max_new_tokens=4)
    assert answer == session.chat("What is shown?", max_new_tokens=4)
    refused = r"this model has no region encoder: ask about whole pictures, or train stage 2 from its folder first$"
    for question in (
        lambda: session.ask(fixed_regions()),
        lambda: next(session.stream(fixed_regions()[:1], "What is <mask>?")),
        lambda: session.chat("What is it?", fixed_regions()[:1]),
        lambda: session.score(["a", "b"], fixed_regions()),
    ):
        with pytest.raises(ValueError, match=refused):
            question()
    describer.model.save_pretrained(tmp_path / "saved")
    assert weights_of(tmp_path / "saved").keys() == weights_of(tmp_path / "model").keys()
    given = [f"model={tmp_path / 'model'}", "data=d", "output=o"]
    start, processor = load_start(load_settings(None, ["stage=2", *given]))
    state = start.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in weights_of(tmp_path / "model").items())
    assert processor.chat_template == chat_template("vicuna_v1")
    with pytest.raises(ValueError, match=r"the weights of the region_encoder are missing \(10 of 10"):
        load_start(load_settings(None, ["stage=3", *given]))


@pytest.mark.parametrize("name", ["model.region_encoder.output.bias", "model.projector.mlp.0.weight", "surplus"])
def test_no_weight_is_made_up(model: Path, name: str, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    weights = weights_of(model) | {"surplus": torch.ones(1)}
    if name != "surplus":
        del weights[name], weights["surplus"]
    published.write_weights(tmp_path / "model", weights, ".safetensors")
    what = "weights belong to no module" if name == "surplus" else "weights are missing"
    with pytest.raises(ValueError, match=rf"model: 1 {what}.*, among them {re.escape(name)}; [^\n]+$"):
        RegionDescriber.from_pretrained(tmp_path / "model", device="cpu")


def test_what_does_not_verify_is_not_made(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(source, tmp_path / "source")
    weights = {name: w for file in source.glob("*.bin") for name, w in torch.load(file).items()}
    weights["lm_head.weight"][3] = math.nan
    published.write_weights(tmp_path / "source", weights)
    before = sorted(tmp_path.iterdir())
    assert convert.main([str(tmp_path / "source"), str(tmp_path / "model"), "--verify"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert f"--verify failed, and {tmp_path / 'model'} was not made: the converted model makes numbers" in said.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "source")


@pytest.fixture(scope="module")
def model(source: Path) -> Path:
    run(source, source.parent / "model")
    return source.parent / "model"


def test_a_converted_folder_is_a_model_folder_like_any_other(model: Path, tmp_path: Path) -> None:
    loaded = AutoModelForImageTextToText.from_pretrained(model)
    processor = AutoProcessor.from_pretrained(model)
    processor.check_fits(loaded.config)
    loaded.save_pretrained(tmp_path)
    assert all(torch.equal(weight, weights_of(model)[name]) for name, weight in weights_of(tmp_path).items())
    session = RegionDescriber.from_pretrained(model, device="cpu").open(fixed_picture())
    assert len(session.ask(fixed_regions(), max_new_tokens=2)) == 2
    assert processor.tokenizer.pad_token_id == 0
    assert processor.tokenizer.model_max_length == 2048


def test_the_digest_stands_for_the_weights(
    source: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(source, tmp_path / "model", "--verify")
    (shown,) = re.findall(r"digest (\w{16})", capsys.readouterr().out)
    digest = digest_of(model)
    assert digest.text == shown
    assert len(digest.answer_ids) == 2 and digest.figures[0] != digest.figures[1]
    weights = weights_of(tmp_path / "model")
    weights["model.region_encoder.output.bias"] += 1
    published.write_weights(tmp_path / "model", weights, ".safetensors")
    assert digest_of(tmp_path / "model").text != shown


def test_dtypes_are_kept_or_asked_for(tmp_path: Path) -> None:
    folder = published.write_checkpoint(tmp_path / "source", dtype=torch.float16, suffix=".safetensors")
    run(folder, tmp_path / "half")
    assert {weight.dtype for weight in weights_of(tmp_path / "half").values()} == {torch.float16}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"
    run(folder, tmp_path / "brain", "--dtype", "bfloat16")
    assert {weight.dtype for weight in weights_of(tmp_path / "brain").values()} == {torch.bfloat16}


def test_clip_is_taken_from_a_folder_of_its_own(source: Path, model: Path, tmp_path: Path) -> None:
    """A whole CLIP, with its tower of texts and its own pixel scale; that in the checkpoint is passed over."""
    own = weights_of(model)
    tower = {
        f"vision_model.{name.removeprefix('model.vision_tower.')}": weight + 1
        for name, weight in own.items()
        if name.startswith("model.vision_tower.")
    }
    published.write_weights(tmp_path / "clip", tower | {"logit_scale": torch.ones(()), "text_model.x": torch.ones(2)})
    vision = json.loads((model / "config.json").read_text())["vision_config"]
    (tmp_path / "clip" / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
    scale = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(scale))
    run(source, tmp_path / "model", "--vision-tower", tmp_path / "clip")
    for name, weight in weights_of(tmp_path / "model").items():
        expected = own[name] + 1 if name.startswith("model.vision_tower.") else own[name]
        assert torch.equal(weight, expected), name
    image_processor = AutoProcessor.from_pretrained(tmp_path / "model").image_processor
    assert {name: list(getattr(image_processor, name)) for name in scale} == scale
    run(tmp_path / "model", tmp_path / "back", "--reverse")
    run(tmp_path / "back", tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(tmp_path / "model")


def test_what_training_wrote_comes_back_too(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another preset, another template, weights in other files: what published code has no words for is kept."""
    trained = AutoModelForImageTextToText.from_pretrained(model)
    choices = {"preset": "recommended", "resize_mode": "antialiased", "thumbnail_source": "image", "max_tiles": 16}
    for name, value in choices.items():
        setattr(trained.config, name, value)
    trained.save_pretrained(tmp_path / "trained", max_shard_size="2MB")
    processor = OspreyTPProcessor.from_config(trained.config, AutoProcessor.from_pretrained(model).tokenizer)
    processor.chat_template = chat_template("vicuna_v1").replace("curious user", "curious human")
    processor.save_pretrained(tmp_path / "trained")
    run(tmp_path / "trained", tmp_path / "back", "--reverse")
    assert "was trained with another resize_mode, thumbnail_source\n" in capsys.readouterr().out
    run(tmp_path / "back", tmp_path / "again")
    assert digest_of(tmp_path / "again") == digest_of(tmp_path / "trained")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {name: config[name] for name in choices} == choices
    assert AutoProcessor.from_pretrained(tmp_path / "again").chat_template == processor.chat_template


def test_memory_stays_under_two_shards(source: Path, tmp_path: Path) -> None:
    """Of both kinds of files, kept as they are and in another dtype, in one process that does nothing else.

    Written shards are half as large as those that are read, as 5 GB are to the 10 GB of published files.
    """
    sizes = {"hidden_size": 256, "intermediate_size": 3000, "num_hidden_layers": 12}
    shapes = published.shapes_of("tokenpacker", **sizes)
    weights = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
    total = sum(weight.nbytes for weight in weights.values())
    for suffix in (".bin", ".safetensors"):
        published.write_weights(tmp_path / suffix, weights, suffix, shards=8)
        published.write_tokenizer(tmp_path / suffix)
        (tmp_path / suffix / "config.json").write_text(json.dumps(published.published_config("tokenpacker", **sizes)))
    del weights
    shard = min(path.stat().st_size for path in (tmp_path / ".bin").glob("*00002-of*.bin"))
    assert total > 7 * shard
    jobs = [f"{tmp_path}/.bin:{tmp_path}/kept:", f"{tmp_path}/.safetensors:{tmp_path}/halved:bfloat16"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.converting_in_little_memory", str(source), str(shard // 2), *jobs],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0 < int(done.stdout) < 2 * shard
    written = {name: sum(f.stat().st_size for f in (tmp_path / name).glob("*.s*")) for name in ("kept", "halved")}
    assert written["kept"] > total and written["halved"] > total / 2
