"""The benchmark of the app: clicks and everything, measured on the smallest models."""

import json

from scripts.benchmark import app
from scripts.benchmark.__main__ import main


def test_clicks_and_everything_are_measured(tmp_path, capsys, monkeypatch):
    segmenters, describers = app._segmenters()[:1], app._describers()[:1]
    monkeypatch.setattr(app, "_segmenters", lambda: segmenters)
    monkeypatch.setattr(app, "_describers", lambda: describers)
    few = ["--regions", "3", "--singles", "2", "--repeats", "1"]
    assert main(["app", *few, "--json", str(tmp_path / "app.json")]) == 0
    result = json.loads((tmp_path / "app.json").read_text())
    [clicks], [everything] = result["clicks"], result["everything"]
    assert clicks["segmenter"] == "tiny SAM" and min(clicks["first_seconds"], clicks["second_seconds"]) > 0
    assert (everything["model"], everything["regions"], everything["timed_singles"]) == ("tiny", 3, 2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("segmenter, one thread  first click  second click  ratio")
    assert lines[-1] == "10 new tokens a region; one by one: from 2 of them; same text: yes"
    assert main(["app", "--repeats", "0"]) == 1
    assert capsys.readouterr().err == "error: --regions, --singles and --repeats must be at least 1\n"
