"""Weights of single parts: exported, read by a run, read from published files, refused where they do not fit."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from osprey_tp import OspreyTPForConditionalGeneration
from osprey_tp.conversion import parts_from_published
from osprey_tp.training.arguments import load_settings
from osprey_tp.training.parts import load_parts
from osprey_tp.training.start import load_start
from scripts import export_parts

from .golden_recipe import load_json, param
from .tiny_models import save_tiny_model, tiny_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("trained") / "model", seed=5)


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    assert export_parts.main([str(trained), str(trained.parent / "parts")]) == 0
    return trained.parent / "parts"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def published(state: dict[str, torch.Tensor], prefix: str = "model.") -> dict[str, torch.Tensor]:
    """The projector and the region encoder of `state` under the names that published code gives them."""
    names = {
        "coarse_query": "q_proj_1",
        "fine_key": "k_proj_1",
        "fine_value": "v_proj_1",
        "query_norm": "ln_q_1",
        "key_norm": "ln_k_1",
        "value_norm": "ln_v_1",
        "mlp": "mlp",
    }
    found = {}
    for name, weight in state.items():
        parts = name.split(".")
        if parts[1] == "region_encoder":
            inner = {"level_projections": "res_layers", "output": "feat_linear"}[parts[2]]
            found[".".join([f"{prefix}mask_extractor", inner, *parts[3:]])] = weight
        elif parts[1] == "projector" and parts[2] != "attention":
            found[".".join([f"{prefix}mm_projector", names[parts[2]], *parts[3:]])] = weight
    for kind in ("weight", "bias"):
        of = [state[f"model.projector.attention.{part}.{kind}"] for part in ("query", "key", "value")]
        found[f"{prefix}mm_projector.clip_attn.in_proj_{kind}"] = torch.cat(of)
        found[f"{prefix}mm_projector.clip_attn.out_proj.{kind}"] = state[f"model.projector.attention.output.{kind}"]
    return found


def assert_parts_are(model: OspreyTPForConditionalGeneration, expected: dict[str, torch.Tensor], *parts: str) -> None:
    """The named parts equal `expected`; the other one does not."""
    for part in ("projector", "region_encoder"):
        own = {name: weight for name, weight in getattr(model.model, part).state_dict().items() if weight.ndim > 1}
        equal = [torch.equal(weight, expected[f"model.{part}.{name}"]) for name, weight in own.items()]
        assert equal and (all(equal) if part in parts else not any(equal)), part


def test_exported_parts_are_read_by_a_run(trained: Path, exported: Path, tmp_path: Path) -> None:
    start = save_tiny_model(tmp_path / "start")
    settings = load_settings(None, ["stage=3", f"model={start}", "data=d", "output=o", f"initial_parts={exported}"])
    model, _ = load_start(settings)
    assert_parts_are(model, weights(trained), "projector", "region_encoder")
    given, own = weights(start), model.model.language_model.state_dict()
    assert all(torch.equal(weight, given[f"model.language_model.{name}"]) for name, weight in own.items())


def test_a_single_part_is_exported_alone(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "encoder"
    assert export_parts.main([str(trained), str(out), "--parts", "region_encoder"]) == 0
    count = sum(weight.numel() for name, weight in weights(trained).items() if name.startswith("model.region_encoder."))
    assert f"{count:,} parameters" in capsys.readouterr().out
    description = json.loads((out / "parts.json").read_text())
    assert description == {
        "parts": {"region_encoder": count},
        "projector_type": "tokenpacker",
        "scale_factor": 2,
        "feature_layers": [1, 2, 3],
        "projector_feature_layers": None,
        "region_feature_layers": None,
        "region_fusion": "sum",
    }
    model, _ = tiny_model()
    assert load_parts(model, out) == ("region_encoder",)
    assert_parts_are(model, weights(trained), "region_encoder")
    assert load_parts(tiny_model()[0], out / "parts.safetensors") == ("region_encoder",)


@pytest.mark.parametrize("prefix", ["model.", "", "base_model.model.model."])
def test_published_files_are_read(trained: Path, tmp_path: Path, prefix: str) -> None:
    torch.save(published(weights(trained), prefix), tmp_path / "mm_projector.bin")
    model, _ = tiny_model()
    assert load_parts(model, tmp_path / "mm_projector.bin") == ("projector", "region_encoder")
    assert_parts_are(model, weights(trained), "projector", "region_encoder")


def test_a_plain_state_dict_is_a_projector_s(trained: Path, tmp_path: Path) -> None:
    named = published(weights(trained), "")
    plain = {n.removeprefix("mm_projector."): w.half() for n, w in named.items() if n.startswith("mm_projector.")}
    torch.save(plain, tmp_path / "projector.bin")
    model, _ = tiny_model()
    assert load_parts(model, tmp_path / "projector.bin") == ("projector",)
    halves = {name: weight.half().float() for name, weight in weights(trained).items()}
    assert_parts_are(model, halves, "projector")


def test_every_name_of_the_published_projector_is_known() -> None:
    shapes = load_json("c_tokenpacker.json")["state_dict_h4096"]
    parts = parts_from_published({name: torch.from_numpy(param(name, (3,))) for name in shapes})
    assert list(parts) == ["projector"]
    assert set(parts["projector"]) == set(tiny_model()[0].model.projector.state_dict())


def refused(path: Path, **choices: Any) -> str:
    model, _ = tiny_model(**choices)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises((ValueError, OSError)) as caught:
        load_parts(model, path)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_do_not_fit_are_refused(trained: Path, exported: Path, tmp_path: Path) -> None:
    def saved(content: Any) -> Path:
        torch.save(content, tmp_path / "file.bin")
        return tmp_path / "file.bin"

    file, named = tmp_path / "file.bin", published(weights(trained))
    assert refused(tmp_path / "nowhere.bin").startswith(
        f"no file of parts {tmp_path / 'nowhere.bin'}; initial_parts na"
    )
    assert refused(saved({})) == f"{file} holds no weights"
    assert refused(saved([1])) == f"{file} must hold tensors by name, and nothing else; name a file of weights"
    assert refused(saved({"model.embed_tokens.weight": torch.zeros(2)})) == (
        f"{file}: model.embed_tokens.weight belongs to neither a projector nor a mask extractor"
    )
    missing = {name: weight for name, weight in named.items() if "ln_q_1.bias" not in name}
    assert refused(saved(missing)) == f"{file} lacks 1 of 27 weights of the projector, among them query_norm.bias"
    wrong = named | {"model.mm_projector.mlp.2.bias": torch.zeros(5)}
    assert refused(saved(wrong)).startswith(f"{file} holds projector.mlp.2.bias with shape (5,), the model needs (64,)")
    more = named | {"model.mask_extractor.res_layers.3.bias": torch.zeros(32)}
    assert refused(saved(more)) == (
        f"{file} holds level_projections.3.bias, which the model's region_encoder does not have"
    )
    assert refused(exported, scale_factor=3) == (
        f"{exported / 'parts.safetensors'} was trained with scale_factor 2, and the model has 3; set "
        "geometry.scale_factor=2, or take other weights"
    )
    (tmp_path / "short.safetensors").write_bytes((exported / "parts.safetensors").read_bytes()[:100])
    assert "is no whole safetensors file" in refused(tmp_path / "short.safetensors")


class Intruder:
    """Would write a file if it were ever unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "run")


def test_no_object_is_built_from_a_file(tmp_path: Path) -> None:
    torch.save({"model.mm_projector.mlp.0.bias": Intruder(tmp_path / "ran")}, tmp_path / "file.bin")
    (tmp_path / "bare.bin").write_bytes(pickle.dumps(Intruder(tmp_path / "ran")))
    for name in ("file.bin", "bare.bin"):
        assert "is no file of weights alone, or not all of it" in refused(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["MODEL", "OUT", "--parts", "language_model"],
            "language_model cannot be exported; parts are projector, region",
        ),
        (["MODEL", "MODEL"], "exists; remove it, or name another folder"),
        (["nowhere", "OUT"], "nowhere is no model folder, it lacks config.json"),
    ],
)
def test_exports_that_cannot_be(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {"MODEL": str(trained), "OUT": str(tmp_path / "out")}
    assert export_parts.main([places.get(argument, argument) for argument in arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
