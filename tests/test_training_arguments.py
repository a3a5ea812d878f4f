"""Settings of a run: files, overrides, and errors in one line."""

from pathlib import Path

import pytest
import yaml

from osprey_tp.training.arguments import load_settings
from osprey_tp.training.stages import STAGES

NEEDED = ("stage=2", "model=m", "data=[a, b]", "output=o")


def test_overrides_replace_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("stage: 3\nmodel: m\ndata: {a: 1, b: 0.5}\noutput: o\nlearning_rate: 1e-3\nbatch_size: 4\n")
    settings = load_settings(file, ["batch_size=32", "learning_rates.language_model=2e-5", "precision=fp32"])
    assert (settings.batch_size, settings.precision, settings.learning_rate) == (32, "fp32", 1e-3)
    assert settings.data == {"a": 1.0, "b": 0.5}
    assert settings.resolved_stage.learning_rates == {
        "projector": 1e-3,
        "region_encoder": 1e-3,
        "language_model": 2e-5,
    }


def test_data_is_a_name_a_list_or_weights() -> None:
    def data(text: str) -> object:
        return load_settings(None, [*NEEDED, f"data={text}"]).data

    assert data("a") == {"a": 1.0}
    assert data("[a, b]") == {"a": 1.0, "b": 1.0}
    assert data("{a: 2}") == {"a": 2.0}


def test_saved_settings_load_as_they_were(tmp_path: Path) -> None:
    nested = ("adapter={kind: lora, targets: [q_proj]}", "learning_rates={region_encoder: 1e-4, language_model: 1}")
    settings = load_settings(None, [*NEEDED, "report_to=tensorboard", *nested])
    assert settings.adapter is not None and settings.adapter.targets == ("q_proj",)
    file = tmp_path / "saved.yaml"
    file.write_text(yaml.safe_dump(settings.as_dict()))
    assert load_settings(file) == settings


def test_published_rates_are_the_default() -> None:
    rates = {number: load_settings(None, [*NEEDED, f"stage={number}"]).resolved_stage for number in STAGES}
    assert rates[1].learning_rates == {"projector": 1e-3}
    assert rates[2].learning_rates == {"region_encoder": 5e-4}
    assert rates[3].learning_rates == dict.fromkeys(("projector", "region_encoder", "language_model"), 2e-5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lerning_rate=1", "unknown setting 'lerning_rate'; the nearest known one is 'learning_rate'"),
        ("batch_size=many", "batch_size must be int, got 'many'"),
        ("batch_size=1.5", "batch_size must be int, got 1.5"),
        ("batch_size=0", "batch_size must be at least 1, got 0"),
        ("batch_size=true", "batch_size must be int, got True"),
        ("gradient_checkpointing=2", "gradient_checkpointing must be bool, got 2"),
        ("precision=fp8", "precision must be Literal['bf16', 'fp16', 'fp32'], got 'fp8'"),
        ("stage=4", "stage 4 does not exist; stages are 1, 2, 3"),
        ("stage=", "settings lack stage; add stage=... or put it into the file"),
        ("data=[]", "data names no record folder; give at least one"),
        ("warmup=3", "warmup is a share of the steps, from 0 to below 1, got 3.0"),
        ("batch_size", "'batch_size' is no key=value setting"),
        ("model=[", "model=[ is not valid YAML"),
        ("batch_size.inner=1", "batch_size holds no named values"),
        ("learning_rates.head=1", "learning_rates names head, which is no part; parts are vision_tower, projector, "),
        ("learning_rates.region_encoder=null", "learning_rates freezes every part of stage 2; leave one to train"),
        ("learning_rate=0", "the learning rate of region_encoder is 0; it must be positive, or null to freeze it"),
        ("adapter.rank=8", "settings lack adapter.kind; add adapter.kind=... or put it into the file"),
        ("adapter={kind: lora, rnak: 8}", "unknown setting 'adapter.rnak'; the nearest known one is 'adapter.rank'"),
        ("adapter={kind: loha}", "adapter.kind must be Literal['lora', 'qlora'], got 'loha'"),
        ("adapter={kind: lora, rank: 0}", "adapter.rank must be at least 1, got 0"),
        ("adapter={kind: lora, dropout: 1}", "adapter.dropout is a share, from 0 to below 1, got 1"),
        ("adapter={kind: lora, targets: []}", "adapter.targets names no layer"),
        ("adapter=lora", "adapter must hold named values (kind, rank, alpha, dropout, targets), got 'lora'"),
        ("adapter.kind=lora", "adapter is set, but stage 2 freezes the language model; remove it, or give learning_ra"),
        ("geometry.max_tiles=25", "geometry sets max_tiles, but m has its own; give language_model=... and"),
    ],
)
def test_errors_are_one_line(override: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_settings(None, [*NEEDED, "batch_size=2", override])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_learning_rates_unfreeze_and_freeze_parts() -> None:
    def rates(*overrides: str) -> object:
        return dict(load_settings(None, [*NEEDED, *overrides]).resolved_stage.learning_rates)

    assert rates("learning_rates.projector=1e-3") == {"projector": 1e-3, "region_encoder": 5e-4}
    assert rates("learning_rates.vision_tower=1e-6", "learning_rate=2") == {"vision_tower": 1e-6, "region_encoder": 2.0}
    assert rates("stage=3", "learning_rates.region_encoder=null") == {"projector": 2e-5, "language_model": 2e-5}


def test_the_template_of_a_run_replaces_that_of_the_stage() -> None:
    def template(*overrides: str) -> str | None:
        return load_settings(None, [*NEEDED, *overrides]).resolved_stage.template

    assert (template("stage=1"), template("stage=2")) == ("plain", None)
    assert template("stage=1", "template=vicuna_v1") == "vicuna_v1"
