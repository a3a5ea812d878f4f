"""The benchmark of budgets: its figures are those of sessions."""

import json

import numpy as np
from PIL import Image

from data_pipelines.records import Region, RegionRecord
from data_pipelines.writing import RecordWriter
from osprey_tp import RegionDescriber
from osprey_tp.masks import to_rle
from scripts.benchmark.__main__ import main

from .tiny_models import save_tiny_model, tiny_describer

NAMES = ("a ring", "a star")


def test_losses_are_measured_against_all_tiles(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (60, 120, 3), dtype=np.uint8)).save(tmp_path / "picture.png")
    boxes = [{"box": [5, 5, 20, 20]}, {"box": [80, 30, 110, 55]}]
    regions = tuple(Region(to_rle(box, 60, 120), name) for box, name in zip(boxes, NAMES, strict=True))
    with RecordWriter(tmp_path / "records", source="coco", image_root=tmp_path) as writer:
        writer.add(RegionRecord("coco:0", "coco", "picture.png", 60, 120, regions))
    folder = save_tiny_model(tmp_path / "model")
    monkeypatch.setattr("scripts.benchmark.medium_model.medium_describer", tiny_describer)
    command = ["budgets", "--model", str(folder), "--data", str(tmp_path / "records"), "--json", str(tmp_path / "out")]
    assert main([*command, "--max-tiles", "1", "--repeats", "1", "--regions", "2"]) == 0
    rows = json.loads((tmp_path / "out").read_text())["budgets"]
    describer = RegionDescriber.from_pretrained(folder)
    for name, budget in {
        "all tiles": {},
        "near regions": {"tiles": "near-regions"},
        "max_tiles 1": {"max_tiles": 1},
    }.items():
        scores = describer.open(tmp_path / "picture.png", **budget).score(NAMES, boxes)
        np.testing.assert_allclose(rows[name]["log_likelihood"], scores.diagonal().mean(), rtol=1e-5)
        np.testing.assert_allclose(rows[name]["accuracy"], (scores.argmax(axis=1) == [0, 1]).mean())
        loss = rows["all tiles"]["log_likelihood"] - rows[name]["log_likelihood"]
        np.testing.assert_allclose(rows[name]["loss"], loss)
    assert rows["max_tiles 1"]["tokens"] < rows["near regions"]["tokens"] < rows["all tiles"]["tokens"]
    assert "near regions" in capsys.readouterr().out
    assert main([*command, "--max-tiles", "25"]) == 1
    assert capsys.readouterr().err.endswith("error: max_tiles can be lowered to 1 to 9 tiles, not set to 25\n")
