"""What benchmarks share: times in turn, floors, tables; and the benchmark of scores on the tiny model."""

from __future__ import annotations

import json

import pytest
import torch

from scripts.benchmark.__main__ import main
from scripts.benchmark.measuring import Floor, Rates, Times, aligned, count_flops, interleaved, ratio


def test_works_run_in_turn() -> None:
    done: list[str] = []
    times = interleaved({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, 3)
    assert done == ["a", "b"] * 3
    assert all(len(found.wall) == len(found.processor) == 3 for found in times.values())


def test_the_ratio_is_that_of_the_median_round() -> None:
    times = {"slow": Times((2.0, 40.0, 6.0), (1.0, 1.0, 1.0)), "fast": Times((1.0, 4.0, 2.0), (0.5, 0.25, 1.0))}
    assert ratio(times, "slow", "fast") == 3.0
    assert ratio(times, "slow", "fast", "processor") == 2.0
    assert times["fast"].seconds == 2.0
    assert times["fast"].processor_seconds == 0.5


def test_works_of_one_kind_are_a_median_in_every_round() -> None:
    works = [Times((1.0, 8.0), (1.0, 1.0)), Times((2.0, 5.0), (1.0, 2.0)), Times((9.0, 6.0), (4.0, 3.0))]
    assert Times.median_of(works) == Times((2.0, 6.0), (1.0, 2.0))


def test_the_floor_is_the_slower_of_arithmetic_and_memory() -> None:
    rates = Rates(flops=100.0, bytes=10.0)
    assert Floor(flops=500.0, bytes=10.0).seconds(rates) == 5.0
    assert Floor(flops=500.0, bytes=80.0).seconds(rates) == 8.0


@torch.inference_mode()
def test_products_and_attention_on_a_processor_are_counted() -> None:
    assert count_flops(lambda: torch.ones(2, 3) @ torch.ones(3, 5)) == 2 * 2 * 3 * 5
    queries, keys = torch.ones(1, 2, 3, 8), torch.ones(1, 2, 5, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert count_flops(lambda: attention(queries, keys, keys)) == 2 * (2 * 3 * 5 * 8) * 2


def test_columns_are_aligned() -> None:
    assert aligned(("name", "s"), [("a", "1.25"), ("longer", "3")]) == "name       s\na       1.25\nlonger     3"


def test_scores_of_the_tiny_model(tmp_path) -> None:
    options = ["--size", "tiny", "--names", "3", "--regions", "2", "--pairs", "2", "--repeats", "1"]
    assert main(["score", "--json", str(tmp_path / "score.json"), *options]) == 0
    result = json.loads((tmp_path / "score.json").read_text("utf-8"))
    assert (result["pairs"], result["timed_pairs"]) == (6, 2)
    assert result["difference"] < 1e-4
    assert result["floor_seconds"] < result["seconds"]


def test_wrong_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "--names", "81"]) == 1
    assert capsys.readouterr().err == "error: --names must be at most 80, not 81\n"
