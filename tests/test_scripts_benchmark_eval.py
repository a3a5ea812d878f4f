"""The benchmark of the evaluation's runner."""

import json
from pathlib import Path

import pytest

from scripts.benchmark.__main__ import main

SMALL = ["--hidden-size", "64", "--layers", "2", "--pictures", "1", "--tokens", "2"]


def test_the_runner_is_measured_beside_the_published_procedure_and_the_floor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "eval.json"
    assert main(["eval", *SMALL, "--regions", "3", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert (result["regions"], result["pictures"], result["answer_tokens"]) == (3, 1, 2)
    assert result["prefix_tokens"] > 1015  # the visual tokens of 2 x 3 tiles
    for name in ("published", "runner", "floor"):
        assert result[name]["regions_per_second"] == pytest.approx(3 / result[name]["seconds"])
    assert result["speedup"] == pytest.approx(result["published"]["seconds"] / result["runner"]["seconds"])
    assert result["speedup"] > 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["published:", "runner:", "floor:"]
    assert lines[2].split()[-2:] == ["1.0x", "1.0x"]


def test_the_two_procedures_have_to_answer_alike(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.benchmark.eval._run", lambda *_: {"coco:0#1": "something else"})
    assert main(["eval", *SMALL, "--regions", "1"]) == 1
    assert "1 of 1 answers of the two procedures differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"), [(["--regions", "21"], "at most 20"), (["--tokens", "0"], "--tokens must be at least 1")]
)
def test_wrong_numbers_are_refused(option: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *SMALL, *option]) == 1
    assert message in capsys.readouterr().err
