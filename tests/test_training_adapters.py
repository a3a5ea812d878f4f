"""Adapters of the language model: what trains, that a run goes on exactly, and that merging changes no answer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from osprey_tp import OspreyTPForConditionalGeneration, OspreyTPProcessor, RegionDescriber
from osprey_tp.training.adapters import AdapterSettings, add_adapters
from osprey_tp.training.trainer import StageTrainer
from scripts import merge, train

from .test_training_run import settings, write_records
from .tiny_models import save_tiny_model, tiny_model
from .training_logs import reproducible_log

ADAPTER = ("stage=3", "adapter={kind: lora, rank: 4, alpha: 16, dropout: 0.1}", "learning_rate=1e-2")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("start") / "model")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def batch(start: Path) -> dict[str, Any]:
    """A conversation about two regions of a picture."""
    picture = torch.arange(3 * 48 * 96, dtype=torch.uint8).reshape(3, 48, 96)
    regions = [{"box": [4, 4, 40, 40]}, {"box": [50, 4, 90, 40]}]
    content = [
        {"type": "image", "image": picture.permute(1, 2, 0).numpy(), "regions": regions},
        {"type": "text", "text": "Is <mask> left of <mask>?"},
    ]
    conversation = [{"role": "user", "content": content}, {"role": "assistant", "content": "yes"}]
    processor = OspreyTPProcessor.from_pretrained(start)
    return dict(processor.prepare([conversation]))


@pytest.fixture(scope="module")
def run(
    start: Path, records: Path, batch: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Tensor]:
    """A finished run with adapters, and the logits of the model that was just trained."""
    trained: list[StageTrainer] = []
    output = tmp_path_factory.mktemp("run") / "lora"
    with pytest.MonkeyPatch.context() as patch:
        save = train.save
        patch.setattr(train, "save", lambda trainer, *rest: (trained.append(trainer), save(trainer, *rest)))
        assert train.main(settings(start, records, output, *ADAPTER)) == 0
    return output, logits(trained[0].whole_model, batch)


@torch.no_grad()
def logits(model: OspreyTPForConditionalGeneration, batch: dict[str, Any]) -> Tensor:
    return model.eval()(**batch).logits


def test_merged_answers_are_those_of_the_trained_model(
    run: tuple[Path, Tensor], start: Path, batch: dict[str, Any], tmp_path: Path
) -> None:
    output, expected = run
    assert merge.main([str(output), str(tmp_path / "merged")]) == 0
    found = logits(OspreyTPForConditionalGeneration.from_pretrained(tmp_path / "merged"), batch)
    before = logits(OspreyTPForConditionalGeneration.from_pretrained(start), batch)
    assert (found - expected).abs().max() < 1e-4 < 1e-1 < (before - expected).abs().max()
    RegionDescriber.from_pretrained(tmp_path / "merged")
    saved = json.loads((tmp_path / "merged" / "trained_parts.json").read_text())
    assert {row["part"]: row["learning_rate"] for row in saved} == {
        "vision_tower": None,
        "projector": 1e-2,
        "region_encoder": 1e-2,
        "language_model": None,
        "lm_head": None,
        "adapters": 1e-2,
    }


def test_a_run_with_adapters_writes_them_alone(run: tuple[Path, Tensor], start: Path, tmp_path: Path) -> None:
    output, _ = run
    files = {path.name for path in output.iterdir()}
    assert {"adapter", "parts.safetensors", "parts.json", "config.json", "processor_config.json"} <= files
    assert not list(output.glob("model*.safetensors"))
    assert {path.name for path in (output / "adapter").glob("adapter*")} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_adapters_that_are_not_merged_say_what_to_do(
    run: tuple[Path, Tensor], records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, _ = run
    command = f"python -m scripts.merge {output} {output}-merged"
    remedy = f"{output} holds adapters, not a whole model; merge them first: {command}"
    with pytest.raises(ValueError) as caught:
        RegionDescriber.from_pretrained(output)
    assert str(caught.value) == remedy
    assert train.main(settings(output, records, tmp_path / "next")) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {remedy}"
    with pytest.raises(OSError):
        OspreyTPForConditionalGeneration.from_pretrained(output)


def test_an_interrupted_run_with_adapters_goes_on_exactly(
    run: tuple[Path, Tensor], start: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed = run[0], tmp_path / "resumed"
    original, steps = StageTrainer.training_step, []

    def interrupted(self: StageTrainer, *args: Any, **kwargs: Any) -> Tensor:
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(settings(start, records, resumed, *ADAPTER))
    checkpoints = list((tmp_path / "resumed.unfinished").glob("checkpoint-*"))
    assert checkpoints and not any(list(folder.glob("model*.safetensors")) for folder in checkpoints)
    monkeypatch.setattr(StageTrainer, "training_step", original)
    assert train.main(settings(start, records, resumed, *ADAPTER)) == 0
    for name in ("parts.safetensors", "adapter/adapter_model.safetensors"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name
    logs = [reproducible_log(folder / "training_log.json") for folder in (resumed, whole)]
    assert logs[0] == logs[1]


def test_merging_refuses_what_does_not_fit(
    run: tuple[Path, Tensor], start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: Any) -> str:
        assert merge.main([str(argument) for argument in arguments]) == 1
        return capsys.readouterr().err.splitlines()[-1]

    output, _ = run
    assert error(start, tmp_path / "out") == (
        f"error: {start} is not what a run with adapters wrote, it lacks adapter/adapter_model.safetensors"
    )
    assert error(output, start) == f"error: {start} exists; remove it, or name another folder"
    assert "is no model folder" in error(output, tmp_path / "out", f"model={tmp_path}")
    other = save_tiny_model(tmp_path / "other", language="qwen3")
    assert f"{other} has another configuration than the model that {output} started from" in error(
        output, tmp_path / "out", f"model={other}"
    )
    assert not list(tmp_path.glob("out*"))


def test_an_unknown_target_is_named() -> None:
    model, _ = tiny_model()
    with pytest.raises(ValueError, match=r"names qproj, which is no linear layer .* it has down_proj, .*, v_proj"):
        add_adapters(model, AdapterSettings("lora", targets=("q_proj", "qproj")), torch.float32)


def test_targets_get_adapters_and_nothing_else_does() -> None:
    model, _ = tiny_model()
    add_adapters(model, AdapterSettings("lora", targets=("q_proj", "v_proj")), torch.float32)
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {
        f"model.language_model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "v_proj")
    }


def test_4_bits_need_a_gpu(
    start: Path, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = settings(start, records, tmp_path / "out", "stage=3", "adapter.kind=qlora")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train.main(arguments) == 1
    assert "adapter.kind=qlora needs a CUDA GPU, and there is none here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
