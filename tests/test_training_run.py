"""The train command from prepared records to a model folder: what it writes, resumes and refuses."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DynamicCache

from data_pipelines.records import Region, RegionRecord
from data_pipelines.writing import RecordWriter
from osprey_tp import OspreyTPForConditionalGeneration, OspreyTPProcessor, RegionDescriber
from osprey_tp.masks import to_rle
from scripts import train

from . import preloaded
from .tiny_models import save_tiny_model, tiny_model
from .training_logs import reproducible_log

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


def write_records(folder: Path, count: int = 12, name: str = "coco") -> Path:
    """Pictures of one half red, one half blue; both halves are regions."""
    images = folder / "images"
    images.mkdir(parents=True)
    with RecordWriter(folder / "records", source="coco", image_root=images) as writer:
        for index in range(count):
            picture = np.zeros((48, 96, 3), dtype=np.uint8)
            names = list(COLOURS) if index % 2 else list(COLOURS)[::-1]
            regions = []
            for half, colour in enumerate(names):
                mask = np.zeros((48, 96), dtype=bool)
                mask[:, 48 * half : 48 * (half + 1)] = True
                picture[mask] = COLOURS[colour]
                regions.append(Region(to_rle(mask, 48, 96), colour))
            Image.fromarray(picture).save(images / f"{index}.png")
            writer.add(RegionRecord(f"{name}:{index}", "coco", f"{index}.png", 48, 96, tuple(regions), ()))
    return folder / "records"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("start") / "model")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"))


def settings(start: Path, records: Path, output: Path, *more: str) -> list[str]:
    return [
        *("stage=2", f"model={start}", f"data=[{records}]", f"output={output}", "precision=fp32", "device=cpu"),
        *("max_steps=6", "batch_size=4", "log_every=1", "save_every=2", "workers=0", "learning_rate=1e-3", *more),
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return OspreyTPForConditionalGeneration.from_pretrained(folder).state_dict()


def test_a_run_writes_a_model_that_answers(
    start: Path, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "stage2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DynamicCache, "update", lambda *_: pytest.fail("training kept keys and values"))
        assert train.main(settings(start, records, output)) == 0
    shown = capsys.readouterr().out
    assert "stage 2, mask-text alignment: 12 samples" in shown
    assert "sees:" in shown and "learns:" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage2"]
    assert {"model.safetensors", "run_settings.yaml", "training_log.json", "trained_parts.json"} <= {
        path.name for path in output.iterdir()
    }
    log = json.loads((output / "training_log.json").read_text())
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
    assert log[-1]["loss"] < log[0]["loss"]
    before, after = weights(start), weights(output)
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"region_encoder"}
    answers = RegionDescriber.from_pretrained(output).open(np.zeros((48, 96, 3), np.uint8)).ask([{"box": [0, 0, 9, 9]}])
    assert len(answers) == 1


def test_stage_1_keeps_the_template_of_the_model(start: Path, records: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions"
    with RecordWriter(captions, source="captions", image_root=records.parent / "images") as writer:
        from data_pipelines.records import Turn

        turns = (Turn("user", ""), Turn("assistant", "red and blue"))
        writer.add(RegionRecord("captions:1", "captions", "0.png", 48, 96, (), turns))
    output = tmp_path / "stage1"
    assert train.main([*settings(start, captions, output), "stage=1", "max_steps=1"]) == 0
    saved, given = (OspreyTPProcessor.from_pretrained(folder).chat_template for folder in (output, start))
    assert saved == given


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    start: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert train.main(settings(start, records, whole)) == 0

    from osprey_tp.training.trainer import StageTrainer

    original = StageTrainer.training_step
    steps = []

    def interrupted(self: StageTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(settings(start, records, resumed))
    assert not resumed.exists()
    monkeypatch.setattr(StageTrainer, "training_step", original)
    assert train.main(settings(start, records, resumed)) == 0
    assert reproducible_log(resumed / "training_log.json") == reproducible_log(whole / "training_log.json")
    found = weights(resumed)
    for name, value in weights(whole).items():
        assert torch.equal(value, found[name]), name


def test_a_finished_run_is_left_alone_and_other_settings_are_refused(
    start: Path, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    arguments = settings(start, records, output, "max_steps=1")
    assert train.main(arguments) == 0
    written = (output / "model.safetensors").stat().st_mtime_ns
    assert train.main(arguments) == 0
    assert "is finished; nothing to do" in capsys.readouterr().out
    assert train.main([*arguments, "batch_size=2"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {output} holds a run with batch_size: 4, not 2")
    assert (output / "model.safetensors").stat().st_mtime_ns == written


def test_what_cannot_start_says_so_in_one_line(
    start: Path, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"

    def error(*more: str) -> str:
        assert train.main([*settings(start, records, output), *more]) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert not output.exists()
        return lines[-1]

    assert "is no model folder, it lacks config.json and processor_config.json" in error(f"model={tmp_path}")
    assert "is not a folder of records" in error(f"data=[{tmp_path}]")
    assert list(tmp_path.iterdir()) == []


def test_a_template_without_marks_teaches_nothing(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, processor = tiny_model()
    processor.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    model.save_pretrained(tmp_path / "unmarked")
    processor.save_pretrained(tmp_path / "unmarked")
    assert train.main([*settings(tmp_path / "unmarked", records, tmp_path / "out")]) == 1
    assert "no answer to learn from" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_launchers_run_the_published_configuration_of_their_stage(number: int) -> None:
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        ["bash", str(root / "scripts" / f"stage{number}.sh"), "batch_sise=4"],
        env={**os.environ, "PYTHON": preloaded.python(), "PROCESSES": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == "error: unknown setting 'batch_sise'; the nearest known one is 'batch_size'\n"
