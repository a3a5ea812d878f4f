"""The benchmarks: what they print and write down."""

import json
from pathlib import Path

import pytest
import torch

from scripts.benchmark.__main__ import BENCHMARKS, main


def test_a_sample_is_measured_part_by_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sample.json"
    assert main(["sample", "--repeats", "1", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert (result["height"], result["width"], result["regions"]) == (480, 640, 20)
    assert result["tokens"] > 1015  # the visual tokens of 2 x 3 tiles
    assert [part["name"] for part in result["parts"]] == [
        "read the record",
        "decode the JPEG",
        "resize, tile, normalise",
        "run lengths to coverage of cells",
        "prompts of the record",
        "tokens and labels",
    ]
    assert all(part["ms"] > 0 for part in result["parts"])
    assert result["sample"]["floor_ms"] == pytest.approx(sum(part["floor_ms"] for part in result["parts"]))
    assert result["batch"]["ms"] > result["sample"]["ms"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + len(result["parts"]) + 2
    assert lines[1].startswith("one sample: 480 x 640 pixels, 20 regions")


def test_preparing_is_measured_in_time_and_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.benchmark.prepare.WORKERS", 1)
    file = tmp_path / "prepare.json"
    assert main(["prepare", "--annotations", "900", "--images", "300", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert (result["annotations"], result["images"]) == (900, 300)
    assert set(result["prepare"]) == {"1", "2"}
    for run in (result["parse"], *result["prepare"].values()):
        assert run["seconds"] > 0
        assert run["peaks"]
        assert all(5 < peak < 2000 for peak in run["peaks"])
    assert len(result["prepare"]["2"]["peaks"]) > len(result["prepare"]["1"]["peaks"])
    assert 0 <= result["open_mib_a_worker"] < 200
    lines = capsys.readouterr().out.splitlines()
    assert [line[:26].strip() for line in lines][3:5] == ["prepare, processes: 1", "prepare, processes: 2"]


def test_a_compiled_tower_is_measured_beside_the_tower_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What compiling gives is tested elsewhere; here a tower stands in that is wrong, or only called compiled."""
    file = tmp_path / "compile.json"
    command = ["compile", "--size", "tiny", "--tiles", "1", "3", "--repeats", "1"]
    monkeypatch.setattr("osprey_tp.compiled_tower.compile_tower", lambda model: model.model.vision_tower.train())
    assert main([*command, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["tiles"] for row in rows] == [1, 3]
    assert all(row["difference"] == 0 < row["floor"] < row["seconds"]["compiled"] for row in rows)
    assert rows[1]["floor"] / rows[0]["floor"] == pytest.approx(3)
    assert len(capsys.readouterr().out.splitlines()) == 3 + len(rows)
    monkeypatch.setattr(
        "osprey_tp.compiled_tower.compile_tower",
        lambda model: torch.nn.init.zeros_(model.model.vision_tower.encoder.layers[0].mlp.fc2.weight),
    )
    assert main(command) == 1
    assert "states of the two towers differ by" in capsys.readouterr().err


def test_what_cannot_be_measured_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--repeats", "0"]) == 1
    assert capsys.readouterr().err == "error: --repeats must be at least 1, not 0\n"
    assert main(["compile", "--tiles", "0"]) == 1
    assert capsys.readouterr().err == "error: --repeats and --tiles must be at least 1\n"
    with pytest.raises(SystemExit) as left:
        main(["smaple"])
    assert left.value.code == 2
    assert "sample" in capsys.readouterr().err


def test_every_benchmark_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in BENCHMARKS)
