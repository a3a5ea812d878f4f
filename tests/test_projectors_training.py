"""Every projector through the stages: put together, trained, exported, taken up again, merged, asked, estimated."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from osprey_tp import OspreyTPConfig, RegionDescriber
from scripts import export_parts, merge, train

from .test_training_run import settings, weights, write_records
from .test_training_start import halves  # noqa: F401 - a fixture

GEOMETRY = {
    "stf": ("geometry.projector_type=stf", "geometry.feature_layers=[3, 2, 1]", "geometry.scale_factor=3"),
    "mlp": (
        "geometry.projector_type=mlp",
        "geometry.feature_layers=[1, 2, -2]",
        "geometry.projector_feature_layers=[2]",
    ),
}
ADAPTER = "adapter={kind: lora, rank: 4, alpha: 16, dropout: 0.1}"


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"), 4)


@pytest.mark.parametrize("projector", list(GEOMETRY))
def test_a_model_with_it_goes_through_all_stages(
    projector: str,
    halves: tuple[Path, Path],  # noqa: F811
    records: Path,
    tmp_path: Path,
) -> None:
    language, vision = halves
    once = ("max_steps=2", "batch_size=2")
    put_together = [f"language_model={language}", f"vision_tower={vision}", "model=null", *GEOMETRY[projector]]
    first = [
        *settings(Path("null"), records, tmp_path / "first", *once, *put_together),
        "stage=1",
        "template=vicuna_v1",
    ]
    assert train.main(["--dry-run", "--json", str(tmp_path / "told.json"), *first]) == 0
    assert train.main(first) == 0
    config = OspreyTPConfig.from_pretrained(tmp_path / "first")
    assert config.projector_type == projector
    assert export_parts.main([str(tmp_path / "first"), str(tmp_path / "part"), "--parts", "projector"]) == 0

    told = {row["part"]: row["parameters"] for row in json.loads((tmp_path / "told.json").read_text())["parts"]}
    exported = load_file(tmp_path / "part" / "parts.safetensors")
    assert sum(weight.numel() for weight in exported.values()) == told["projector"]
    trained = weights(tmp_path / "first")
    for name, weight in exported.items():
        assert torch.equal(weight, trained[f"model.{name}"]), name

    second = [*settings(tmp_path / "first", records, tmp_path / "second", *once), "learning_rates.projector=1e-3"]
    assert train.main([*second, f"initial_parts=[{tmp_path / 'part'}]"]) == 0
    after = weights(tmp_path / "second")
    moved = {name.split(".")[1] for name in after if not torch.equal(after[name], trained[name])}
    assert moved == {"projector", "region_encoder"}
    assert all(not torch.equal(after[f"model.{name}"], weight) for name, weight in exported.items())

    third = settings(tmp_path / "second", records, tmp_path / "third", *once)
    assert train.main([*third, "stage=3", ADAPTER]) == 0
    assert merge.main([str(tmp_path / "third"), str(tmp_path / "merged")]) == 0
    describer = RegionDescriber.from_pretrained(tmp_path / "merged", device="cpu")
    answers = describer.open(np.zeros((48, 96, 3), np.uint8)).ask([{"box": [0, 0, 9, 9]}, {"box": [40, 5, 90, 40]}])
    assert len(answers) == 2
