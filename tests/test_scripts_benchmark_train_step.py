"""The benchmark of optimiser steps, at tiny size on the CPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from osprey_tp import OspreyTPConfig, OspreyTPForConditionalGeneration
from osprey_tp.tiling import count_visual_tokens
from osprey_tp.training.estimation import SampleShape
from osprey_tp.training.estimation_rehearsal import batch_inputs
from osprey_tp.training.stages import STAGES, apply_stage
from scripts.benchmark import train_step
from scripts.benchmark.__main__ import main
from scripts.benchmark.measuring import flop_counter
from scripts.dry_run import REGIONS

ARGUMENTS = ["train-step", "--batch-size", "2", "--steps", "2", "--text-tokens", "50", "--device", "cpu"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file: Path = tmp_path_factory.mktemp("benchmark") / "result.json"
    assert main([*ARGUMENTS, "--precision", "fp32", "--json", str(file)]) == 0
    return json.loads(file.read_text())


def test_tokens_and_samples_are_those_of_the_batch(result: dict[str, Any]) -> None:
    tokens = count_visual_tokens(2, 3, OspreyTPConfig.tiny().tiling.tokens_per_tile) + REGIONS + 50
    assert result["tokens_a_sample"] == tokens
    for case in result["cases"]:
        assert case["samples_a_second"] * case["seconds_a_step"] == pytest.approx(2)
        assert case["tokens_a_second"] * case["seconds_a_step"] == pytest.approx(2 * tokens)


def test_flops_are_those_of_a_real_step(result: dict[str, Any]) -> None:
    config = OspreyTPConfig.tiny()
    inputs = batch_inputs(config, [SampleShape((2, 3), REGIONS, result["tokens_a_sample"])] * 2)
    inputs["pixel_values"] = torch.rand(inputs["pixel_values"].shape)
    cases = {(case["stage"], case["adapter"]): case for case in result["cases"]}
    assert list(cases) == list(train_step.CASES)
    for stage in (2, 3):
        model = OspreyTPForConditionalGeneration(config)
        apply_stage(model, STAGES[stage])
        with flop_counter() as counter:
            model(**inputs, use_cache=False).loss.backward()
        case = cases[stage, "none"]
        assert case["model_flops"] == pytest.approx(counter.get_total_flops(), rel=0.01)
        assert case["model_flops_a_second"] * case["seconds_a_step"] == pytest.approx(case["model_flops"])
        assert case["utilisation"] * result["peak_flops"] == pytest.approx(case["model_flops_a_second"])
    assert cases[3, "lora"]["model_flops"] > cases[2, "none"]["model_flops"]


def test_steps_are_real(result: dict[str, Any]) -> None:
    """Four steps of stage 3 on one batch learn it a little; stage 2 starts from the same weights."""
    losses = {(case["stage"], case["adapter"]): case["loss"] for case in result["cases"]}
    assert len(set(losses.values())) == 3
    assert all(0 < loss < 8 for loss in losses.values())
    assert all(case["peak_bytes"] > case["estimated_bytes"] > 0 for case in result["cases"])


def test_the_table_says_it_in_a_hundred_columns(result: dict[str, Any]) -> None:
    lines = train_step.table(result).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("tiny, fp32, on CPU")
    assert [line.split("  ")[0] for line in lines[5:8]] == ["2, regions", "3, LoRA", "3, full"]


def test_what_does_not_fit_is_left_out_with_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = []

    def scarce(device: torch.device) -> int:
        needed.append(device)
        return 0 if len(needed) == 1 else 2**40

    monkeypatch.setattr(train_step, "_available", scarce)
    monkeypatch.setattr(train_step, "CASES", ((3, "none"), (2, "none")))
    assert main(ARGUMENTS) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[5].startswith("3, full         left out: needs") and shown[5].endswith("0.0 GiB are free")
    assert shown[6].startswith("2, regions")
    needed.clear()
    assert main([*ARGUMENTS, "--stage", "3"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: nothing fits: needs") and error.endswith("--batch-size or --grid\n")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--stage", "2", "--adapter", "lora"], "stage 2 freezes the language model"),
        (["--grid", "9x9"], "no grid of 9 x 9 tiles"),
        (["--steps", "0"], "--steps must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_measured_says_so_in_one_line(
    more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ARGUMENTS, *more]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
