"""The benchmarks of loading and starting, at small size: what they compare is the same; and the page of all of them."""

import json
from pathlib import Path

import pytest

from scripts.benchmark import page
from scripts.benchmark.__main__ import BENCHMARKS, main


def run(tmp_path: Path, *arguments: str) -> dict:
    file = tmp_path / "result.json"
    assert main([*arguments, "--json", str(file)]) == 0
    return json.loads(file.read_text())


def test_masks_are_compared_with_floats_at_canvas_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(tmp_path, "masks", "--repeats", "1")
    published, as_published, exact = result["rows"]
    assert published["bytes"] == 20 * (2 * 336) * (3 * 336) * 4
    assert as_published["bytes"] == exact["bytes"] == 20 * 6 * 576 * 4
    assert exact["bytes_ratio"] == 196
    assert exact["ratio"] > 1
    assert exact["of_floor"] > 1
    assert "exact areas" in capsys.readouterr().out


def test_a_loader_that_makes_other_cells_is_not_compared(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("osprey_tp.coverage.published_coverage", lambda regions, plan: _ones(len(regions), plan))
    assert main(["masks", "--repeats", "1"]) == 1
    assert capsys.readouterr().err == "error: ours and the published form count different cells; nothing is compared\n"


def _ones(regions, plan):
    import numpy as np

    return np.ones((regions, plan.num_cells), dtype=np.float32)


def test_loaders_are_compared_on_the_same_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(tmp_path, "loader", "--records", "1", "--repeats", "1")
    assert [row["name"] for row in result["rows"]] == ["published", "ours, as published", "ours, recommended"]
    assert result["rows"][0]["ratio"] == 1
    assert result["rows"][0]["mib"] > 5 * result["rows"][2]["mib"]
    assert all(row["samples_per_second"] > 0 and row["of_floor"] > 0 for row in result["rows"])
    assert "samples/s" in capsys.readouterr().out


def test_starts_are_timed_beside_their_floor(tmp_path: Path) -> None:
    result = run(tmp_path, "startup", "--cases", "help", "import", "--repeats", "1", "--no-memory")
    assert [row["name"] for row in result["rows"]] == ["osprey-tp --help", "import osprey_tp"]
    assert all(row["seconds"] > 0 and row["processor_seconds"] > 0 for row in result["rows"])


def test_the_page_tells_figures_and_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = ("--cases", "help", "--repeats", "1", "--no-memory")
    monkeypatch.setattr(page, "ARGUMENTS", {"startup": cases, "masks": ("--repeats", "0")})
    file = tmp_path / "benchmarks.md"
    command = ["all", "--only", "masks", "startup", "--markdown", str(file), "--results", str(tmp_path / "json")]
    assert main(command) == 1
    assert "error: 1 of 2 benchmarks failed: masks: --repeats must be at least 1, not 0" in capsys.readouterr().err
    text = file.read_text()
    assert "Failed: --repeats must be at least 1, not 0" in text
    assert "python -m scripts.benchmark startup --cases help --repeats 1 --no-memory" in text
    assert "osprey-tp --help" in text
    row = json.loads((tmp_path / "json" / "startup.json").read_text())["rows"][0]
    assert f"{row['seconds']:.2f}" in text
    assert main(["all", "--only", "mask"]) == 1
    assert f"there are {', '.join(name for name in BENCHMARKS if name != 'all')}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["masks", "loader", "startup"])
def test_wrong_numbers_are_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--repeats", "0"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
